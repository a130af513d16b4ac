"""Startup logs: what an engine states about its cache, read line by line in bounded memory.

Colours, interleaved ranks, cut-off lines and any amount of other output are fine. A value that ranks state differently
is kept as its range; a setting that is stated twice keeps its first value.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

from kvcalc.units import GIB

MAX_LINE_CHARACTERS = 1 << 16
MIB = 1 << 20

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
_KEYWORDS = re.compile(
    r"vllm|vLLM|KV cache|KV Cache|kv cache|KV self size|concurrency|GPU blocks|kv_cache|block size|padding layers|"
    r"LLM engine|server_args|ServerArgs|max_total_num_tokens|sglang|SGLang|build:|general\.name|n_ctx|memory_recurrent|"
    r"n_ubatch|flash_attn|full-size SWA|kv_size = |"
    r"prefill is enabled|Model loading took|avail mem"
)
_NUMBER = r"([\d.,]*\d)"
_ABSURD = 1e15


@dataclass(kw_only=True, slots=True)
class Range:
    """The least and the most that was stated; None where nothing was."""

    low: float | None = None
    high: float | None = None
    times: int = 0

    def add(self, value: float) -> None:
        self.low = value if self.low is None else min(self.low, value)
        self.high = value if self.high is None else max(self.high, value)
        self.times += 1


@dataclass(kw_only=True, slots=True)
class Stated:
    """What a log says. Bytes are as printed, with the rounding of the last digit beside them.

    available_bytes   memory for the cache on a rank; rounding_bytes is half of its last printed digit
    pool_bytes        size of the tensors on a rank; `pools` is how many lines told of them
    cells             of the longest tensor of a stream; llama.cpp has one for all its `sequences`, or one for each
    whole_windows     windows are kept as whole contexts; rollbacks: earlier states of each sequence are kept as well
    value_dtype       format of V where it is stated beside that of K
    """

    engine: str | None = None
    version: str | None = None
    model: str | None = None
    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    dcp: int | None = None
    dp_attention: bool = False
    kv_dtype: str | None = None
    value_dtype: str | None = None
    max_model_len: int | None = None
    block_tokens: int | None = None
    prefix_caching: bool | None = None
    mtp: bool = False
    max_batched_tokens: int | None = None
    memory_utilization: float | None = None
    tokens: int | None = None
    blocks: int | None = None
    concurrency: float | None = None
    needed_bytes: float | None = None
    estimated_max_len: int | None = None
    padding_layers: int | None = None
    cells: int | None = None
    sequences: int = 1
    streams: int = 1
    whole_windows: bool = False
    rollbacks: int = 0
    rounding_bytes: float = 0.0
    available_bytes: Range = field(default_factory=Range)
    pool_bytes: float | None = None
    pools: int = 0
    lines: int = 0

    @property
    def says_something(self) -> bool:
        return any(
            value is not None for value in (self.tokens, self.blocks, self.pool_bytes, self.needed_bytes)
        ) or bool(self.available_bytes.times)


def log_lines(stream: IO[str]) -> Iterator[str]:
    """Lines of a stream, none longer than `MAX_LINE_CHARACTERS`: what is beyond that is skipped."""
    while True:
        line = stream.readline(MAX_LINE_CHARACTERS)
        if not line:
            return
        yield line
        while len(line) == MAX_LINE_CHARACTERS and not line.endswith("\n"):
            line = stream.readline(MAX_LINE_CHARACTERS)


def read_log(lines: Iterable[str]) -> Stated:
    """What a log of vLLM, SGLang or llama.cpp states."""
    stated = Stated()
    for line in lines:
        stated.lines += 1
        if _KEYWORDS.search(line):
            _read_line(_ANSI.sub("", line[:MAX_LINE_CHARACTERS]), stated)
    return stated


def _read_line(line: str, stated: Stated) -> None:
    for reader in (_settings, _vllm, _sglang, _llama_cpp):
        reader(line, stated)


def _number(text: str) -> float | None:
    """A number as printed: `715,072`, `46.80`. None where a stray separator or absurd size makes it nothing."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if value < _ABSURD else None


def _whole(text: str) -> int | None:
    value = _number(text)
    return None if value is None else int(value)


def _bytes(text: str, unit: int) -> float | None:
    value = _number(text)
    return None if value is None else value * unit


def _set_first(stated: Stated, name: str, value: object) -> None:
    if value is not None and getattr(stated, name) is None:
        setattr(stated, name, value)


# --- settings: `key=value` and `'key': value` -------------------------------------------------------------------------

_SETTINGS = {
    "tensor_parallel_size": ("tp", int),
    "tp_size": ("tp", int),
    "pipeline_parallel_size": ("pp", int),
    "pp_size": ("pp", int),
    "data_parallel_size": ("dp", int),
    "dp_size": ("dp", int),
    "decode_context_parallel_size": ("dcp", int),
    "dcp_size": ("dcp", int),
    "kv_cache_dtype": ("kv_dtype", str),
    "max_seq_len": ("max_model_len", int),
    "max_model_len": ("max_model_len", int),
    "context_len": ("max_model_len", int),
    "context_length": ("max_model_len", int),
    "enable_prefix_caching": ("prefix_caching", bool),
    "max_num_batched_tokens": ("max_batched_tokens", int),
    "gpu_memory_utilization": ("memory_utilization", float),
    "mem_fraction_static": ("memory_utilization", float),
    "page_size": ("block_tokens", int),
    "block_size": ("block_tokens", int),
    "model_path": ("model", str),
    "model": ("model", str),
}
_SETTING = re.compile(
    r"(?<![\w.])['\"]?(" + "|".join(sorted(_SETTINGS, key=len, reverse=True)) + r")['\"]?\s*[=:]\s*"
    r"(?:'([^']{1,400})'|\"([^\"]{1,400})\"|([^\s,)}\]]{1,400}))"
)
_IS_SETTINGS = re.compile(r"LLM engine|server_args|ServerArgs|non-default args|max_total_num_tokens")


def _settings(line: str, stated: Stated) -> None:
    if not _IS_SETTINGS.search(line):
        return
    for key, single, double, bare in _SETTING.findall(line):
        name, kind = _SETTINGS[key]
        _set_first(stated, name, _setting(single or double or bare, kind))
    if "enable_dp_attention=True" in line:
        stated.dp_attention = True


def _setting(text: str, kind: type) -> object:
    if text in ("None", "null", "auto", ""):
        return None
    if kind is bool:
        return {"True": True, "False": False}.get(text)
    if kind is str:
        return text
    value = _number(text)
    return None if value is None else kind(value)


# --- vLLM -------------------------------------------------------------------------------------------------------------

_VLLM_VERSION = re.compile(r"(?:LLM engine \(v|vLLM API server version |vllm==|vLLM version )v?(\d+\.\d+[\w.+]*)")
_AVAILABLE = re.compile(
    r"(?:Available KV cache memory: |memory reserved for KV Cache is |kv_cache_size=)" + _NUMBER + " ?GiB"
)
_TOKENS = re.compile(r"(?:GPU|CPU|XPU|TPU|HPU)(?: \+ host)? KV cache size: " + _NUMBER + " tokens")
_CONCURRENCY = re.compile(r"Maximum concurrency for " + _NUMBER + r" tokens per request: " + _NUMBER + "x")
_BLOCKS = re.compile(r"# (?:GPU|cuda|CUDA) blocks: " + _NUMBER)
_BLOCK_SIZE = re.compile(
    r"(?:Setting attention block size to|[Ff]orcing kv cache block size to|Setting kv cache block size to) " + _NUMBER
)
_PADDING = re.compile(r"Add (\d+) padding layers")
_NEEDED = re.compile(r"max seq len \(" + _NUMBER + r"\), \(?" + _NUMBER + r" GiB KV cache is needed")
_NEEDED_AVAILABLE = re.compile(r"available KV cache memory \(" + _NUMBER + r" GiB\)")
_ESTIMATED = re.compile(r"estimated maximum model length is " + _NUMBER)
_MTP = re.compile(r"SpeculativeConfig\(method='(?:\w+_)?mtp'")
_BATCHED = re.compile(r"prefill is enabled with max_num_batched_tokens=" + _NUMBER)


def _vllm(line: str, stated: Stated) -> None:
    if found := _VLLM_VERSION.search(line):
        _set_first(stated, "engine", "vllm")
        _set_first(stated, "version", found[1].rstrip("."))
    for pattern in (_AVAILABLE, _NEEDED_AVAILABLE):
        if found := pattern.search(line):
            _add_available(stated, found[1])
    if found := _TOKENS.search(line):
        _set_first(stated, "tokens", _whole(found[1]))
        _set_first(stated, "engine", "vllm")
    if found := _CONCURRENCY.search(line):
        stated.max_model_len = _whole(found[1]) or stated.max_model_len
        _set_first(stated, "concurrency", _number(found[2]))
    if found := _BLOCKS.search(line):
        _set_first(stated, "blocks", _whole(found[1]))
        _set_first(stated, "engine", "vllm")
    if found := _BLOCK_SIZE.search(line):
        stated.block_tokens = _whole(found[1]) or stated.block_tokens
    if found := _PADDING.search(line):
        _set_first(stated, "padding_layers", _whole(found[1]))
    if found := _NEEDED.search(line):
        _set_first(stated, "engine", "vllm")
        stated.max_model_len = _whole(found[1]) or stated.max_model_len
        _set_first(stated, "needed_bytes", _bytes(found[2], GIB))
        stated.rounding_bytes = stated.rounding_bytes or _half_digit(found[2]) * GIB
    if found := _ESTIMATED.search(line):
        _set_first(stated, "estimated_max_len", _whole(found[1]))
    stated.mtp = stated.mtp or bool(_MTP.search(line))
    if found := _BATCHED.search(line):
        _set_first(stated, "max_batched_tokens", _whole(found[1]))


def _add_available(stated: Stated, text: str) -> None:
    value = _bytes(text, GIB)
    if value is not None:
        stated.available_bytes.add(value)
        stated.rounding_bytes = _half_digit(text) * GIB


def _half_digit(text: str) -> float:
    """Half of the last printed digit."""
    return 0.5 * 10.0 ** -len(text.partition(".")[2])


# --- SGLang -----------------------------------------------------------------------------------------------------------

_SGLANG_POOL = re.compile(r"KV Cache is allocated\..*?#tokens: (\d+)")
_SGLANG_SIZES = re.compile(r"(K|V|KV) size: " + _NUMBER + " GB")
_SGLANG_TOKENS = re.compile(r"max_total_num_tokens=(\d+)")
_SGLANG_VERSION = re.compile(r"(?:sglang==|SGLang version:? |sglang version:? )v?(\d+\.\d+[\w.+]*)")


def _sglang(line: str, stated: Stated) -> None:
    if found := _SGLANG_VERSION.search(line):
        _set_first(stated, "engine", "sglang")
        _set_first(stated, "version", found[1].rstrip("."))
    if found := _SGLANG_TOKENS.search(line):
        _set_first(stated, "engine", "sglang")
        _set_first(stated, "tokens", _whole(found[1]))
    if found := _SGLANG_POOL.search(line):
        _set_first(stated, "engine", "sglang")
        _set_first(stated, "tokens", _whole(found[1]))
        digits = [size for _, size in _SGLANG_SIZES.findall(line)]
        sizes = [size for text in digits if (size := _bytes(text, GIB)) is not None]
        if sizes and stated.pool_bytes is None:
            stated.pool_bytes = sum(sizes)
            stated.rounding_bytes = sum(map(_half_digit, digits)) * GIB


# --- llama.cpp --------------------------------------------------------------------------------------------------------

_LLAMA_POOL = re.compile(
    r"(llama_kv_cache\w*|llama_memory_recurrent): size = +" + _NUMBER + r" MiB "
    r"\( *(\d{1,15}) cells, +\d+ layers(?:, +(\d{1,9})(?:/(\d{1,9}))? seqs(?: +(\d{1,9}) rs_seq)?)?"
)
_LLAMA_OLD = re.compile(r"KV self size += +" + _NUMBER + r" MiB")
_LLAMA_OLD_CELLS = re.compile(r"(\w+): kv_size = (\d{1,15}),")
_LLAMA_TYPES = re.compile(r"K \((\w+)\):(?:.*? V \((\w+)\):)?")
_LLAMA_BUILD = re.compile(r"build: (\d+) \(")
_LLAMA_NAME = re.compile(r"general\.name\s+(?:str\s+)?=\s*(.{1,200}?)\s*$")
_LLAMA_UBATCH = re.compile(r"n_ubatch += (\d+)")
_LLAMA_FLASH = re.compile(r"flash_attn += ([01])\s*$")
_LLAMA_DTYPES = {"f16": "fp16", "f32": "fp32"}
_FLASH_PADDING = {"0": 32, "1": 256}
"""What contexts were padded to while a log said whether there is flash attention; later ones are padded to 256."""
_MOST_POOLS = 64


def _llama_cpp(line: str, stated: Stated) -> None:
    _llama_settings(line, stated)
    new = _LLAMA_POOL.search(line)
    old = _LLAMA_OLD.search(line)
    if new is None and old is None:
        return
    _set_first(stated, "engine", "llama-cpp")
    text = new[2] if new else old[1] if old else ""
    size = _bytes(text, MIB)
    if size is not None and stated.pools < _MOST_POOLS:
        stated.pools += 1
        stated.pool_bytes = (stated.pool_bytes or 0.0) + size
        stated.rounding_bytes += _half_digit(text) * MIB
    recurrent = "recurrent:" in line
    if new:
        stated.sequences = max(stated.sequences, int(new[4] or 1))
        stated.rollbacks = max(stated.rollbacks, int(new[6] or 0))
    if new and not recurrent:
        stated.streams = max(stated.streams, int(new[5] or 1))
        stated.cells = max(stated.cells or 0, int(new[3]))
        stated.tokens = stated.cells * stated.streams
    if (found := _LLAMA_TYPES.search(line)) and not recurrent:
        _set_first(stated, "kv_dtype", _LLAMA_DTYPES.get(found[1], found[1]))
        _set_first(stated, "value_dtype", _LLAMA_DTYPES.get(found[2], found[2]))


def _llama_settings(line: str, stated: Stated) -> None:
    if found := _LLAMA_BUILD.search(line):
        _set_first(stated, "engine", "llama-cpp")
        _set_first(stated, "version", f"b{found[1]}")
    if found := _LLAMA_NAME.search(line):
        _set_first(stated, "model", found[1])
    if found := _LLAMA_UBATCH.search(line):
        _set_first(stated, "max_batched_tokens", _whole(found[1]))
    if found := _LLAMA_FLASH.search(line):
        _set_first(stated, "block_tokens", _FLASH_PADDING[found[1]])
    if "full-size SWA cache" in line:
        stated.whole_windows = True
    if found := _LLAMA_OLD_CELLS.search(line):
        if "recurrent" in found[1]:
            stated.sequences = max(stated.sequences, int(found[2]))
        else:
            stated.cells = stated.tokens = max(stated.cells or 0, int(found[2]))

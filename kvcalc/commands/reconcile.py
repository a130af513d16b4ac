"""`kvcalc reconcile`: an engine's startup log set beside the rules."""

import sys
from pathlib import Path
from typing import Any

from kvcalc import api, engines
from kvcalc.commands.output import emit, warn
from kvcalc.engines.llama_cpp import with_value_format
from kvcalc.engines.logs import Stated, log_lines, read_log
from kvcalc.errors import UsageError, printable
from kvcalc.reconcile import EXPLAINED, OFF, Reconciliation, reconcile
from kvcalc.report.page import Block, Facts, Page, Table
from kvcalc.units import memory, number
from kvcalc.workload import Parallelism

_SUFFIXES = (
    "instruct",
    "chat",
    "base",
    "it",
    "hf",
    "fp8",
    "bf16",
    "awq",
    "gptq",
    "int4",
    "nvfp4",
    "4bit",
    "8bit",
    "thinking",
    "exp",
)
"""Parts of a checkpoint's name that do not change what its cache looks like."""
_DTYPES = {"fp8_inc": "fp8", "half": "fp16", "float": "fp32"}


def run(log: str, *, format: str | None, json: bool, output: Path | None, as_bytes: bool, **options: Any) -> int:
    """Print the account."""
    result, warnings = make(read(log), **options)
    warn(warnings)
    emit(result.to_json, lambda: page(result, as_bytes=as_bytes), format=format, json=json, output=output)
    return 0


def read(log: str) -> Stated:
    """What the log states; `-` is standard input. Raises UsageError where it says nothing about a cache."""
    if log == "-":
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        stated = read_log(log_lines(sys.stdin))
    else:
        try:
            with Path(log).open(encoding="utf-8", errors="replace") as stream:
                stated = read_log(log_lines(stream))
        except OSError as error:
            raise UsageError(f"can't read '{log}': {error.strerror}") from error
    if not stated.says_something:
        raise UsageError(
            f"'{log}' says nothing about a cache in {stated.lines:,} lines",
            hint="it must be the startup log of vLLM, SGLang or llama.cpp, with its lines about the KV cache",
        )
    return stated


def make(
    stated: Stated,
    *,
    model: str | None,
    engine: str | None,
    gpu: str | None,
    ranks: dict[str, int | None],
    kv_dtype: str | None,
    block_tokens: int | None,
    prefix_caching: bool | None,
    max_batched_tokens: int | None,
) -> tuple[Reconciliation, list[str]]:
    """The account, and what was taken for granted. Options win over what the log states."""
    warnings: list[str] = []
    loaded = api.load_model(model if model is not None else _packaged(stated.model, warnings))
    name = engine or _engine(stated, warnings)
    mix = _mix(stated, ranks)
    if block_tokens is None and name.startswith(("sglang", "llama-cpp")):
        block_tokens = stated.block_tokens
    layout = api.layout_for(
        loaded,
        engine=name,
        block_tokens=block_tokens,
        kv_dtype=kv_dtype or _DTYPES.get(stated.kv_dtype or "", stated.kv_dtype),
        parallelism=mix,
        gpu=api.load_gpu(gpu) if gpu else None,
        prefix_caching=stated.prefix_caching if prefix_caching is None else prefix_caching,
        max_batched_tokens=max_batched_tokens
        or (stated.max_batched_tokens if name.startswith(("vllm", "llama-cpp")) else None),
    )
    if stated.value_dtype is not None and kv_dtype is None:
        layout = with_value_format(layout, stated.value_dtype)
    try:
        result = reconcile(stated, loaded, layout, mix)
    except UsageError as error:
        return Reconciliation(
            stated=stated, model=loaded, layout=layout, parallelism=mix, refused=error.message
        ), warnings
    derived = layout.block_tokens
    if stated.block_tokens is not None and name.startswith("vllm") and stated.block_tokens != derived:
        warnings.append(
            f"the log says blocks of {stated.block_tokens:,} tokens, the rules give {derived:,}: "
            "another attention backend? name --gpu or --block-size"
        )
    if stated.padding_layers is not None and stated.concurrency is None:
        warnings.append("the log names padding layers but no concurrency: it may be cut off")
    return result, warnings


def _mix(stated: Stated, ranks: dict[str, int | None]) -> Parallelism:
    """The attention's parallelism of one replica."""
    tp = ranks["tp"] or stated.tp or 1
    if stated.dp_attention and ranks["tp"] is None and stated.dp:
        tp = max(1, tp // stated.dp)
    return Parallelism(tp=tp, pp=ranks["pp"] or stated.pp or 1, dcp=ranks["dcp"] or stated.dcp or 1)


def _engine(stated: Stated, warnings: list[str]) -> str:
    if stated.engine is None:
        raise UsageError("the log does not say which engine wrote it", hint="name it: --engine vllm@0.33")
    if stated.version is not None:
        return f"{stated.engine}@{stated.version}"
    latest = engines.load_engine(stated.engine).latest
    warnings.append(f"the log names no version: the rules of {stated.engine} {latest} are taken (--engine)")
    return stated.engine


def _packaged(name: str | None, warnings: list[str]) -> str:
    """The packaged model that a checkpoint's name means. Raises UsageError where none does."""
    from kvcalc.specs.sources import model_names

    hint = "name it: --model SPEC, of `kvcalc list models` or a config.json"
    if name is None:
        raise UsageError("the log does not name the model", hint=hint)
    known = set(model_names())
    words = name.rstrip("/").rpartition("/")[2].lower().replace("_", "-").replace(" ", "-").removeprefix("meta-")
    parts = words.split("-")
    while parts:
        tried = "-".join(parts)
        if tried in known:
            if tried != words:
                warnings.append(f"the model of the log, '{printable(name)}', is taken as {tried} (--model)")
            return tried
        if parts[-1] not in _SUFFIXES and not (parts[-1].isdigit() and len(parts[-1]) == 4):
            break
        parts.pop()
    raise UsageError(f"no packaged model is called like '{printable(name)}'", hint=hint)


def page(result: Reconciliation, *, as_bytes: bool = False) -> Page:
    """What the account says to a person."""
    blocks: list[Block] = [_stated(result, as_bytes), _computed(result, as_bytes)]
    if result.items:
        blocks.append(_account(result, as_bytes))
    return Page(title=f"{result.model.title}: the log beside the rules", blocks=blocks)


def _stated(result: Reconciliation, as_bytes: bool) -> Facts:
    stated, mix = result.stated, result.parallelism
    rows = [("engine", f"{stated.engine or '?'} {stated.version or ''}".rstrip(), "")]
    if stated.model:
        rows.append(("model", printable(stated.model), ""))
    rows.append(("parallel", f"tp {mix.tp}, pp {mix.pp}, dcp {mix.dcp}", "of one replica's attention"))
    available = stated.available_bytes
    if available.low is not None and available.high is not None:
        spread = "" if available.high == available.low else f"at least; at most {memory(available.high)}"
        rows.append(("memory for the cache", memory(round(available.low), as_bytes=as_bytes), spread or "on a rank"))
    if stated.pool_bytes is not None:
        rows.append(("tensors", memory(round(stated.pool_bytes), as_bytes=as_bytes), "on a rank"))
    for label, value, unit in (
        ("tokens", stated.tokens, "tokens"),
        ("blocks", stated.blocks, "blocks"),
        ("block", stated.block_tokens, "tokens"),
        ("longest request", stated.max_model_len, "tokens"),
        ("estimated longest", stated.estimated_max_len, "tokens"),
    ):
        if value is not None:
            rows.append((label, f"{value:,} {unit}", ""))
    if stated.concurrency is not None:
        rows.append(("concurrency", f"{stated.concurrency:g}x", ""))
    if stated.needed_bytes is not None:
        rows.append(("needed", memory(round(stated.needed_bytes), as_bytes=as_bytes), "for the longest request"))
    return Facts(title="The log states", rows=rows)


def _computed(result: Reconciliation, as_bytes: bool) -> Facts:
    rows = []
    if result.layout is not None:
        rows.append(("rules", result.layout.name, f"blocks of {result.layout.block_tokens:,} tokens"))
        rows += [("", "", note) for note in result.notes]
    if result.refused:
        rows.append(("nothing", "", result.refused))
    if result.bytes_per_token is not None:
        rows.append(("per token", f"{number(result.bytes_per_token)} B", "on a rank"))
    if result.tokens is not None:
        low, high = result.tokens_range or (result.tokens, result.tokens)
        spread = "" if low == high else f"{low:,} to {high:,} for all memory that is printed like this"
        rows.append(("tokens", f"{result.tokens:,}", spread))
    if result.needed_bytes is not None:
        rows.append(("needed", memory(result.needed_bytes, as_bytes=as_bytes), ""))
    verdicts = {EXPLAINED: "the log is explained", OFF: "something is left unexplained"}
    rows.append(("verdict", result.verdict, verdicts.get(result.verdict, "the rules give no number to compare")))
    return Facts(title="The rules give", rows=rows)


def _account(result: Reconciliation, as_bytes: bool) -> Table:
    total = result.total_bytes or 0
    rows = [
        [item.name, memory_signed(item.bytes, as_bytes), _share(item.bytes, total), item.note] for item in result.items
    ]
    left = result.unexplained_bytes or 0
    rows.append(["unexplained", memory_signed(left, as_bytes), _share(left, total), ""])
    rows.append(["all", memory_signed(total, as_bytes), _share(total, total), "stated, on all ranks"])
    return Table(
        title="Where the bytes go, all ranks of a replica",
        columns=["what", "bytes", "share", "note"],
        right=frozenset({"bytes", "share"}),
        rows=rows,
    )


def memory_signed(value: int, as_bytes: bool) -> str:
    return ("-" if value < 0 else "") + memory(abs(value), as_bytes=as_bytes)


def _share(value: int, total: int) -> str:
    return f"{100 * value / total:.2f} %" if total else "-"

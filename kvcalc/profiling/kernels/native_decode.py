"""native-decode: split-KV decode attention for CPU cores in C, for MLA in latent space and for MHA, GQA and MQA.

The kernel is native_decode.c, where its design is told. Here the work is laid out: what is attended is cut into pieces,
which as many threads as torch has take one after the other, and the last of a sequence's pieces combines them.
Products are in fp32 whatever the cache's format, which may differ from that of the queries: fp8 too.

Shape letters: B batch, Q query tokens, H query heads, G KV heads, h = H/G, W and Z widths of a key and an output row.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import e, log2
from pathlib import Path

import torch

from kvcalc.architecture.attention import LatentAttention
from kvcalc.profiling.case import ABSORBED, DECODE, GROUPED, Case
from kvcalc.profiling.inputs import TORCH_DTYPES, Inputs, LatentInputs
from kvcalc.profiling.kernels import native_build, workers
from kvcalc.profiling.kernels.base import Output, attends_everything
from kvcalc.profiling.kernels.torch_common import kv_heads

SOURCE = Path(__file__).with_name("native_decode.c")
FORMATS = {"fp32": 0, "bf16": 1, "fp16": 2, "fp8_e4m3": 3}
WIDTH_STEP = 16
"""Elements of the widest vector that a width has to be a multiple of."""
TILE_TOKENS = 64
"""Tokens of the largest tile, which each thread has room for."""
PIECES_A_THREAD = 8
LEAST_PIECE_TOKENS, LEAST_TOKENS = 128, 16
"""Of a piece: of its KV heads together, and of each. Shorter ones would move much of their own outputs."""
_POINTERS = (
    "q", "k", "v", "page_table", "attended", "pieces", "piece_range", "partial", "peaks", "sums", "out", "lse", "next",
    "waiting",
)  # fmt: skip
_STRIDES = ("k_page", "k_token", "k_head", "v_page", "v_token", "v_head")
_NUMBERS = ("table_width", "page_tokens", "heads", "rows", "key_width", "value_width", "n_pieces", "format")


class _Work(ctypes.Structure):
    """`struct work` of native_decode.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _STRIDES),
        *((name, ctypes.c_int32) for name in _NUMBERS),
        ("score_scale", ctypes.c_float),
        ("out_scale", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class Pieces:
    """How a case is cut.

    pieces       sequence, first token and end of each, those of a sequence side by side
    piece_range  first piece and end, of each sequence
    """

    pieces: tuple[tuple[int, int, int], ...]
    piece_range: tuple[tuple[int, int], ...]


def cut(case: Case, threads: int) -> Pieces:
    """Pieces of about equal length, enough that no thread waits long for another; a sequence has at least one."""
    least = max(LEAST_TOKENS, LEAST_PIECE_TOKENS // kv_heads(case))
    size = max(least, -(-sum(case.seq_lens) // (PIECES_A_THREAD * threads)))
    pieces: list[tuple[int, int, int]] = []
    piece_range = []
    for sequence, tokens in enumerate(case.seq_lens):
        first, count = len(pieces), max(1, -(-tokens // size))
        edges = [tokens * place // count for place in range(count + 1)]
        pieces += [(sequence, start, end) for start, end in pairwise(edges)]
        piece_range.append((first, len(pieces)))
    return Pieces(tuple(pieces), tuple(piece_range))


class NativeDecode:
    """Split-KV decode in C, compiled on the spot."""

    name = "native-decode"

    def version(self) -> str | None:
        """The compiler's: it makes the kernel."""
        return native_build.compiler_version()

    def form(self, case: Case) -> str:
        return ABSORBED if case.is_latent else GROUPED

    def supports(self, case: Case, device: torch.device) -> str | None:
        """Builds the library, in a second, the first time that a machine asks."""
        if device.type != "cpu":
            return "runs on CPU cores only"
        if case.phase != DECODE:
            return "is for decoding; prefill is left to torch"
        if any(width % WIDTH_STEP for width in _widths(case)):
            return f"takes widths that are multiples of {WIDTH_STEP}, not {' and '.join(map(str, _widths(case)))}"
        try:
            native_build.library(SOURCE)
        except native_build.BuildError as error:
            return str(error)
        return attends_everything(case)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Output]:
        return _Call(case, inputs, threads=torch.get_num_threads())

    def kernel_extra_flop(self, case: Case, device: torch.device) -> int:
        """Several query tokens are multiplied with all tokens; those after their own are masked."""
        components = case.attention.components()
        computed = sum(case.query_tokens * tokens for tokens in case.seq_lens)
        return (computed - case.pairs) * case.n_heads * sum(component.flop_per_pair for component in components)

    def kernel_extra_bytes(self, case: Case, device: torch.device) -> int:
        """Partial outputs, written and read."""
        return 2 * self._partial_bytes(case)

    def workspace_bytes(self, case: Case, device: torch.device) -> int:
        rows = case.batch * case.query_tokens * case.n_heads
        threads: int = torch.get_num_threads()
        rooms = 4 * threads * (TILE_TOKENS * (sum(_widths(case)) + WIDTH_STEP) + 2 * rows)
        return self._partial_bytes(case) + rooms + 4 * rows * sum(_widths(case)) + 2 * case.query_output_bytes

    def _partial_bytes(self, case: Case) -> int:
        rows = case.query_tokens * case.n_heads
        return 4 * len(cut(case, torch.get_num_threads()).pieces) * rows * _widths(case)[1]


class _Call:
    """A case laid out for the library: its tensors are what `struct work` points into."""

    def __init__(self, case: Case, inputs: Inputs, *, threads: int) -> None:
        heads, (key_width, value_width) = kv_heads(case), _widths(case)
        plan, rows = cut(case, threads), case.query_tokens * case.n_heads
        if isinstance(inputs, LatentInputs):
            q, k, v = inputs.q_absorbed, inputs.cache_pages[:, :, None], None  # [pages, T, 1, R+P]
            key_scale = value_scale = inputs.kv_scale
        else:
            q, k, v = inputs.q, inputs.k_pages, inputs.v_pages
            key_scale, value_scale = inputs.k_scale, inputs.v_scale
        rows_of_case = (case.batch, case.query_tokens, case.n_heads)
        self._output = Output(
            torch.empty(*rows_of_case, value_width, dtype=TORCH_DTYPES[case.dtype]), torch.empty(rows_of_case)
        )
        self._queries = _by_kv_head(q, heads)  # [B, G, Q, h, W]
        self._out, self._lse = (_by_kv_head(each, heads) for each in (self._output.out, self._output.lse))
        self._piece_counts = _int32([end - start for start, end in plan.piece_range])
        self._buffers = {
            "q": _as_library_has_it(self._queries),
            "k": k,
            "page_table": inputs.page_table,
            "attended": _attended(case, heads),
            "pieces": _int32(plan.pieces),
            "piece_range": _int32(plan.piece_range),
            "partial": torch.empty(len(plan.pieces), rows, value_width),
            "peaks": torch.empty(len(plan.pieces), rows),
            "sums": torch.empty(len(plan.pieces), rows),
            "out": _as_library_has_it(self._out),
            "lse": _as_library_has_it(self._lse),
            "next": _int32([0]),
            "waiting": torch.empty_like(self._piece_counts),
        } | ({} if v is None else {"v": v})
        self._work = _Work(
            **{name: tensor.data_ptr() for name, tensor in self._buffers.items()},
            **dict(zip(_STRIDES, (*k.stride()[:3], *(v.stride()[:3] if v is not None else ())), strict=False)),
            table_width=inputs.page_table.shape[1],
            page_tokens=case.page_tokens,
            heads=heads,
            rows=rows // heads,
            key_width=key_width,
            value_width=value_width,
            n_pieces=len(plan.pieces),
            format=FORMATS[case.kv_dtype],
            score_scale=inputs.scale * key_scale * log2(e),
            out_scale=value_scale,
        )
        self._library = native_build.library(SOURCE)
        self._library.room_floats.restype = ctypes.c_int64
        self._rooms = torch.empty(threads, self._library.room_floats(ctypes.byref(self._work)))

    def __call__(self) -> Output:
        buffers, threads = self._buffers, len(self._rooms)
        buffers["next"].zero_()
        buffers["waiting"].copy_(self._piece_counts)
        _copy(self._queries, buffers["q"], threads)
        workers.side_by_side(self._decode, threads)
        _copy(buffers["out"], self._out, threads)
        _copy(buffers["lse"], self._lse, threads)
        return self._output

    def _decode(self, thread: int) -> None:
        self._library.decode(ctypes.byref(self._work), ctypes.c_void_p(self._rooms[thread].data_ptr()))


def _by_kv_head(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """A view [B, G, Q, h, ...] of rows [B, Q, H, ...]."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2)


def _as_library_has_it(rows: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it is fp32 and contiguous, else room for one that is."""
    if rows.dtype is torch.float32 and rows.is_contiguous():
        return rows
    return torch.empty(rows.shape)


def _copy(source: torch.Tensor, target: torch.Tensor, threads: int) -> None:
    """Copy what is not the same memory already."""
    if source.data_ptr() != target.data_ptr():
        workers.in_one(lambda: target.copy_(source), threads)


def _int32(values: Sequence[object]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _attended(case: Case, heads: int) -> torch.Tensor:
    """Tokens that each row of a KV head attends, int32 [B, Q h]."""
    lengths = torch.tensor(case.seq_lens)[:, None] - case.query_tokens + 1 + torch.arange(case.query_tokens)  # [B, Q]
    return lengths.clamp(min=0).int().repeat_interleave(case.n_heads // heads, dim=1)


def _widths(case: Case) -> tuple[int, int]:
    """Widths of a key row and of an output row."""
    attention = case.attention
    if isinstance(attention, LatentAttention):
        return attention.kv_lora_rank + attention.qk_rope_head_dim, attention.kv_lora_rank
    return attention.head_dim, attention.v_head_dim

"""llama.cpp: no blocks; whole tensors for the context, padded, with the quantised types of ggml."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from kvcalc.architecture.attention import (
    Attention,
    Component,
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
    Role,
    SelectedAttention,
)
from kvcalc.architecture.formats import CACHE_FORMATS
from kvcalc.architecture.layout import Allocation, RecordCount
from kvcalc.architecture.slots import Constant, Window
from kvcalc.engines.base import ChangedLayout, Engine, Known, Request, Rule, Version, check_format
from kvcalc.errors import UsageError

_CACHE = "llama-cpp-python 0.3.36 vendor/llama.cpp/src/llama-kv-cache.cpp"

MLA = Rule(
    name="MLA",
    history=(
        Known(
            since="2025-04-15",
            value=True,
            says="K holds latent and rope, V holds the latent again: 512+64 costs 1,088 elements a token and layer",
            source="ggml-org/llama.cpp PR 19067, description: the cache before it",
        ),
        Known(
            since="2026-01-25",
            value=False,
            says="K alone: 576 elements; GGUF files made before MLA support still have the expanded cache",
            source=f"ggml-org/llama.cpp PR 19067 (2026-01-24); {_CACHE}:231",
        ),
    ),
)
PADDING = Rule(
    name="context",
    history=(
        Known(
            since="2025-04-15",
            value=256,
            says="padded to 256 tokens",
            source="llama-cpp-python 0.3.36 vendor/llama.cpp/src/llama-context.cpp:290",
        ),
    ),
)
WINDOWS = Rule(
    name="windows",
    history=(
        Known(
            since="2025-04-15",
            value=512,
            says="min(context, window + n_ubatch) padded to 256, with n_ubatch 512, for one sequence a stream",
            source="llama-cpp-python 0.3.36 vendor/llama.cpp/src/llama-kv-cache-iswa.cpp:71",
        ),
    ),
)
STATES = Rule(
    name="recurrent states",
    history=(
        Known(
            since="2025-04-15",
            says="fp32, convolution states too",
            source="llama-cpp-python 0.3.36 vendor/llama.cpp/src/llama-memory-recurrent.cpp:129-137",
        ),
    ),
)
TYPES = Rule(
    name="cache types",
    history=(
        Known(
            since="2025-04-15",
            value=frozenset({"fp32", "fp16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"}),
            says="f32, f16 (its default), bf16, q8_0, q5_1, q5_0, q4_1, q4_0; MLA needs one type for K and V",
            source="ggml-common.h:194-256; llama-context.cpp:3835",
        ),
    ),
)
INDEX = Rule(
    name="index keys",
    history=(
        Known(
            since="2025-04-15",
            says="one key a token in the K type",
            source="llama-cpp-python 0.3.36 vendor/llama.cpp/src/llama-kv-cache-dsa.cpp:38-53",
        ),
    ),
)

_NEW_BUILD = 9318
"""A build that is known to be after the change of MLA's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """Tensors of whole contexts: every sequence has a stream of its own, padded.

    (Without --kv-unified; with it, sequences share n_ctx cells, and the sum is what counts.)
    """

    records: tuple[RecordCount, ...]
    padding_tokens: int
    ubatch_tokens: int
    fixed_bytes: int = 0

    def cells(self, record_slots: object, context_tokens: int) -> int:
        padded = self._padded(context_tokens)
        if isinstance(record_slots, Window):
            return self._padded(min(padded, record_slots.tokens + self.ubatch_tokens))
        return padded

    def _padded(self, tokens: int) -> int:
        return -(-tokens // self.padding_tokens) * self.padding_tokens

    def sequence_bytes(self, context_tokens: int) -> int:
        total = 0
        for item in self.records:
            record, slots = item.record, item.record.slots
            if record.is_state or isinstance(slots, Constant):
                total += item.count * record.stored_bytes(context_tokens)
            elif slots.stored(context_tokens):
                total += item.count * self.cells(slots, context_tokens) * record.bytes_per_slot
        return total


@dataclass(frozen=True, kw_only=True)
class LlamaCppLayout(ChangedLayout):
    """llama.cpp's cache."""

    ubatch_tokens: int

    def allocation(self, records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], dcp: int) -> Allocation:
        return Cells(records=records, padding_tokens=self.block_tokens, ubatch_tokens=self.ubatch_tokens)


def _change(with_values: bool) -> Callable[[Attention, tuple[Component, ...]], tuple[Component, ...]]:
    def change(attention: Attention, components: tuple[Component, ...]) -> tuple[Component, ...]:
        base = attention.base if isinstance(attention, SelectedAttention) else attention
        if isinstance(attention, CompressedAttention) or (base is not attention and isinstance(base, GroupedAttention)):
            raise UsageError(
                f"llama.cpp's cache for {attention.label} is not known to kvcalc",
                hint="--engine generic gives its stored bytes",
            )
        if not (with_values and isinstance(base, LatentAttention)):
            return components
        latent = next(component for component in components if component.role is Role.LATENT)
        copy = replace(latent, name="latent again as V", role=Role.VALUE, record="value", flop_per_pair=0)
        return (*components, copy)

    return change


def layout(request: Request, version: Version) -> LlamaCppLayout:
    """llama.cpp's layout of a date or build."""
    name = ENGINE.label(version)
    check_format(name, request, TYPES.at(version))
    if request.parallelism.tp > 1:
        raise UsageError("llama.cpp splits layers over GPUs, not heads", hint="use --pp instead of --tp")
    precision = replace(
        request.precision,
        index=request.precision.kv if request.index_dtype is None else request.precision.index,
        state=CACHE_FORMATS["fp32"] if request.state_dtype is None else request.precision.state,
        convolution=CACHE_FORMATS["fp32"],
    )
    return LlamaCppLayout(
        name=name,
        precision=precision,
        block_tokens=request.block_tokens or PADDING.at(version),
        ubatch_tokens=request.max_batched_tokens or WINDOWS.at(version),
        notes=("every sequence has a stream of its own: --kv-unified shares the cells instead",),
        change=_change(bool(MLA.at(version))),
    )


def _by_date(text: str) -> str:
    """A version as a date: new builds as today's, older ones only by their date. Raises UsageError."""
    build = text.strip().lower().removeprefix("b")
    if not build.isdigit():
        return text
    if int(build) >= _NEW_BUILD:
        return LATEST
    raise UsageError(
        f"on which side of the changes of the cache llama.cpp b{build} is, is not known here",
        hint="name its date, such as llama-cpp@2026-01-25",
    )


LATEST = "2026-11-24"
ENGINE = Engine(
    name="llama-cpp",
    title="llama.cpp",
    covers=(("2025-04-15", LATEST),),
    rules=(MLA, PADDING, WINDOWS, STATES, TYPES, INDEX),
    make=layout,
    read_name=_by_date,
    remark=f"versions are dates, or builds from b{_NEW_BUILD} on; DeepSeek-V4's and MiniMax-M3's caches are not known",
)

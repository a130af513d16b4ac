"""llama.cpp: no blocks; whole tensors for the context, padded, with the quantised types of ggml."""

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
from kvcalc.architecture.formats import CACHE_FORMATS, Format, cache_format
from kvcalc.architecture.layout import Allocation, Layout, Record, RecordCount
from kvcalc.architecture.slots import Constant, Slots, Window
from kvcalc.engines.base import (
    ChangedLayout,
    Engine,
    KeptWhole,
    Known,
    Request,
    Rule,
    Version,
    check_format,
    full_heads,
    kept,
)
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
            says="K alone: 576 elements; MiniCPM3 and GGUF files made before MLA support have the expanded cache",
            source=f"ggml-org/llama.cpp PR 19067 (2026-01-24); {_CACHE}:231; src/models/minicpm3.cpp:40",
        ),
    ),
)
PADDING = Rule(
    name="context",
    history=(
        Known(
            since="2025-04-15",
            value=32,
            says="padded to 32 tokens, with flash attention or a quantised cache to 256 (--block-size 256)",
            source="llama-cpp-python 0.3.9 src/llama-kv-cache.cpp:20; 0.3.16 src/llama-kv-cache-unified.cpp:2407",
        ),
        Known(
            since="2025-08-30",
            value=256,
            says="flash attention where the device has it, so padded to 256 tokens; to 32 without (--block-size 32)",
            source="ggml-org/llama.cpp PR 15434; WasmEdge PR 4343 (b6343)",
        ),
        Known(
            since="2025-11-08",
            value=256,
            says="padded to 256 tokens",
            source="ggml-org/llama.cpp PR 17046; llama-cpp-python 0.3.36 vendor/llama.cpp/src/llama-context.cpp:290",
        ),
    ),
)
WINDOWS = Rule(
    name="windows",
    history=(
        Known(
            since="2025-04-15",
            says="kept whole",
            source="llama-cpp-python 0.3.9 vendor/llama.cpp/src/llama-model.cpp:12873",
        ),
        Known(
            since="2025-06-01",
            value=512,
            says="min(context, window + n_ubatch of 512), padded; whole if every layer has a window (Mistral, Phi-3)",
            source="PR 13833; llama-cpp-python 0.3.36 src/llama-kv-cache-iswa.cpp:73, models/phi3.cpp:16, llama.cpp",
        ),
    ),
)
WINDOW_TYPE = Rule(
    name="types of windows",
    history=(
        Known(since="2025-04-15", says="as all else", source="llama-cpp-python 0.3.17 src/llama-kv-cache-iswa.cpp:62"),
        Known(
            since="2026-04-02",
            value="fp16",
            says="f16, whatever the type of the others",
            source="ggml-org/llama.cpp PR 21277; llama-cpp-python 0.3.20 src/llama-kv-cache-iswa.cpp:71",
        ),
        Known(
            since="2026-04-04",
            says="as all else",
            source="ggml-org/llama.cpp PR 21332; llama-cpp-python 0.3.36 src/llama-kv-cache-iswa.cpp:103",
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
            value=False,
            says="none: sparse attention is computed as dense",
            source="llama-cpp-python 0.3.17 src/llama-model.cpp:8437 (GLM-5)",
        ),
        Known(
            since="2026-06-01",
            value=True,
            says="one key a token in the K type",
            source="PR 23346; llama-cpp-python 0.3.24 (2026-06-01), 0.3.36 src/llama-kv-cache-dsa.cpp:38-53",
        ),
    ),
)

_UBATCH_TOKENS = 512
_FLASH_PADDING = 256
_NEW_BUILD = 9318
"""A build that is known to be after the change of MLA's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Streams:
    """How the sequences of a context share its tensors.

    streams        one for each sequence; with --kv-unified one for all, in which each has its windows
    whole_windows  windows are kept as whole contexts (--swa-full)
    rollbacks      earlier states that are kept of each sequence (speculative decoding)
    """

    sequences: int = 1
    streams: int = 1
    whole_windows: bool = False
    rollbacks: int = 0


ONE_SEQUENCE = Streams()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """Tensors of whole contexts, padded."""

    records: tuple[RecordCount, ...]
    padding_tokens: int
    ubatch_tokens: int
    fixed_bytes: int = 0

    def cells(self, slots: Slots, context_tokens: int, streams: Streams = ONE_SEQUENCE) -> int:
        """Cells of a stream of so many tokens."""
        padded = self._padded(context_tokens)
        if isinstance(slots, Window) and not streams.whole_windows:
            windows = slots.tokens * (streams.sequences // streams.streams)
            return self._padded(min(padded, windows + self.ubatch_tokens))
        return padded

    def _padded(self, tokens: int) -> int:
        return -(-tokens // self.padding_tokens) * self.padding_tokens

    def record_bytes(self, record: Record, context_tokens: int, streams: Streams = ONE_SEQUENCE) -> int:
        """Bytes of one layer in all streams of so many tokens."""
        if record.is_state or isinstance(record.slots, Constant):
            return streams.sequences * (1 + streams.rollbacks) * record.stored_bytes(context_tokens)
        if not record.slots.stored(context_tokens):
            return 0
        return streams.streams * self.cells(record.slots, context_tokens, streams) * record.bytes_per_slot

    def sequence_bytes(self, context_tokens: int) -> int:
        return sum(item.count * self.record_bytes(item.record, context_tokens) for item in self.records)


@dataclass(frozen=True, kw_only=True)
class LlamaCppLayout(ChangedLayout):
    """llama.cpp's cache. window_format is that of the windows where it is not that of all else."""

    ubatch_tokens: int
    window_format: Format | None = None

    def records(self, attention: Attention, *, shards: int) -> tuple[Record, ...]:
        found = super().records(attention, shards=shards)
        format = self.window_format
        if format is None:
            return found
        return tuple(
            replace(each, format=format, bytes_per_slot=format.record_bytes(each.components, shards=shards))
            if isinstance(each.slots, Window)
            else each
            for each in found
        )

    def allocation(self, records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], dcp: int) -> Allocation:
        return Cells(records=records, padding_tokens=self.block_tokens, ubatch_tokens=self.ubatch_tokens)


def with_value_format(layout: Layout, name: str) -> Layout:
    """The layout with V in a type of its own (--cache-type-v)."""
    if not isinstance(layout, LlamaCppLayout) or layout.precision.kv.name == name:
        return layout
    kv = layout.precision.kv
    mixed = replace(kv, name=f"{kv.name}, V {name}", by_role={Role.VALUE: cache_format(name).packing})
    return replace(layout, precision=replace(layout.precision, kv=mixed))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """What is kept of an attention: MLA's latent again as V, or expanded; index keys; windows as whole contexts."""

    values: bool
    expanded: bool
    index: bool
    whole: bool

    def __call__(self, attention: Attention, components: tuple[Component, ...]) -> tuple[Component, ...]:
        base = attention.base if isinstance(attention, SelectedAttention) else attention
        if isinstance(attention, CompressedAttention) or (base is not attention and isinstance(base, GroupedAttention)):
            raise UsageError(
                f"llama.cpp's cache for {attention.label} is not known to kvcalc",
                hint="--engine generic gives its stored bytes",
            )
        if not self.index:
            components = tuple(each for each in components if each.role is not Role.INDEX)
        if self.whole:
            components = tuple(
                replace(each, slots=KeptWhole(each.slots)) if isinstance(each.slots, Window) else each
                for each in components
            )
        if not isinstance(base, LatentAttention) or not (self.values or self.expanded):
            return components
        latent = next(component for component in components if component.role is Role.LATENT)
        if self.expanded:
            return full_heads(base, latent)
        copy = replace(latent, name="latent again as V", role=Role.VALUE, record="value", flop_per_pair=0)
        return (*components, copy)


def layout(request: Request, version: Version) -> LlamaCppLayout:
    """llama.cpp's layout of a date or build."""
    name, model = ENGINE.label(version), request.model
    check_format(name, request, TYPES.at(version))
    if request.parallelism.tp > 1:
        raise UsageError("llama.cpp splits layers over GPUs, not heads", hint="use --pp instead of --tp")
    precision = replace(
        request.precision,
        index=request.precision.kv if request.index_dtype is None else request.precision.index,
        state=CACHE_FORMATS["fp32"] if request.state_dtype is None else request.precision.state,
        convolution=CACHE_FORMATS["fp32"],
    )
    quantised = precision.kv.packing.elements > 1
    windows, window_type = WINDOWS.at(version), WINDOW_TYPE.at(version)
    return LlamaCppLayout(
        name=name,
        precision=precision,
        block_tokens=request.block_tokens or (_FLASH_PADDING if quantised else PADDING.at(version)),
        ubatch_tokens=request.max_batched_tokens or windows or _UBATCH_TOKENS,
        window_format=CACHE_FORMATS[window_type] if window_type else None,
        notes=("every sequence has a stream of its own: --kv-unified shares the cells instead",),
        change=_Kept(
            values=MLA.at(version),
            expanded=model.name.startswith("minicpm3"),
            index=INDEX.at(version),
            whole=windows is None or all(isinstance(each.slots, Window) for each in kept(model)),
        ),
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
    covers=(("2025-04-15", "2025-05-19"), ("2025-06-01", "2025-10-27"), ("2025-11-08", LATEST)),
    rules=(MLA, PADDING, WINDOWS, WINDOW_TYPE, STATES, TYPES, INDEX),
    make=layout,
    read_name=_by_date,
    remark=f"versions are dates, or builds from b{_NEW_BUILD} on; DeepSeek-V4's and MiniMax-M3's caches are not known",
)

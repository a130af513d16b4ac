"""SGLang: pools of tokens instead of blocks; windows in a pool of their own whose size is a share of the full one's."""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from kvcalc.architecture.attention import (
    Attention,
    CompressedAttention,
    LatentAttention,
    Role,
    SelectedAttention,
)
from kvcalc.architecture.formats import CACHE_FORMATS
from kvcalc.architecture.layout import Allocation, Precision, Record, RecordCount, tokens_on_rank
from kvcalc.architecture.slots import Window
from kvcalc.engines.base import (
    ChangedLayout,
    Engine,
    Known,
    Request,
    Rule,
    Version,
    attentions,
    check_format,
    compare,
    kept,
)
from kvcalc.errors import UsageError

_POOLS = "sglang/srt/model_executor/pool_configurator.py"
_MEMORY = "sglang/srt/mem_cache/memory_pool.py"

PAGE = Rule(
    name="page",
    history=(
        Known(
            since="0.5.6",
            value=(1, 64),
            says="1 token, 64 for sparse MLA; FlashMLA, TensorRT-LLM and other backends force 32 to 128 (--block-size)",
            source="0.5.3 sglang/srt/server_args.py:820-939; 0.5.23 sglang/srt/arg_groups/overrides.py:1146-1363",
        ),
    ),
)

CELL = Rule(
    name="bytes a token",
    history=(
        Known(
            since="0.5.6",
            says="max(1, KV heads // tp) x (K + V width); MLA: latent and rope whole on every rank, and index keys",
            source=f"0.5.6 sglang/srt/model_executor/model_runner.py:1405-1415; 0.5.23 {_POOLS}:340-520",
        ),
    ),
)

SPARSE_FP8 = Rule(
    name="fp8 of sparse MLA",
    history=(
        Known(
            since="0.5.6",
            value=True,
            says="a 656-byte record, and 132 bytes of index key; 576 plain bytes for TensorRT-LLM and tilelang kernels",
            source=f"0.5.3 {_MEMORY}:1052-1058; 0.5.23 sglang/srt/mem_cache/kv_cache_configurator.py:3412-3480",
        ),
    ),
)

EXTRA_PAGE = Rule(
    name="rows of the pool",
    history=(
        Known(
            since="0.5.6",
            value=1,
            says="the tokens that fit, and one page for padded tokens",
            source=f"0.5.3 {_MEMORY}:462; 0.5.23 lines 4842-4856",
        ),
    ),
)

WINDOW_POOL = Rule(
    name="window pool",
    history=(
        Known(
            since="0.5.6",
            value=Fraction(4, 5),
            says="0.8 tokens for windows for each token of full attention (swa_full_tokens_ratio)",
            source=f"0.5.3 sglang/srt/server_args.py:199; 0.5.12 line 435; 0.5.23 {_POOLS}:786-900",
        ),
    ),
)

STATES = Rule(
    name="recurrent states",
    history=(
        Known(
            since="0.5.6",
            says="one slot a running request, in a pool sized by --max-mamba-cache-size; the extra slots of prefix "
            "caching are not counted here",
            source="0.5.23 sglang/srt/mem_cache/kv_cache_configurator.py:3040-3400",
        ),
    ),
)

DCP = Rule(
    name="decode context parallelism",
    history=(
        Known(
            since="0.5.23",
            says="KV heads over tp / dcp; index keys are whole on every dcp rank",
            source="0.5.23 sglang/srt/configs/model_config.py:1700-1711, " + _POOLS + ":402-410",
        ),
    ),
)

FORMATS = Rule(
    name="cache formats",
    history=(
        Known(
            since="0.5.6",
            value=frozenset({"bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "nvfp4"}),
            says="16 bits, fp8, or fp4 with a byte of scale for 16",
            source="0.5.6 sglang/srt/model_executor/model_runner.py:1392-1430",
        ),
        Known(
            since="0.5.23",
            value=frozenset({"bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "nvfp4", "mxfp8"}),
            says="and mxfp8",
            source=f"0.5.23 {_POOLS}:525-532",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPools:
    """The pools of one rank.

    A sequence of T tokens takes T rows of the full pool, and of the window pool, which has `window_share` rows for each
    full one, what its windows hold: the scarcer of the two decides.
    """

    records: tuple[RecordCount, ...]
    page_tokens: int
    window_share: Fraction
    dcp: int

    @property
    def _full(self) -> tuple[RecordCount, ...]:
        return tuple(item for item in self.records if item.record.growth_bytes)

    @property
    def _windows(self) -> tuple[RecordCount, ...]:
        return tuple(item for item in self.records if isinstance(item.record.slots, Window))

    @property
    def is_hybrid(self) -> bool:
        return bool(self._full and self._windows)

    @property
    def cell_bytes(self) -> Fraction:
        """Bytes of one token of capacity; index keys are not shared out over dcp ranks."""
        full = sum((self._growth(item) for item in self._full), Fraction(0))
        windows = sum(item.count * item.record.bytes_per_slot for item in self._windows)
        return full + (self.window_share * windows if self.is_hybrid else windows)

    def _growth(self, item: RecordCount) -> Fraction:
        times = self.dcp if item.record.components[0].role is Role.INDEX else 1
        return item.count * item.record.growth_bytes * times

    @property
    def fixed_bytes(self) -> int:
        rows = sum((self._growth(item) for item in self._full), Fraction(0))
        rows += sum(item.count * item.record.bytes_per_slot for item in self._windows)
        return ceil(rows * self.page_tokens)

    def tokens(self, context_tokens: int) -> int:
        """Tokens of capacity that a sequence uses up."""
        needed = ceil(context_tokens / self.dcp)
        if self._windows:
            held = max(item.record.slots.stored(context_tokens) for item in self._windows)
            needed = max(needed if self._full else 0, ceil(held / self.window_share) if self.is_hybrid else held)
        return -(-needed // self.page_tokens) * self.page_tokens

    def sequence_bytes(self, context_tokens: int) -> int:
        states = sum(
            item.count * item.record.allocated_bytes(tokens_on_rank(item.record, context_tokens, self.dcp))
            for item in self.records
            if item.record.is_state
        )
        return states + ceil(self.tokens(context_tokens) * self.cell_bytes)

    def capacity_tokens(self, available_bytes: int) -> int:
        """max_total_num_tokens for so many bytes."""
        return int(available_bytes // self.cell_bytes) // self.page_tokens * self.page_tokens

    def pool_bytes(self, tokens: int) -> int:
        """What the tensors for so many tokens take: the size that the log prints."""
        return ceil(tokens * self.cell_bytes) + self.fixed_bytes


@dataclass(frozen=True, kw_only=True)
class SglangLayout(ChangedLayout):
    """SGLang's cache."""

    window_share: Fraction

    def records(self, attention: Attention, *, shards: int) -> tuple[Record, ...]:
        if isinstance(attention, CompressedAttention):
            raise UsageError(
                f"SGLang's pools for compressed attention ({attention.label}) are not known to kvcalc",
                hint="--engine generic gives its stored bytes",
            )
        return super().records(attention, shards=shards)

    def pool(self, records: tuple[RecordCount, ...], *, dcp: int) -> TokenPools:
        return TokenPools(records=records, page_tokens=self.block_tokens, window_share=self.window_share, dcp=dcp)

    def allocation(self, records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], dcp: int) -> Allocation:
        return self.pool(records, dcp=dcp)


def layout(request: Request, version: Version) -> SglangLayout:
    """SGLang's layout in a version."""
    name, precision = ENGINE.label(version), request.precision
    check_format(name, request, FORMATS.at(version))
    sparse = any(
        isinstance(each, SelectedAttention) and isinstance(each.base, LatentAttention)
        for each in attentions(request.model)
    )
    if request.parallelism.dcp > 1 and compare(version, (0, 5, 23)) < 0:
        raise UsageError(f"how {name} shares a sequence over dcp ranks is not known", hint="name 0.5.23")
    if sparse and precision.kv.name == "fp8_e4m3":
        precision = _with_ds_mla(precision)
    plain, sparse_page = PAGE.at(version)
    notes = []
    if any(component.role.is_state for component in kept(request.model)):
        notes.append("one state slot a sequence; how SGLang splits memory between states and tokens is not modelled")
    if request.block_tokens is None:
        notes.append("the page is the default; an attention backend may force a larger one (--block-size)")
    return SglangLayout(
        name=name,
        precision=precision,
        block_tokens=request.block_tokens or (sparse_page if sparse else plain),
        notes=tuple(notes),
        window_share=WINDOW_POOL.at(version),
    )


def _with_ds_mla(precision: Precision) -> Precision:
    return replace(precision, kv=CACHE_FORMATS["fp8_ds_mla"])


ENGINE = Engine(
    name="sglang",
    title="SGLang",
    covers=(("0.5.6", "0.5.23"),),
    rules=(PAGE, CELL, SPARSE_FP8, EXTRA_PAGE, WINDOW_POOL, STATES, DCP, FORMATS),
    make=layout,
    remark="read at 0.5.6, 0.5.9, 0.5.12, 0.5.16, 0.5.20 and 0.5.23; mem_fraction_static follows from the run's "
    "settings: there is no constant default; DeepSeek-V4's pools are not known",
)

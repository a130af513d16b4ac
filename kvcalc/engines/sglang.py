"""SGLang: pools of tokens instead of blocks; windows in a pool of their own whose size is a share of the full one's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from kvcalc.architecture.attention import (
    Attention,
    Component,
    CompressedAttention,
    LatentAttention,
    Role,
    SelectedAttention,
)
from kvcalc.architecture.formats import CACHE_FORMATS
from kvcalc.architecture.layout import Allocation, Record, RecordCount, tokens_on_rank
from kvcalc.architecture.model import Model
from kvcalc.architecture.slots import Constant, Window
from kvcalc.engines.absorbed import SIXTEEN_BIT_BYTES, absorbed_elements
from kvcalc.engines.base import (
    ChangedLayout,
    Engine,
    KeptWhole,
    Request,
    Version,
    attentions,
    check_format,
    compare,
    kept,
)
from kvcalc.engines.sglang_rules import (
    FORMATS,
    INDEX_KEYS,
    PAGE,
    PIPELINE,
    RULES,
    SPARSE_FP8,
    WINDOW_POOL,
    WINDOW_SHARE,
)
from kvcalc.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPools:
    """The pools of one rank.

    A sequence of T tokens takes T rows of the full pool, and of the window pool, which has `window_share` rows for each
    full one, what its windows hold: the scarcer of the two decides.

    budget        the records as SGLang counts them to find the tokens that fit
    splits_rows   whether it counts rows of all layers first and shares them out among the two pools then
    whole_first   whether the window pool's share is one of the full pool's whole pages
    """

    records: tuple[RecordCount, ...]
    budget: tuple[RecordCount, ...]
    page_tokens: int
    window_share: Fraction
    splits_rows: bool
    whole_first: bool
    dcp: int

    @property
    def _windows(self) -> tuple[RecordCount, ...]:
        return tuple(item for item in self.records if isinstance(item.record.slots, Window))

    @property
    def is_hybrid(self) -> bool:
        return bool(self._windows and any(item.record.growth_bytes for item in self.records))

    @property
    def cell_bytes(self) -> Fraction:
        """Bytes of one token of capacity; index keys are not shared out over dcp ranks."""
        full, windows = self._row_bytes(self.records)
        return full + (self.window_share if self.is_hybrid else 1) * windows

    def _row_bytes(self, records: tuple[RecordCount, ...]) -> tuple[Fraction, int]:
        """Bytes of a row of the full pool, and of one of the window pool."""
        full, windows = Fraction(0), 0
        for item in records:
            times = self.dcp if item.record.components[0].role is Role.INDEX else 1
            full += item.count * item.record.growth_bytes * times
            windows += item.count * item.record.bytes_per_slot if isinstance(item.record.slots, Window) else 0
        return full, windows

    @property
    def fixed_bytes(self) -> int:
        """A page more in each pool."""
        full, windows = self._row_bytes(self.records)
        return ceil((full + windows) * self.page_tokens)

    def tokens(self, context_tokens: int) -> int:
        """Tokens of capacity that a sequence uses up."""
        needed = ceil(context_tokens / self.dcp)
        if self._windows:
            held = max(item.record.slots.stored(context_tokens) for item in self._windows)
            needed = max(needed, ceil(held / self.window_share)) if self.is_hybrid else held
        return self._whole_pages(needed + self.page_tokens - 1)

    def sequence_bytes(self, context_tokens: int) -> int:
        states = sum(
            item.count * item.record.allocated_bytes(tokens_on_rank(item.record, context_tokens, self.dcp))
            for item in self.records
            if item.record.is_state
        )
        return states + ceil(self.tokens(context_tokens) * self.cell_bytes)

    def _whole_pages(self, tokens: Fraction | float) -> int:
        return int(tokens) // self.page_tokens * self.page_tokens

    def rows(self, available_bytes: int) -> tuple[int, int]:
        """max_total_num_tokens for so many bytes, and the rows of the window pool; shares in floats, as in SGLang."""
        full, windows = self._row_bytes(self.budget)
        if not full:
            tokens = self._whole_pages(Fraction(available_bytes, windows or 1))
            return tokens, tokens
        if not windows:
            return self._whole_pages(available_bytes / full), 0
        cell = float(full) + float(self.window_share) * windows
        tokens = int(available_bytes // cell)
        if self.splits_rows:
            of_all_layers = self._whole_pages(available_bytes / (full + windows))
            tokens = int(int(of_all_layers * (full + windows)) / cell)
        fits = self._whole_pages(tokens)
        return fits, self.window_rows(fits if self.whole_first else tokens)

    def window_rows(self, tokens: int) -> int:
        """Rows of the window pool beside so many of the full one."""
        return self._whole_pages(tokens * self.window_share) if self.is_hybrid else 0

    def tensor_bytes(self, tokens: int, window_rows: int) -> int:
        """What tensors of so many rows, and the page more, take."""
        full, windows = self._row_bytes(self.records)
        return ceil(full * tokens) + windows * window_rows + self.fixed_bytes

    def capacity_tokens(self, tensor_bytes: int) -> int:
        """Tokens in tensors of so many bytes, their last page aside."""
        return self._whole_pages(tensor_bytes / self.cell_bytes)

    def pool_bytes(self, tokens: int) -> int:
        """What the tensors for so many tokens take: the size that the log prints."""
        return self.tensor_bytes(tokens, self.window_rows(tokens) if self.is_hybrid else tokens)


@dataclass(frozen=True, kw_only=True)
class SglangLayout(ChangedLayout):
    """SGLang's cache.

    counts_plain  whether the tokens that fit are counted without the scales of sparse MLA's records
    whole_stages  of a recurrent model: whether each pipeline stage has the states of all layers, has their tokens' rows
                  too, and counts them as well
    """

    window_share: Fraction
    splits_rows: bool
    whole_first: bool
    counts_plain: bool
    whole_stages: tuple[bool, bool, bool]

    def records(self, attention: Attention, *, shards: int) -> tuple[Record, ...]:
        if isinstance(attention, CompressedAttention):
            raise UsageError(
                f"SGLang's pools for compressed attention ({attention.label}) are not known to kvcalc",
                hint="--engine generic gives its stored bytes",
            )
        return super().records(attention, shards=shards)

    def copied_weight_bytes(self, attention: Attention, *, weights: str, tp: int) -> int:
        """w_kc and w_vc, whatever kv_b_proj is stored as: in fp8 where that has one scale, else in 16 bits.

        Source: 0.5.6 srt/models/deepseek_v2.py post_load_weights, 0.5.23 deepseek_weight_loader.py.
        """
        return (1 if weights == "fp8" else SIXTEEN_BIT_BYTES) * sum(absorbed_elements(attention, tp=tp))

    def pool(self, records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], dcp: int) -> TokenPools:
        budget = records
        if any(item.record.is_state for item in whole):
            states, rows, counted = (whole if of_all else records for of_all in self.whole_stages)
            records = (*_tokens_of(rows), *(item for item in states if item.record.is_state))
            budget = _tokens_of(counted)
        return TokenPools(
            records=records,
            budget=tuple(map(_without_scales, budget)) if self.counts_plain else budget,
            page_tokens=self.block_tokens,
            window_share=self.window_share,
            splits_rows=self.splits_rows,
            whole_first=self.whole_first,
            dcp=dcp,
        )

    def allocation(self, records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], dcp: int) -> Allocation:
        return self.pool(records, whole=whole, dcp=dcp)


def _tokens_of(records: tuple[RecordCount, ...]) -> tuple[RecordCount, ...]:
    return tuple(item for item in records if not item.record.is_state)


def _without_scales(item: RecordCount) -> RecordCount:
    """A record of sparse MLA at a byte an element."""
    if item.record.format.name != "fp8_ds_mla":
        return item
    size = sum(component.elements_per_slot for component in item.record.components)
    return replace(item, record=replace(item.record, bytes_per_slot=size))


def layout(request: Request, version: Version) -> SglangLayout:
    """SGLang's layout in a version."""
    name, model, precision = ENGINE.label(version), request.model, request.precision
    check_format(name, request, FORMATS.at(version))
    kinds = list(attentions(model))
    sparse = any(isinstance(each, SelectedAttention) and isinstance(each.base, LatentAttention) for each in kinds)
    if request.parallelism.dcp > 1 and compare(version, (0, 5, 23)) < 0:
        raise UsageError(f"how {name} shares a sequence over dcp ranks is not known", hint="name 0.5.23")
    has_pool = model.name.lower().startswith(WINDOW_POOL.at(version))
    states = any(component.role.is_state for component in kept(model))
    windows = any(isinstance(component.slots, Window) for component in kept(model))
    _check_pool(name, version, precision.kv.name, kinds, states=states, windows=windows and has_pool)
    if request.parallelism.dcp > 1 and ((windows and has_pool) or any(map(_selects_heads, kinds))):
        raise UsageError(f"how {name} shares this model's pools over dcp ranks is not known", hint="leave --dcp at 1")
    if sparse and precision.kv.name == "fp8_e4m3":
        precision = replace(precision, kv=CACHE_FORMATS["fp8_ds_mla"])
    if states and request.state_dtype is None and "state" not in model.native_formats:
        precision = replace(precision, state=CACHE_FORMATS["fp32"])
    plain, sparse_page = PAGE.at(version)
    share, splits, whole_first = WINDOW_SHARE.at(version)
    return SglangLayout(
        name=name,
        precision=precision,
        block_tokens=request.block_tokens or (sparse_page if sparse else plain),
        notes=tuple(_notes(request, version, precision.kv.name, kinds, whole_windows=windows and not has_pool)),
        change=_changes(model, whole_windows=not has_pool, every_index=INDEX_KEYS.at(version)),
        window_share=share,
        splits_rows=splits,
        whole_first=whole_first,
        counts_plain=SPARSE_FP8.at(version),
        whole_stages=PIPELINE.at(version),
    )


def _notes(
    request: Request, version: Version, format: str, kinds: list[Attention], *, whole_windows: bool
) -> Iterator[str]:
    if any(component.role.is_state for component in kept(request.model)):
        yield "one state slot a sequence; how SGLang splits memory between states and tokens is not modelled"
    if whole_windows:
        yield f"{ENGINE.label(version)} has no window pool for this model: layers with a window keep every token"
    if format == "nvfp4" and compare(version, (0, 5, 16)) >= 0:
        yield "some attention backends keep a layer's keys and values beside, taken out of fp4: not counted here"
    if any(map(_selects_heads, kinds)) and "fp8" in format and compare(version, (0, 5, 17)) >= 0:
        yield "index keys are fp8 too with TensorRT-LLM kernels on Blackwell, and on Hopper from 0.5.23 (--index-dtype)"
    if request.block_tokens is None:
        yield "the page is the default; an attention backend may force a larger one (--block-size)"


def _selects_heads(attention: Attention) -> bool:
    return isinstance(attention, SelectedAttention) and not isinstance(attention.base, LatentAttention)


def _changes(model: Model, *, whole_windows: bool, every_index: bool) -> Callable[..., tuple[Component, ...]]:
    """What the pools keep of an attention: windows whole, and the index keys of layers that never read them."""
    indexers = [each.indexer for each in attentions(model) if isinstance(each, SelectedAttention) and each.indexer]

    def change(attention: Attention, components: tuple[Component, ...]) -> tuple[Component, ...]:
        if whole_windows:
            components = tuple(
                replace(each, slots=KeptWhole(each.slots)) if isinstance(each.slots, Window) else each
                for each in components
            )
        if every_index and indexers and isinstance(attention, SelectedAttention) and attention.indexer is None:
            unread = replace(indexers[0].component(), slots=KeptWhole(Constant(0)), flop_per_pair=0)
            components = (*components, unread)
        return components

    return change


def _check_pool(
    name: str, version: Version, format: str, kinds: list[Attention], *, states: bool, windows: bool
) -> None:
    """Raise UsageError where SGLang has no pool of the format for the model's attention."""
    selects = any(isinstance(each, SelectedAttention) for each in kinds)
    latent = any(isinstance(each, LatentAttention) for each in kinds)
    lacks = {
        "mxfp8": selects or latent,
        "nvfp4": selects or windows or (states and (latent or compare(version, (0, 5, 16)) < 0)),
    }
    if lacks.get(format):
        raise UsageError(f"{name} has no {format} pool for this model's attention", hint="--kv-dtype fp8 or bf16")


ENGINE = Engine(
    name="sglang",
    title="SGLang",
    covers=(("0.5.6", "0.5.23"),),
    rules=RULES,
    make=layout,
    remark="each release from 0.5.6 to 0.5.23 was run by a judge; mem_fraction_static follows from the run's settings: "
    "there is no constant default; DeepSeek-V4's pools are not known",
)

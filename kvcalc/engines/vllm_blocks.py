"""vLLM's block pool: layers become pages, pages of one kind become groups, and all groups draw blocks from one pool.

    page        what one layer keeps for one block of tokens, or for one recurrent state
    group       layers that share a block table; a block holds a page of each
    block       page bytes x layers of a group; groups have equal size, so the last of a kind may hold dead layers
    request     the sum over the groups of the blocks that a sequence takes

(vLLM v1/core/kv_cache_utils.py, from 0.33 kv_cache_planning.py: _get_kv_cache_groups_uniform_page_size.)
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from kvcalc.architecture.attention import Role
from kvcalc.architecture.layout import RecordCount
from kvcalc.architecture.slots import Borrowed, EveryNTokens, Window
from kvcalc.errors import UsageError

FULL, WINDOW, CHUNK, STATE = "full", "window", "chunk", "state"
REFUSE, BLOCKS, PAD = "refuse", "blocks", "pad"


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What a layer asks of the pool (vLLM: a KVCacheSpec).

    kind          full, window, chunk or state
    page_bytes    bytes of one block of the layer
    block_tokens  tokens of a block; of a state, one state
    span_tokens   of a window or chunk
    latent        MLA latents and index keys, whose pages can't be padded
    """

    kind: str
    page_bytes: int
    block_tokens: int
    span_tokens: int = 0
    latent: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Layers of one kind of page: how many groups they make."""

    page: Page
    layers: int
    groups: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRules:
    """The rules of one version that the pool needs.

    merge_below        the group size is the most frequent kind's layer count where that is below this times the
                       rarest's; else, and with None, it is the rarest's
    in_flight_tokens   tokens that a window may hold beyond itself while steps are under way
    state_blocks       blocks of one recurrent state a sequence, copies for prefix caching and speculation included
    state_every_tokens a state is kept every so many tokens besides; 0: it is not
    unequal_pages      what becomes of pages of different sizes: refuse, blocks (larger ones where that is even), pad
    windows_are_full   windows are kept for every token (the engine before V1)
    null_block         the pool keeps one block for itself
    """

    merge_below: Fraction | None
    in_flight_tokens: int
    state_blocks: int
    state_every_tokens: int = 0
    unequal_pages: str = REFUSE
    windows_are_full: bool = False
    null_block: bool = True


def pages(records: Iterable[RecordCount], *, block_tokens: int) -> Counter[Page]:
    """The pages of a rank's layers with how many layers have each. States of one attention share a page."""
    found: Counter[Page] = Counter()
    states: dict[int, tuple[int, int]] = {}
    for item in records:
        slots, record = item.record.slots, item.record
        if record.is_state:
            count, size = states.get(id(item.attention), (item.count, 0))
            states[id(item.attention)] = (count, size + record.stored_bytes(1))
            continue
        if isinstance(slots, Borrowed):
            continue
        if isinstance(slots, EveryNTokens) or slots.per_token not in (0, 1):
            raise UsageError(
                f"vLLM's blocks for {item.attention.label} are not known to kvcalc",
                hint="--engine generic gives its stored bytes",
            )
        kind, span = FULL, 0
        if isinstance(slots, Window):
            kind, span = (CHUNK if getattr(item.attention, "chunk_tokens", None) else WINDOW), slots.tokens
        page = Page(
            kind=kind,
            page_bytes=block_tokens * record.bytes_per_slot,
            block_tokens=block_tokens,
            span_tokens=span,
            latent=record.components[0].role in (Role.LATENT, Role.INDEX),
        )
        found[page] += item.count
    for count, size in states.values():
        found[Page(kind=STATE, page_bytes=size, block_tokens=0)] += count
    return found


def attention_token_bytes(records: Iterable[RecordCount]) -> int:
    """Bytes of one token in one attention layer: what a state's page is measured in."""
    sizes = [item.record.bytes_per_slot for item in records if not item.record.is_state and item.record.growth_bytes]
    return max(sizes, default=0)


def state_page_bytes(records: Iterable[RecordCount]) -> int:
    """The largest state of one layer; 0 where there is none."""
    sizes = (page.page_bytes for page in pages(records, block_tokens=1) if page.kind == STATE)
    return max(sizes, default=0)


def raised_block(records: tuple[RecordCount, ...], *, block_tokens: int, alignment: int) -> int:
    """Tokens of an attention block once its page is at least as large as a recurrent state, in whole `alignment`s.

    (vLLM model_executor/models/config.py to 0.19, platforms/interface.py from 0.20: _align_hybrid_block_size.)
    """
    state, token = state_page_bytes(records), attention_token_bytes(records)
    if not state or not token:
        return block_tokens
    return max(block_tokens, alignment * ceil(Fraction(state, alignment * token)))


def equal_pages(found: Iterable[Page], *, unequal: str) -> dict[Page, Page]:
    """Each page as one of the size that all get: smaller ones have larger blocks, or padding where that can't be even.

    A state's page always is padded. (vLLM unify_kv_cache_spec_page_size.)
    """
    largest = max(page.page_bytes for page in found)
    equal = {}
    for page in found:
        times, rest = divmod(largest, page.page_bytes)
        even = unequal != REFUSE if times > 1 and not rest else unequal == PAD and not page.latent if rest else True
        if page.kind != STATE and not even:
            raise UsageError("vLLM can't give these layers pages of one size in this version, and refuses the model")
        more = times if not rest and page.kind != STATE else 1
        equal[page] = replace(page, page_bytes=largest, block_tokens=page.block_tokens * more)
    return equal


def is_one_type(found: Counter[Page]) -> bool:
    """Whether all layers need the same blocks, so that one group holds them whatever their widths."""
    kinds = {(page.kind, page.span_tokens, page.block_tokens) for page in found}
    return len(kinds) == 1


def grouped(found: Counter[Page], *, merge_below: Fraction | None) -> tuple[int, tuple[Group, ...]]:
    """The group size and the groups of pages of one size."""
    smallest, largest = min(found.values()), max(found.values())
    size = largest if merge_below is not None and largest < smallest * merge_below else smallest
    return size, tuple(Group(page=page, layers=count, groups=-(-count // size)) for page, count in found.items())


def page_blocks(page: Page, context_tokens: int, rules: PoolRules, *, dcp: int = 1) -> int:
    """Blocks that a sequence takes in one group of a page, as vLLM reserves them."""
    if page.kind == STATE:
        kept = -(-context_tokens // rules.state_every_tokens) if rules.state_every_tokens else 0
        return kept + rules.state_blocks
    if page.kind == FULL:
        return ceil(ceil(context_tokens / dcp) / page.block_tokens)
    if page.kind == CHUNK:
        return -(-min(page.span_tokens + rules.in_flight_tokens, context_tokens) // page.block_tokens)
    held = min(page.span_tokens - 1 + rules.in_flight_tokens, context_tokens)
    return -(-held // page.block_tokens) + 1  # a window may start inside a block


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPool:
    """The pool of one rank: what a block takes there and how many blocks a sequence does.

    block_bytes   bytes of one block in all layers of the rank that share it
    groups        all groups of the model, with the layers of the whole model
    dcp           ranks that share a sequence's tokens
    """

    block_bytes: int
    group_size: int
    groups: tuple[Group, ...]
    rules: PoolRules
    dcp: int = 1

    @property
    def fixed_bytes(self) -> int:
        return self.block_bytes if self.rules.null_block else 0

    @property
    def group_count(self) -> int:
        return sum(group.groups for group in self.groups)

    @property
    def dead_layers(self) -> int:
        return sum(group.groups * self.group_size - group.layers for group in self.groups)

    @property
    def min_block_tokens(self) -> int:
        return min(group.page.block_tokens for group in self.groups if group.page.kind != STATE)

    def page_blocks(self, page: Page, context_tokens: int) -> int:
        """Blocks that a sequence takes in one group of this page."""
        return page_blocks(page, context_tokens, self.rules, dcp=self.dcp)

    def sequence_blocks(self, context_tokens: int) -> int:
        return sum(group.groups * self.page_blocks(group.page, context_tokens) for group in self.groups)

    def stated_sequence_blocks(self, context_tokens: int) -> int:
        """Blocks of a sequence as the log counts them."""
        return self.sequence_blocks(context_tokens)

    def sequence_bytes(self, context_tokens: int) -> int:
        return self.sequence_blocks(context_tokens) * self.block_bytes

    def blocks(self, available_bytes: int) -> int:
        return available_bytes // self.block_bytes

    def stated_tokens(self, blocks: int, *, max_model_len: int, by_request: bool) -> int:
        """The number in "GPU KV cache size: N tokens".

        by_request  from 0.20.1: requests of max_model_len that fit, times its tokens; before: blocks over groups
                    times the smallest block, as if every layer were full
        """
        if by_request:
            return int(blocks / self.sequence_blocks(max_model_len) * max_model_len)
        return blocks // self.group_count * self.min_block_tokens * self.dcp


def block_pool(
    records: tuple[RecordCount, ...],
    *,
    whole: tuple[RecordCount, ...],
    block_tokens: int,
    dcp: int,
    rules: PoolRules,
) -> BlockPool:
    """The pool for the layers of a rank. Groups are made from the whole model, so that all stages agree on them."""
    here, everywhere = pages(records, block_tokens=block_tokens), pages(whole, block_tokens=block_tokens)
    if rules.windows_are_full:
        here, everywhere = (_all_full(found) for found in (here, everywhere))
    if not everywhere:
        raise UsageError("the model keeps nothing: there is no cache to lay out")
    if is_one_type(everywhere):
        size = sum(everywhere.values())
        first = next(iter(everywhere))
        group = Group(page=first, layers=size, groups=1)
        block_bytes = sum(page.page_bytes * count for page, count in here.items())
        return BlockPool(block_bytes=block_bytes, group_size=size, groups=(group,), rules=rules, dcp=dcp)
    equal = equal_pages(everywhere, unequal=rules.unequal_pages)
    size, groups = grouped(renamed(everywhere, equal), merge_below=rules.merge_below)
    widest = size
    if here != everywhere:  # on a pipeline stage a group holds every n-th of the stage's layers
        split = {group.page: group.groups for group in groups}
        widest = max(-(-count // split[page]) for page, count in renamed(here, equal).items())
    return BlockPool(
        block_bytes=groups[0].page.page_bytes * widest, group_size=size, groups=groups, rules=rules, dcp=dcp
    )


def renamed(found: Counter[Page], names: dict[Page, Page]) -> Counter[Page]:
    renamed: Counter[Page] = Counter()
    for page, count in found.items():
        renamed[names[page]] += count
    return renamed


def _all_full(found: Counter[Page]) -> Counter[Page]:
    full: Counter[Page] = Counter()
    for page, count in found.items():
        kept = replace(page, kind=FULL, span_tokens=0) if page.kind in (WINDOW, CHUNK) else page
        full[kept] += count
    return full

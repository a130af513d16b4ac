"""vLLM's blocks for DeepSeek-V4: pages of several sizes lie packed in one block, and groups lay theirs over each other.

Every thing that a layer keeps has pages of its own. Their block length and size, 576 bytes a unit:

    window            64 tokens x 584 B                       37,440 B    kept as a window of 128 tokens
    compressed        256 tokens, an entry of 584 B for n     37,440 B for n = 4, 1,728 B for n = 128
    index             256 tokens, an entry of 132 B for 4      8,640 B
    compressor state  4 tokens (n = 4), 8 (n = 128), fp32     32,832 B    kept as a window of 8 tokens, 128
    index compressor  4 tokens, fp32                           8,640 B    kept as a window of 8 tokens

Layers whose blocks and windows are alike make a bucket. Buckets whose page sizes have a layer each, over and over, are
cut into groups of about as many repeats. A block belongs to one group at a time and is as large as the largest needs.

(0.33.0 vllm/models/deepseek_v4/attention.py:860-923, compressor.py:142-193, v1/attention/backends/mla/sparse_swa.py:
85-145, v1/core/kv_cache_planning.py:553-640, 914-1035; 0.26.0 vllm/v1/core/kv_cache_utils.py:1259-1340, 1525-1700.)
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from kvcalc.architecture.attention import Component, CompressedAttention, Role
from kvcalc.architecture.layout import RecordCount
from kvcalc.architecture.slots import Window
from kvcalc.engines.base import Known, Rule
from kvcalc.engines.vllm_blocks import FULL, WINDOW, Page, PoolRules, page_blocks, renamed
from kvcalc.errors import UsageError

BLOCK_TOKENS = 256
_WINDOW_BLOCK_TOKENS, _STATE_BLOCK_TOKENS = 64, {4: 4, 128: 8}
_ALIGNMENT_BYTES = 576
TUPLES, SLOTS, GROUPS, REPEATS = "tuples", "slots", "groups", "repeats"

PACKING = Rule(
    name="blocks of compressed attention",
    history=(
        Known(
            since="0.20.0",
            value=TUPLES,
            says="windows' pages padded to those of the compressed entries; a block: a page of each size for every "
            "layer of the longest group",
            source="0.20.0 vllm/v1/core/kv_cache_utils.py:1162, _get_kv_cache_groups_uniform_groups; 0.20.1 "
            "model_executor/layers/deepseek_v4_attention.py:709-716, 1015-1023, deepseek_compressor.py:146-168",
        ),
        Known(
            since="0.23.0",
            value=SLOTS,
            says="as before, but of each size as many pages as one group needs at most",
            source="0.23.0 vllm/v1/core/kv_cache_utils.py:1221; 0.26.0 lines 1259-1340, 1603",
        ),
        Known(
            since="0.27.0",
            value=GROUPS,
            says="pages as they are; a block: the largest group, the others over it",
            source="0.28.0 vllm/v1/core/kv_cache_utils.py:1249, 1623",
        ),
        Known(
            since="0.29.0",
            value=REPEATS,
            says="as before, and entries and index keys count for the cutting only where their layers are as many",
            source="0.29.0 vllm/v1/core/kv_cache_utils.py:1668; 0.33.0 vllm/v1/core/kv_cache_planning.py:914",
        ),
    ),
)


def packed_page(attention: CompressedAttention, component: Component, slot_bytes: int) -> Page:
    """The page of a record. Raises UsageError for a compression whose blocks vLLM does not have."""
    if isinstance(component.slots, Window):
        return _page(WINDOW, _WINDOW_BLOCK_TOKENS, _WINDOW_BLOCK_TOKENS * slot_bytes, component.slots.tokens)
    ratio = attention.compress_ratio
    block = _STATE_BLOCK_TOKENS.get(ratio or 0)
    if ratio is None or block is None:
        raise UsageError(f"vLLM has no blocks for a compression of 1 to {ratio}", hint="it has them for 4 and 128")
    if component.role is Role.COMPRESSOR:
        return _page(WINDOW, block, block * slot_bytes, component.slots.stored(1))
    return _page(FULL, BLOCK_TOKENS, BLOCK_TOKENS // ratio * slot_bytes)


def _page(kind: str, block_tokens: int, page_bytes: int, span_tokens: int = 0) -> Page:
    whole = -(-page_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return Page(kind=kind, page_bytes=whole, block_tokens=block_tokens, span_tokens=span_tokens, latent=True)


def packed_pages(records: Iterable[RecordCount]) -> Counter[Page]:
    """The pages of a rank's layers with how many layers have each."""
    found: Counter[Page] = Counter()
    for item in records:
        assert isinstance(item.attention, CompressedAttention)
        found[packed_page(item.attention, item.record.components[0], item.record.bytes_per_slot)] += item.count
    return found


def repeats(counts: Sequence[int], *, at_least: int) -> int:
    """The number, no smaller than `at_least`, whose multiples the counts are rounded up to with the least padding.

    The largest of several. (vLLM _approximate_gcd.)
    """
    return min(range(at_least, max(counts) + 1), key=lambda size: (sum(-count % size for count in counts), -size))


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedGroup:
    """Layers that share a block table, as pages with how many layers of the rank have each.

    first  a page of the group: all have its blocks and window
    """

    first: Page
    pages: tuple[tuple[Page, int], ...]

    @property
    def page_bytes(self) -> int:
        return sum(page.page_bytes * layers for page, layers in self.pages)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedPool:
    """The pool of one rank, as BlockPool; `packing` says how a block is made, and how the log counts a request."""

    groups: tuple[PackedGroup, ...]
    packing: str
    rules: PoolRules

    dead_layers = 0

    @property
    def block_bytes(self) -> int:
        if self.packing in (GROUPS, REPEATS):
            return max(group.page_bytes for group in self.groups)
        slots: Counter[int] = Counter()
        for group in self.groups:
            for page, layers in group.pages:
                slots[page.page_bytes] = max(slots[page.page_bytes], layers)
        if self.packing == TUPLES:
            return sum(slots) * max(slots.values())
        return sum(size * layers for size, layers in slots.items())

    @property
    def fixed_bytes(self) -> int:
        return self.block_bytes

    @property
    def group_count(self) -> int:
        return len(self.groups)

    def sequence_blocks(self, context_tokens: int) -> int:
        """Blocks that a sequence takes in all groups."""
        return sum(page_blocks(group.first, context_tokens, self.rules) for group in self.groups)

    def sequence_bytes(self, context_tokens: int) -> int:
        return self.sequence_blocks(context_tokens) * self.block_bytes

    def blocks(self, available_bytes: int) -> int:
        return available_bytes // self.block_bytes

    def stated_sequence_blocks(self, context_tokens: int) -> int:
        """Blocks of a sequence as the log counts them: to 0.26 in blocks of the first group's size, which are larger.

        (0.26.0 vllm/v1/core/kv_cache_utils.py:937, get_max_concurrency_for_kv_cache_config; 0.28.0 line 917.)
        """
        if self.packing in (GROUPS, REPEATS):
            return self.sequence_blocks(context_tokens)
        needed = sum(page_blocks(group.first, context_tokens, self.rules) * group.page_bytes for group in self.groups)
        return ceil(Fraction(needed, self.groups[0].page_bytes))

    def stated_tokens(self, blocks: int, *, max_model_len: int, by_request: bool) -> int:
        """The number in "GPU KV cache size: N tokens"."""
        if by_request:
            return int(blocks / self.stated_sequence_blocks(max_model_len) * max_model_len)
        return blocks // self.group_count * min(group.first.block_tokens for group in self.groups)


def packed_pool(
    records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], packing: str, rules: PoolRules
) -> PackedPool:
    """The pool for the layers of a rank. Groups are made from the whole model, so that all stages agree on them."""
    here, everywhere = packed_pages(records), packed_pages(whole)
    if not any(page.kind == FULL for page in everywhere):
        raise UsageError("vLLM's blocks for windows alone, without compressed entries, are not known to kvcalc")
    if packing in (TUPLES, SLOTS):
        padded = _padded(everywhere)
        here, everywhere = (renamed(found, padded) for found in (here, everywhere))
    buckets = _buckets(everywhere)
    groups: list[PackedGroup] = []
    for bucket, parts in zip(buckets, _parts(buckets, packing), strict=True):
        for part in range(parts):
            pages = tuple((page, len(range(here[page])[part::parts])) for page in bucket if here[page])
            groups.append(PackedGroup(first=next(iter(bucket)), pages=pages))
    return PackedPool(groups=tuple(groups), packing=packing, rules=rules)


def _buckets(found: Counter[Page]) -> list[dict[Page, int]]:
    """Pages of the same blocks and windows together; the compressed entries first, as vLLM to 0.28 has them."""
    buckets: dict[tuple[str, int, int], dict[Page, int]] = {}
    for page, count in found.items():
        buckets.setdefault((page.kind, page.block_tokens, page.span_tokens), {})[page] = count
    return sorted(buckets.values(), key=lambda bucket: next(iter(bucket)).kind != FULL)


def _padded(found: Iterable[Page]) -> dict[Page, Page]:
    """Windows' pages as large as the next larger page of compressed entries."""
    sizes = sorted(page.page_bytes for page in found if page.kind == FULL)
    return {page: replace(page, page_bytes=next(size for size in sizes if size >= page.page_bytes)) for page in found}


def _parts(buckets: list[dict[Page, int]], packing: str) -> list[int]:
    """Into how many groups each bucket is cut."""
    most = [max(bucket.values()) for bucket in buckets]
    if packing != REPEATS:
        size = repeats(most, at_least=most[0])
        return [1, *(-(-count // size) for count in most[1:])]
    even = [len(set(bucket.values())) == 1 for bucket in buckets]
    least = [count for bucket, count, same in zip(buckets, most, even, strict=True) if same and len(bucket) > 1]
    if not least:
        raise UsageError("vLLM's groups for compressed attention without an indexer are not known to kvcalc")
    size = repeats([count for count, same in zip(most, even, strict=True) if same], at_least=max(least))
    return [-(-count // size) if same else 1 for count, same in zip(most, even, strict=True)]

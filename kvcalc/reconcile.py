"""A startup log set beside the rules: what the engine states, what the rules give, and where the difference goes.

The account is of all ranks of one replica, in bytes: what the tokens need once, what other ranks copy, what blocks and
groups waste, what rounding hides. What is left is unexplained, and printed as such.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, floor
from typing import Any

from kvcalc.architecture.attention import Role
from kvcalc.architecture.layout import Layout, RecordCount, tokens_on_rank
from kvcalc.architecture.model import Model
from kvcalc.architecture.slots import Window
from kvcalc.engines.llama_cpp import Cells, Streams
from kvcalc.engines.logs import Stated
from kvcalc.engines.sglang import TokenPools
from kvcalc.engines.vllm import VllmLayout
from kvcalc.engines.vllm_blocks import BlockPool
from kvcalc.engines.vllm_packed import PackedPool
from kvcalc.sizing import LayerCounts, cache_size, largest, rank_records, stage_allocations
from kvcalc.units import exact
from kvcalc.workload import Parallelism, Workload

Json = dict[str, Any]
Pool = BlockPool | PackedPool
EXPLAINED, OFF, UNEXPLAINED = "explained", "off", "unexplained"


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Where bytes go. Negative where the printed number was rounded down."""

    name: str
    bytes: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """The account.

    tokens, tokens_range  what the rules give for the memory that is stated, and for all memory that rounds to it
    refused               why the rules give nothing
    """

    stated: Stated
    model: Model
    layout: Layout | None
    parallelism: Parallelism
    tokens: int | None = None
    tokens_range: tuple[int, int] | None = None
    bytes_per_token: Fraction | None = None
    needed_bytes: int | None = None
    total_bytes: int | None = None
    items: tuple[Item, ...] = ()
    unexplained_bytes: int | None = None
    refused: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> str:
        """explained: nothing is left; off: something is; unexplained: the rules give nothing."""
        if self.unexplained_bytes is None:
            return UNEXPLAINED
        return OFF if self.unexplained_bytes else EXPLAINED

    def to_json(self) -> Json:
        """The object of schema `kvcalc.reconcile/1`."""
        stated, available = self.stated, self.stated.available_bytes
        mix = {name: getattr(self.parallelism, name) for name in ("tp", "pp", "dp", "dcp")}
        memory = available.low if available.low is not None else stated.pool_bytes
        return {
            "schema": "kvcalc.reconcile/1",
            "verdict": self.verdict,
            "stated": {
                "engine": stated.engine,
                "version": stated.version,
                "model": stated.model,
                "parallel": mix,
                "kv_dtype": stated.kv_dtype,
                "mtp": stated.mtp,
                "tokens": stated.tokens,
                "available_bytes": None if memory is None else round(memory),
                "available_bytes_most": None if available.high is None else round(available.high),
                "ranks": available.times,
                "blocks": stated.blocks,
                "block_tokens": stated.block_tokens,
                "max_model_len": stated.max_model_len,
                "max_concurrency": stated.concurrency,
                "needed_bytes": None if stated.needed_bytes is None else round(stated.needed_bytes),
                "pool_bytes": None if stated.pool_bytes is None else round(stated.pool_bytes),
            },
            "computed": {
                "engine": self.layout.name if self.layout else None,
                "model": self.model.name,
                "tokens": self.tokens,
                "tokens_range": None if self.tokens_range is None else list(self.tokens_range),
                "bytes_per_token": None if self.bytes_per_token is None else exact(self.bytes_per_token),
                "block_tokens": self.layout.block_tokens if self.layout and not self.refused else None,
                "needed_bytes": self.needed_bytes,
                "total_bytes": self.total_bytes,
            },
            "items": [{"name": item.name, "bytes": item.bytes, "note": item.note} for item in self.items],
            "unexplained_bytes": self.unexplained_bytes,
            "refused": self.refused,
            "notes": list(self.notes),
        }


def reconcile(stated: Stated, model: Model, layout: Layout, parallelism: Parallelism) -> Reconciliation:
    """Set a log beside a layout. Raises UsageError where the layout does not know the model."""
    base = Reconciliation(stated=stated, model=model, layout=layout, parallelism=parallelism, notes=layout.notes)
    mtp = stated.mtp and bool(model.mtp_layers)
    allocations = stage_allocations(model, layout, parallelism, mtp=mtp)
    size = cache_size(model, layout, Workload(context_tokens=1), parallelism, mtp=mtp)
    records = rank_records(_layers(model, stated), layout, parallelism)
    account = _Account(base=base, size_per_token=size.per_rank.bytes_per_token, records=records)
    allocation = max(allocations, key=lambda each: each.sequence_bytes(model.max_context_tokens))
    if isinstance(layout, VllmLayout) and isinstance(allocation, Pool):
        return account.blocks(layout, allocation)
    if isinstance(allocation, TokenPools):
        return account.token_pools(allocation)
    if isinstance(allocation, Cells):
        return account.cells(allocation)
    raise AssertionError(layout.name)


@dataclass(frozen=True, kw_only=True)
class _Account:
    base: Reconciliation
    size_per_token: Fraction
    records: tuple[RecordCount, ...]

    @property
    def _stated(self) -> Stated:
        return self.base.stated

    @property
    def _ranks(self) -> int:
        return self.base.parallelism.tp

    def _made(self, **changes: Any) -> Reconciliation:
        return replace(self.base, bytes_per_token=self.size_per_token, **changes)

    def blocks(self, layout: VllmLayout, pool: Pool) -> Reconciliation:
        """vLLM: memory over block bytes are blocks; blocks are tokens by the rule of the version."""
        stated, length = self._stated, self._stated.max_model_len or self.base.model.max_context_tokens
        needed = pool.sequence_bytes(length) if stated.needed_bytes is not None else None
        available = stated.available_bytes.low
        if stated.needed_bytes is not None and stated.tokens is None:
            return self._pool_account(
                size=stated.needed_bytes,
                computed=pool.sequence_bytes(length),
                tokens=self._longest_that_fit(pool, available, length),
                items=list(self._of_blocks(pool, pool.sequence_blocks(length), length)),
                needed_bytes=needed,
            )
        if available is None:
            blocks = stated.blocks
            given = None if blocks is None else layout.stated_tokens(pool, blocks, max_model_len=length)
            return self._made(needed_bytes=needed, tokens=given)
        low, middle, high = (pool.blocks(round(available + sign * stated.rounding_bytes)) for sign in (-1, 0, 1))
        tokens = [layout.stated_tokens(pool, blocks, max_model_len=length) for blocks in (low, middle, high)]
        found = self._made(needed_bytes=needed, tokens=tokens[1], tokens_range=(tokens[0], tokens[2]))
        if stated.tokens is None and stated.blocks is None:
            return found
        said = self._stated_blocks(layout, pool, length)
        blocks = min(max(middle, said[0]), said[1])  # of the blocks that the stated number allows, the nearest
        nearest = min(max(blocks, low), high)
        rounding = round(available) - nearest * pool.block_bytes
        left = (nearest - blocks) * pool.block_bytes
        hidden = Item(name="rounding", bytes=rounding * self._ranks, note="less than a block, and digits not printed")
        return replace(
            found,
            total_bytes=round(available) * self._ranks,
            items=(*self._of_blocks(pool, blocks, length), hidden),
            unexplained_bytes=left * self._ranks,
        )

    def _longest_that_fit(self, pool: Pool, available: float | None, length: int) -> tuple[int, int, int] | None:
        """The longest request that the stated memory holds: vLLM's estimate where one of full length does not fit."""
        if available is None:
            return None

        def longest(there_bytes: float) -> int:
            return largest(length, lambda tokens: pool.sequence_bytes(tokens) <= there_bytes)

        hidden = self._stated.rounding_bytes
        return longest(available - hidden), longest(available), longest(available + hidden)

    def _stated_blocks(self, layout: VllmLayout, pool: Pool, length: int) -> tuple[int, int]:
        """The fewest and the most blocks that give the stated number."""
        stated = self._stated
        if stated.blocks is not None or stated.tokens is None:
            return stated.blocks or 0, stated.blocks or 0

        def first_at_least(tokens: int) -> int:
            low, high = 0, 1
            while layout.stated_tokens(pool, high, max_model_len=length) < tokens:
                low, high = high, high * 2
            while high - low > 1:
                middle = (low + high) // 2
                enough = layout.stated_tokens(pool, middle, max_model_len=length) >= tokens
                low, high = (low, middle) if enough else (middle, high)
            return high

        fewest = first_at_least(stated.tokens)
        return fewest, max(fewest, first_at_least(stated.tokens + 1) - 1)

    def _of_blocks(self, pool: Pool, blocks: int, length: int) -> Iterator[Item]:
        """What the blocks of all ranks hold when they are full of requests of the longest length."""
        ranks, dcp = self._ranks, self.base.parallelism.dcp
        requests = Fraction(blocks, pool.sequence_blocks(length))
        total, used = blocks * pool.block_bytes * ranks, 0
        sizes = self._stored(length, dcp)
        for name, (once, everywhere) in sizes.items():
            yield Item(name=name, bytes=floor(requests * once), note="one copy")
            used += floor(requests * once)
            copies = floor(requests * everywhere) - floor(requests * once)
            if copies:
                yield Item(
                    name=f"{name} again on other ranks", bytes=copies, note=f"{float(everywhere / once):.4g} copies"
                )
                used += copies
        dead = self._dead(pool, requests, length) * ranks
        if dead:
            yield Item(name="padding layers", bytes=dead, note=f"{pool.dead_layers} in the last groups")
            used += dead
        yield Item(
            name="padding", bytes=total - used, note="partly filled blocks, state pages, windows' slack, the null block"
        )

    def _dead(self, pool: Pool, requests: Fraction, length: int) -> int:
        if isinstance(pool, PackedPool):  # its groups lie over each other: what one leaves free is padding
            return 0
        total = Fraction(0)
        for group in pool.groups:
            layers = group.groups * pool.group_size - group.layers
            total += layers * group.page.page_bytes * requests * pool.page_blocks(group.page, length)
        return floor(total)

    def _stored(self, length: int, dcp: int) -> dict[str, tuple[int, int]]:
        """By what it is: bytes of one sequence in one copy, and on all ranks."""
        once: dict[str, int] = {}
        everywhere: dict[str, int] = {}
        copy = rank_records(_layers(self.base.model, self._stated), self._layout, Parallelism())
        for item in copy:
            name = kind_name(item)
            once[name] = once.get(name, 0) + item.count * item.record.stored_bytes(length)
        for item in self.records:
            name, tokens = kind_name(item), tokens_on_rank(item.record, length, dcp)
            everywhere[name] = everywhere.get(name, 0) + item.count * item.record.stored_bytes(tokens) * self._ranks
        return {name: (size, max(size, everywhere[name])) for name, size in once.items() if size}

    @property
    def _layout(self) -> Layout:
        assert self.base.layout is not None
        return self.base.layout

    def token_pools(self, pools: TokenPools) -> Reconciliation:
        """SGLang: tokens times bytes a token, and one page more."""
        stated = self._stated
        size = stated.pool_bytes
        if stated.tokens is None or size is None:
            return self._made(tokens=None if size is None else pools.capacity_tokens(round(size)))
        low, middle, high = (
            pools.capacity_tokens(max(0, round(size + sign * stated.rounding_bytes) - pools.fixed_bytes))
            for sign in (-1, 0, 1)
        )
        return self._pool_account(
            size=size,
            computed=pools.pool_bytes(stated.tokens),
            tokens=(low, middle, high),
            items=[
                *self._of_pool(pools, stated.tokens),
                Item(name="padding", bytes=pools.fixed_bytes * self._ranks, note="one page"),
            ],
        )

    def _of_pool(self, pools: TokenPools, tokens: int) -> Iterator[Item]:
        ranks = self._ranks
        for name in dict.fromkeys(kind_name(item) for item in pools.records if not item.record.is_state):
            total = Fraction(0)
            for item in pools.records:
                if kind_name(item) != name or item.record.is_state:
                    continue
                window = isinstance(item.record.slots, Window) and pools.is_hybrid
                share = pools.window_share if window else 1
                total += item.count * item.record.bytes_per_slot * share * tokens
            yield from self._copies(name, ceil(total), ranks)

    def _copies(self, name: str, rank_bytes: int, ranks: int) -> Iterator[Item]:
        """A rank's bytes on all ranks: what one copy takes, and what is there again."""
        latent = name in ("latent", "index")
        once = rank_bytes if latent else rank_bytes * ranks
        yield Item(name=name, bytes=once, note="one copy")
        if latent and ranks > 1:
            yield Item(name=f"{name} again on other ranks", bytes=rank_bytes * (ranks - 1), note=f"{ranks} copies")

    def cells(self, cells: Cells) -> Reconciliation:
        """llama.cpp: cells times bytes a cell, in whole tensors, and states for each sequence."""
        stated = self._stated
        tokens_stated = stated.tokens or 0
        if stated.pool_bytes is None or not (tokens_stated or all(item.record.is_state for item in cells.records)):
            return self._made()
        streams = Streams(
            sequences=stated.sequences,
            streams=stated.streams,
            whole_windows=stated.whole_windows,
            rollbacks=stated.rollbacks,
        )
        sizes: dict[str, int] = {}
        for item in cells.records:
            name = kind_name(item)
            sizes[name] = sizes.get(name, 0) + item.count * cells.record_bytes(item.record, stated.cells or 0, streams)
        cell = sum((item.count * item.record.growth_bytes for item in cells.records), Fraction(0))
        fixed = sum(sizes.values()) - floor(cell * tokens_stated)
        tokens = [
            floor(max(0, stated.pool_bytes + sign * stated.rounding_bytes - fixed) / cell) if cell else 0
            for sign in (-1, 0, 1)
        ]
        return self._pool_account(
            size=stated.pool_bytes,
            computed=sum(sizes.values()),
            tokens=(tokens[0], tokens[1], tokens[2]),
            items=[Item(name=name, bytes=size, note="all layers") for name, size in sizes.items() if size],
        )

    def _pool_account(
        self,
        *,
        size: float,
        computed: int,
        tokens: tuple[int, int, int] | None,
        items: list[Item],
        needed_bytes: int | None = None,
    ) -> Reconciliation:
        difference = round(size) - computed
        hidden = abs(difference) <= self._stated.rounding_bytes + 1
        rounding = difference if hidden else 0
        ranks = self._ranks
        return self._made(
            tokens=None if tokens is None else tokens[1],
            tokens_range=None if tokens is None else (tokens[0], tokens[2]),
            needed_bytes=needed_bytes,
            total_bytes=round(size) * ranks,
            items=(*items, Item(name="rounding", bytes=rounding * ranks, note="the digits that are not printed")),
            unexplained_bytes=(difference - rounding) * ranks,
        )


def _layers(model: Model, stated: Stated) -> LayerCounts:
    """The layers that keep a cache: those of multi-token prediction where the log says that it is on."""
    return model.distinct_layers + (model.distinct_mtp_layers if stated.mtp else ())


def kind_name(item: RecordCount) -> str:
    """What a record is called in the account."""
    component = item.record.components[0]
    if component.role.is_state:
        return "states"
    if component.role is Role.INDEX:
        return "index"
    if isinstance(component.slots, Window):
        return "windows"
    if component.role in (Role.LATENT, Role.ROPE):
        return "latent"
    return component.name if component.name == "latent again as V" else "keys and values"

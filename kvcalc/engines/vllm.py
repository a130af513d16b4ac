"""vLLM: pages in blocks, hybrid models in groups that share one pool.

Sources are files and lines of the released wheels. `kvcalc list engines` shows every rule with its versions.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm

from kvcalc.architecture.attention import (
    Attention,
    CompressedAttention,
    LatentAttention,
    Mamba1,
    Mamba2,
    Role,
    by_record,
)
from kvcalc.architecture.formats import CACHE_FORMATS
from kvcalc.architecture.layout import Allocation, Precision, Record, RecordCount
from kvcalc.architecture.slots import Window
from kvcalc.engines import vllm_rules as rules
from kvcalc.engines.absorbed import UNQUANTISED, absorbed_elements
from kvcalc.engines.base import Engine, KeptWhole, Request, Version, attentions, check_format, compare
from kvcalc.engines.vllm_blocks import BlockPool, PoolRules, block_pool, raised_block
from kvcalc.engines.vllm_packed import BLOCK_TOKENS, PACKING, PackedPool, packed_page, packed_pool
from kvcalc.errors import UsageError

HOPPER, A100 = (9, 0), (8, 0)


@dataclass(frozen=True, kw_only=True)
class VllmLayout:
    """vLLM's cache for one model on one kind of GPU."""

    request: Request
    version: Version
    precision: Precision
    name: str

    @property
    def engine(self) -> str:
        return ENGINE.name

    @property
    def reserves_requests(self) -> bool:
        return False

    @property
    def compute(self) -> str:
        return self.precision.kv.compute

    @cached_property
    def _attentions(self) -> tuple[Attention, ...]:
        return tuple(attentions(self.request.model))

    @cached_property
    def is_latent(self) -> bool:
        """Whether attention is over MLA's latents."""
        return any(isinstance(getattr(each, "base", each), LatentAttention) for each in self._attentions)

    @cached_property
    def _is_sparse(self) -> bool:
        return any(component.role is Role.INDEX for each in self._attentions for component in each.components())

    @cached_property
    def is_sparse_latent(self) -> bool:
        """DeepSeek Sparse Attention: a selection over MLA."""
        return self.is_latent and self._is_sparse

    @cached_property
    def is_compressed(self) -> bool:
        """DeepSeek-V4: windows beside compressed entries, whose compressors' tokens are kept as windows too."""
        return any(isinstance(each, CompressedAttention) for each in self._attentions)

    @cached_property
    def has_states(self) -> bool:
        states = (Role.STATE, Role.CONVOLUTION)
        return any(component.role in states for each in self._attentions for component in each.components())

    @cached_property
    def has_windows(self) -> bool:
        return any(isinstance(c.slots, Window) for each in self._attentions for c in each.components())

    @property
    def _has_wide_heads(self) -> bool:
        return any(
            component.role is Role.KEY and component.width == 256
            for each in self._attentions
            for component in each.components()
        )

    @property
    def _capability(self) -> int:
        return (self.request.compute_capability or HOPPER)[0]

    @property
    def _qk_nope_head_dim(self) -> int:
        bases = (getattr(each, "base", each) for each in self._attentions)
        return next((base.qk_nope_head_dim for base in bases if isinstance(base, LatentAttention)), 0)

    @property
    def _is_eight_bit(self) -> bool:
        return self.precision.kv.name.startswith("fp8")

    @property
    def before_v1(self) -> bool:
        return compare(self.version, (0, 8)) < 0

    @cached_property
    def backend_block_tokens(self) -> int:
        """Tokens of a block before recurrent states raise it."""
        if self.request.block_tokens is not None:
            return self.request.block_tokens
        if self.is_sparse_latent:
            return 64
        if self.is_compressed:
            return BLOCK_TOKENS
        if self.is_latent and not self.before_v1:
            return int(rules.MLA_BLOCK.at(self.version)(self._capability, self._qk_nope_head_dim, self._is_eight_bit))
        return 16

    @cached_property
    def block_tokens(self) -> int:
        """Tokens of an attention block on the ranks asked for."""
        mix, found = self.request.parallelism, []
        for attention in self._attentions:
            recurrent = all(component.role.is_state for component in attention.components())
            for record in self.records(attention, shards=mix.tp if recurrent else mix.kv_shards):
                found.append(RecordCount(attention=attention, record=record, count=1))
        return self._raised(tuple(found))

    def _raised(self, records: tuple[RecordCount, ...]) -> int:
        if not self.has_states or self.before_v1:
            return self.backend_block_tokens
        plain, latent = rules.STATE_ALIGNMENT.at(self.version)
        alignment = max(plain, self.backend_block_tokens if compare(self.version, (0, 20)) >= 0 else 0)
        if self.is_latent:
            alignment = max(alignment, latent)
        if self.keeps_states_by_block:
            alignment = lcm(alignment, self._kernel_chunk_tokens)
        return raised_block(records, block_tokens=self.backend_block_tokens, alignment=alignment)

    @property
    def caches_prefixes(self) -> bool:
        """Whether finished prefixes are kept, which a recurrent state pays for with a second block, or one a block."""
        asked = self.request.prefix_caching
        if not self.has_states or self.before_v1:
            return True if asked is None else asked
        caches = bool(rules.PREFIX_CACHING.at(self.version)) if asked is None else asked
        mode = rules.MAMBA_ALL.at(self.version)
        able = mode != rules.OFF and (self._has_mamba or compare(self.version, (0, 15)) >= 0)
        return caches and able

    @cached_property
    def _has_mamba(self) -> bool:
        return any(isinstance(each, Mamba1 | Mamba2) for each in self._attentions)

    @property
    def keeps_states_by_block(self) -> bool:
        mode = rules.MAMBA_ALL.at(self.version) if self._has_mamba and not self.before_v1 else rules.OFF
        return self.caches_prefixes and mode in (rules.EVERY_BLOCK, rules.EVERY_BLOCK_AND_DRAFTS)

    @property
    def _kernel_chunk_tokens(self) -> int:
        """Tokens that a Mamba kernel computes together. Raises UsageError where the spec does not say."""
        found = [
            rules.MAMBA1_CHUNK_TOKENS if isinstance(each, Mamba1) else each.kernel_chunk_tokens
            for each in self._attentions
            if isinstance(each, Mamba1 | Mamba2)
        ]
        if None in found:
            raise UsageError(
                f"the blocks of Mamba-2 layers in {self.name} go by their kernel's chunk, which is not known: the spec "
                "has no kernel_chunk_tokens",
                hint="add --no-prefix-caching, or name 0.28 or later",
            )
        if not any(c.slots.per_token for each in self._attentions for c in each.components()):
            raise UsageError(f"the blocks of Mamba layers without attention in {self.name} are not known")
        return lcm(*(chunk for chunk in found if chunk))

    @property
    def max_batched_tokens(self) -> int:
        if self.request.max_batched_tokens is not None:
            return self.request.max_batched_tokens
        memory, capability = self.request.gpu_memory_bytes, self.request.compute_capability
        gib = 80 if memory is None else 0 if capability == A100 else memory >> 30
        steps: tuple[tuple[int, int], ...] = rules.BATCHED_TOKENS.at(self.version)
        return next(tokens for at_least, tokens in steps if gib >= at_least)

    @cached_property
    def pool_rules(self) -> PoolRules:
        if self.before_v1:
            return PoolRules(
                merge_below=None, in_flight_tokens=0, state_blocks=0, windows_are_full=True, null_block=False
            )
        steps = rules.IN_FLIGHT.at(self.version)
        if steps > 1 and self.request.parallelism.pp > 1:
            steps = self.request.parallelism.pp
        alone, with_prefixes, for_each_draft = rules.STATE_BLOCKS.at(self.version)
        states, every = alone, 0
        if self.keeps_states_by_block:
            drafts = rules.MAMBA_ALL.at(self.version) == rules.EVERY_BLOCK_AND_DRAFTS
            states, for_each_draft, every = 0, int(drafts), self.block_tokens
        elif self.has_states and self.caches_prefixes:
            states = with_prefixes
        return PoolRules(
            merge_below=rules.GROUP_SIZE.at(self.version),
            unequal_pages=rules.UNEQUAL_PAGES.at(self.version),
            in_flight_tokens=steps * self.max_batched_tokens,
            state_blocks=states + for_each_draft * self.request.speculative_tokens,
            state_every_tokens=every,
        )

    @cached_property
    def notes(self) -> tuple[str, ...]:
        found = []
        if self.request.compute_capability is None and (self.is_latent or self._is_sparse):
            found.append("no GPU is named: the attention backend is taken as on compute capability 9.0 (Hopper)")
        if self._is_sparse and not self.is_latent and not self.is_compressed:
            found.append("the block size and index cache of sparse attention over GQA in vLLM are not known: 16, as is")
        if self.has_states:
            every, more = self.pool_rules.state_every_tokens, self.pool_rules.state_blocks
            blocks = f"{more} block{'s' if more > 1 else ''} a sequence"
            if every:
                blocks = f"a block every {every:,} tokens" + (f" and {blocks}" if more else "")
            found.append(
                f"prefix caching {'on' if self.caches_prefixes else 'off'}: {blocks} for each group of recurrent states"
            )
            if compare(self.version, (0, 29)) >= 0 and self.caches_prefixes:
                found.append("prefill checkpoints, which some state backends add from 0.29 on, are not counted")
        if compare(self.version, (0, 30)) >= 0 and self._has_wide_heads:
            found.append("FlashAttention 4, where it is chosen, takes larger blocks for heads of 256: 16 is taken")
        if self.has_windows and not self.before_v1:
            found.append(
                f"{self.pool_rules.in_flight_tokens:,} tokens in flight are reserved for windows "
                f"(max_num_batched_tokens {self.max_batched_tokens:,})"
            )
        if self.is_compressed:
            found.append(
                "for every 4 of them a whole block, for the compressors' tokens: most of what a sequence reserves, and "
                "used while it is prefilled (--max-batched-tokens)"
            )
        return tuple(found)

    def records(self, attention: Attention, *, shards: int) -> tuple[Record, ...]:
        records = []
        for group in by_record(attention.components()):
            format = self.precision.of(group[0].role)
            if self.before_v1 and isinstance(group[0].slots, Window):
                group = tuple(replace(component, slots=KeptWhole(component.slots)) for component in group)
            size, block = format.record_bytes(group, shards=shards), self.backend_block_tokens
            if isinstance(attention, CompressedAttention):
                block = packed_page(attention, group[0], size).block_tokens
            records.append(Record(components=group, bytes_per_slot=size, format=format, block_tokens=block))
        return tuple(records)

    def copied_weight_bytes(self, attention: Attention, *, weights: str, tp: int) -> int:
        if weights in UNQUANTISED or self.before_v1:
            return 0
        return int(rules.ABSORBED.at(self.version)) * sum(absorbed_elements(attention, tp=tp))

    def pool(
        self, records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], dcp: int
    ) -> BlockPool | PackedPool:
        """The block pool of a rank, with all that the startup log tells of it."""
        if dcp > 1:
            self._check_dcp(dcp)
        if self.is_compressed:
            return packed_pool(records, whole=whole, packing=PACKING.at(self.version), rules=self.pool_rules)
        return block_pool(records, whole=whole, block_tokens=self._raised(whole), dcp=dcp, rules=self.pool_rules)

    def _check_dcp(self, dcp: int) -> None:
        """Raise UsageError where vLLM does not share a sequence's tokens over so many ranks."""
        if self.has_windows:
            raise UsageError("vLLM does not share a sequence's tokens (dcp) in models with windows")
        tp = self.request.parallelism.tp
        for attention in self._attentions:
            for component in attention.components():
                if not component.role.is_state and component.heads > 1 and dcp > tp // component.heads:
                    raise UsageError(
                        f"vLLM shares tokens among ranks with the same KV heads: tp {tp} has {tp // component.heads} "
                        f"for each of {component.heads}, and dcp {dcp} was asked for"
                    )

    def allocation(self, records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], dcp: int) -> Allocation:
        return self.pool(records, whole=whole, dcp=dcp)

    def stated_tokens(self, pool: BlockPool | PackedPool, blocks: int, *, max_model_len: int) -> int:
        """The number that this version prints as its cache size."""
        return pool.stated_tokens(
            blocks, max_model_len=max_model_len, by_request=bool(rules.STATED_TOKENS.at(self.version))
        )


def layout(request: Request, version: Version) -> VllmLayout:
    """vLLM's layout in a version. Raises UsageError for a format that the version does not store."""
    precision, name = request.precision, ENGINE.label(version)
    check_format(name, request, rules.FORMATS.at(version))
    probe = VllmLayout(request=request, version=version, precision=precision, name=name)
    if probe.before_v1 and (probe.is_latent or probe.has_states):
        raise UsageError(f"how {name} keeps MLA and recurrent states is not known", hint="name 0.11 or later")
    if probe.is_compressed:
        return replace(probe, precision=_of_compressed(probe))
    if precision.kv.name.endswith("_ds_mla") and not probe.is_sparse_latent:
        raise UsageError(f"{name} keeps {precision.kv.name} records for sparse MLA only", hint="ask for --kv-dtype fp8")
    blackwell = (request.compute_capability or HOPPER)[0] == 10
    plain = rules.SPARSE_FP8.at(version) and blackwell if probe.is_sparse_latent else True
    if precision.kv.name in ("fp8_e4m3", "fp8_e5m2") and not plain:
        precision = replace(precision, kv=CACHE_FORMATS["fp8_ds_mla"])
    return VllmLayout(request=request, version=version, precision=precision, name=name)


def _of_compressed(layout: VllmLayout) -> Precision:
    """DeepSeek-V4's own record, which vLLM calls fp8_ds_mla. Raises UsageError for another, or another block."""
    request, native = layout.request, layout.request.model.native_formats.get("kv")
    PACKING.at(layout.version)
    if request.block_tokens not in (None, BLOCK_TOKENS):
        raise UsageError(f"{layout.name} keeps compressed attention in blocks of {BLOCK_TOKENS} tokens only")
    if layout.precision.kv.name not in (native, "fp8_ds_mla") or native is None:
        raise UsageError(f"{layout.name} keeps compressed attention in the model's own records only")
    return replace(layout.precision, kv=CACHE_FORMATS[native])


ENGINE = Engine(
    name="vllm",
    title="vLLM",
    covers=(("0.6.4", "0.7.3"), ("0.11.0", "0.33.0")),
    rules=(*rules.RULES, PACKING),
    make=layout,
    memory_utilization=rules.UTILIZATION,
    remark="0.6.4 to 0.7.3 are the engine before V1",
)

"""A case: one attention layer, called once, with the heads of one rank. Pure: listing cases needs no torch.

The work of a case comes from the attention kind itself, so a prediction and a measurement can't disagree about it:
    flop(form)         QK and PV in the form that a kernel computes: `absorbed` or `expanded` for MLA, else `grouped`
    cache_read_bytes   every cache entry once, in the generic layout (MLA's latent is both K and V)
    bytes              that, and the queries and outputs
That is the least that any kernel has to do; what a kernel does beyond it, it declares (`kernels/base.py`).
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from zlib import crc32

from kvcalc.architecture import attention as kinds
from kvcalc.architecture.attention import Attention, GroupedAttention, LatentAttention, SelectedAttention
from kvcalc.architecture.formats import cache_format
from kvcalc.architecture.layout import GenericLayout, Record, precision_for
from kvcalc.errors import UsageError

DECODE, PREFILL = "decode", "prefill"
PHASES = (DECODE, PREFILL)
ABSORBED, EXPANDED, GROUPED = "absorbed", "expanded", "grouped"
DTYPES = ("fp32", "fp16", "bf16")
"""Number formats of queries and outputs."""
KV_DTYPES = (*DTYPES, "fp8_e4m3")
"""Number formats of the cache; fp8 has one scale a tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One attention layer, one call.

    attention       the kind with this rank's heads (see `rank_attention`)
    phase           `decode`, or `prefill`: the last query_tokens of a prompt of context_tokens, all of it by default
    context_tokens  tokens that the last query of a sequence attends, itself included
    query_tokens    new tokens a sequence, causal among themselves; default 1 for decode, context_tokens for prefill
    kv_dtype        number format of the cache; default that of the queries
    page_tokens     tokens a page of the paged cache
    seq_lens        lengths of the single sequences, for ragged batches; default context_tokens each. A length may be 0
                    (nothing is attended: output 0, lse -inf), and below query_tokens (the first queries attend nothing)
    """

    attention: GroupedAttention | LatentAttention
    phase: str
    batch: int
    context_tokens: int
    query_tokens: int = 0
    dtype: str = "bf16"
    kv_dtype: str = ""
    page_tokens: int = 64
    seq_lens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise UsageError(f"unknown phase '{self.phase}'", hint=f"one of {', '.join(PHASES)}")
        _fill(self, "query_tokens", 1 if self.phase == DECODE else self.context_tokens)
        _fill(self, "kv_dtype", self.dtype)
        _fill(self, "seq_lens", (self.context_tokens,) * self.batch)
        object.__setattr__(self, "kv_dtype", cache_format(self.kv_dtype).name)
        object.__setattr__(self, "dtype", cache_format(self.dtype).name)
        for name, value, known in (("dtype", self.dtype, DTYPES), ("kv_dtype", self.kv_dtype, KV_DTYPES)):
            if value not in known:
                raise UsageError(f"profile has no kernel for {name} {value}", hint=f"one of {', '.join(known)}")
        for name in ("batch", "context_tokens", "query_tokens", "page_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.query_tokens > self.context_tokens:
            raise UsageError(f"query_tokens {self.query_tokens} is more than context_tokens {self.context_tokens}")
        if len(self.seq_lens) != self.batch:
            raise UsageError(f"{len(self.seq_lens)} seq_lens for a batch of {self.batch}")
        if min(self.seq_lens) < 0 or max(self.seq_lens) > self.context_tokens:
            raise UsageError(f"seq_lens must be 0 to context_tokens {self.context_tokens}: {self.seq_lens}")

    @property
    def is_latent(self) -> bool:
        return isinstance(self.attention, LatentAttention)

    @property
    def n_heads(self) -> int:
        return self.attention.n_heads

    @property
    def is_uniform(self) -> bool:
        """Whether every sequence has context_tokens tokens."""
        return min(self.seq_lens) == self.context_tokens

    @property
    def attention_name(self) -> str:
        """`mla`, `mha`, `gqa` or `mqa`."""
        if isinstance(self.attention, LatentAttention):
            return "mla"
        if self.attention.n_kv_heads == self.attention.n_heads:
            return "mha"
        return "mqa" if self.attention.n_kv_heads == 1 else "gqa"

    # --- the work -----------------------------------------------------------------------------------------------------

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that this attention can be computed in; the first is the one that decoding is counted in."""
        return (ABSORBED, EXPANDED) if self.is_latent else (GROUPED,)

    @property
    def natural_form(self) -> str:
        """The form that the phase is counted in everywhere else: absorbed to decode MLA, expanded to prefill it."""
        return EXPANDED if self.is_latent and self.phase == PREFILL else self.forms[0]

    def flop(self, form: str | None = None) -> int:
        """FLOPs of QK and PV in a form, `natural_form` by default: no softmax, no absorption, no decompression."""
        form = form or self.natural_form
        if form not in self.forms:
            raise ValueError(f"{self.attention.label} has no {form} form, only {', '.join(self.forms)}")
        if form != EXPANDED:
            components = self.attention.components()
            return sum(
                kinds.flop(components, context_tokens=tokens, query_tokens=min(tokens, self.query_tokens))
                for tokens in self.seq_lens
            )
        expanded = self.attention.expanded()
        assert expanded is not None
        return sum(expanded.flop(tokens, min(tokens, self.query_tokens)) for tokens in self.seq_lens)

    @property
    def pairs(self) -> int:
        """(query, cache entry) pairs of one query head that are attended."""
        slots = self.attention.components()[0].slots
        return sum(slots.pairs(tokens, min(tokens, self.query_tokens)) for tokens in self.seq_lens)

    @property
    def decompress_flop(self) -> int:
        """FLOPs to rebuild K and V of all cached tokens from the latent; 0 for grouped attention."""
        form = self.attention.expanded()
        return sum(form.decompress_flop(tokens, self.query_tokens) for tokens in self.seq_lens) if form else 0

    @property
    def expanded_kv_bytes(self) -> int:
        """Bytes of full keys and values of all heads for all cached tokens, in the queries' format."""
        attention = self.attention
        form = attention.expanded()
        if form is not None:
            elements = form.elements_per_token
        else:  # each query head with a K and V of its own
            elements = sum(component.width for component in attention.components()) * attention.n_heads
        return sum(self.seq_lens) * elements * self.element_bytes

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of queries and outputs."""
        return cache_format(self.dtype).packing.bytes

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that the cache keeps for a token."""
        return sum(record.bytes_per_slot for record in _records(self.attention, self.kv_dtype, self.page_tokens))

    @property
    def cache_read_bytes(self) -> int:
        """Bytes of the cache entries that the call attends, each once."""
        return sum(
            record.read_bytes(tokens, min(tokens, self.query_tokens))
            for record in _records(self.attention, self.kv_dtype, self.page_tokens)
            for tokens in self.seq_lens
        )

    @property
    def query_output_bytes(self) -> int:
        """Bytes of queries in and outputs out (absorbed ones, for MLA)."""
        return self.batch * self.query_tokens * self.attention.query_output_elements * self.element_bytes

    @property
    def bytes(self) -> int:
        """The least that has to move: each cache entry once, queries in, outputs out."""
        return self.cache_read_bytes + self.query_output_bytes

    @property
    def pages(self) -> tuple[int, ...]:
        """Pages of each sequence."""
        return tuple(-(-tokens // self.page_tokens) for tokens in self.seq_lens)

    # --- its name -----------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Short and stable: `mla-512+64-h16-decode-b8-n4096-q1-bf16`; the usual (page 64, kv as dtype) is left out."""
        dtype = self.dtype if self.kv_dtype == self.dtype else f"{self.dtype}-kv-{self.kv_dtype}"
        page = "" if self.page_tokens == 64 else f"-page{self.page_tokens}"
        ragged = "" if self.is_uniform else f"-ragged{crc32(repr(self.seq_lens).encode()):08x}"
        size = f"b{self.batch}-n{self.context_tokens}-q{self.query_tokens}"
        return f"{self._shape}-{self.phase}-{size}-{dtype}{page}{ragged}"

    @property
    def _shape(self) -> str:
        attention = self.attention
        if isinstance(attention, LatentAttention):
            heads = f"{attention.qk_nope_head_dim}x{attention.v_head_dim}"
            usual = "" if heads == "128x128" else f"-{heads}"
            return f"mla-{attention.kv_lora_rank}+{attention.qk_rope_head_dim}{usual}-h{attention.n_heads}"
        same = attention.head_dim == attention.v_head_dim
        width = f"{attention.head_dim}" if same else f"{attention.head_dim}x{attention.v_head_dim}"
        kv_heads = f"-g{attention.n_kv_heads}" if self.attention_name == "gqa" else ""
        window = f"-w{attention.window_tokens}" if attention.window_tokens else ""
        return f"{self.attention_name}-{width}-h{attention.n_heads}{kv_heads}{window}"

    def describe(self) -> str:
        """For people: `MLA 512+64, 16 heads, decode, batch 8, 4,096 tokens, bf16`."""
        heads = "1 head" if self.n_heads == 1 else f"{self.n_heads} heads"
        query = "" if self.query_tokens == 1 else f", {self.query_tokens:,} query tokens"
        kv = "" if self.kv_dtype == self.dtype else f", {self.kv_dtype} cache"
        ragged = "" if self.is_uniform else f" at most ({min(self.seq_lens):,} to {max(self.seq_lens):,})"
        return (
            f"{self.attention.label}, {heads}, {self.phase}, batch {self.batch}, "
            f"{self.context_tokens:,} tokens{ragged}{query}, {self.dtype}{kv}"
        )

    def as_json(self, *, kernel: str, form: str) -> dict[str, Any]:
        """The keys of `cases[]` that say what was run, with the FLOPs of the form that the kernel computes."""
        return {
            "id": self.id,
            "kernel": kernel,
            "form": form,
            "attention": self.attention_name,
            "phase": self.phase,
            "n_heads": self.n_heads,
            **_dimensions(self.attention),
            "batch": self.batch,
            "context_tokens": self.context_tokens,
            "query_tokens": self.query_tokens,
            "dtype": self.dtype,
            "kv_dtype": self.kv_dtype,
            "page_tokens": self.page_tokens,
            "bytes": self.bytes,
            "cache_read_bytes": self.cache_read_bytes,
            "flop": self.flop(form),
        }


def _fill(case: Case, name: str, default: object) -> None:
    if not getattr(case, name):
        object.__setattr__(case, name, default)


@cache
def _records(attention: GroupedAttention | LatentAttention, kv_dtype: str, page_tokens: int) -> tuple[Record, ...]:
    layout = GenericLayout(precision=precision_for({}, kv_dtype=kv_dtype), block_tokens=page_tokens)
    return layout.records(attention, shards=1)


def _dimensions(attention: GroupedAttention | LatentAttention) -> dict[str, int]:
    names = (
        ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        if isinstance(attention, LatentAttention)
        else ("n_kv_heads", "head_dim", "v_head_dim")
    )
    return {name: getattr(attention, name) for name in names}


def rank_attention(attention: Attention, *, tp: int = 1) -> GroupedAttention | LatentAttention:
    """The attention that one rank of `tp` computes: its share of the query heads, and of the KV heads, never below one.

    A selection is profiled as the base that it selects from. Raises UsageError for kinds that no kernel here computes,
    and where the heads can't be spread.
    """
    if isinstance(attention, SelectedAttention):
        attention = attention.base
    if not isinstance(attention, GroupedAttention | LatentAttention):
        raise UsageError(f"{attention.label} has no kernel in profile", hint="profile runs MHA, GQA, MQA and MLA")
    if tp < 1 or attention.n_heads % tp:
        raise UsageError(
            f"tp {tp} does not divide the {attention.n_heads} heads of {attention.label}",
            hint="tp must divide the number of query heads",
        )
    if isinstance(attention, LatentAttention):
        return replace(attention, n_heads=attention.n_heads // tp)
    kv_heads = attention.n_kv_heads
    if kv_heads % tp and tp % kv_heads:
        raise UsageError(
            f"the {kv_heads} KV heads of {attention.label} can't be spread over {tp} ranks",
            hint="tp must divide the KV heads, or be a multiple of them",
        )
    return replace(attention, n_heads=attention.n_heads // tp, n_kv_heads=max(1, kv_heads // tp))

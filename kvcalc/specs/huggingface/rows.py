"""Rows of the family tables: attentions and feed-forwards as field names, which a config turns into parts of a spec."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kvcalc.specs.huggingface.config import Config, Reference
from kvcalc.specs.huggingface.rules import head_dim

Part = dict[str, Any]
Biases = Sequence[tuple[Reference, str]]
"""(flag, projections): `[("attention_bias", "qkv")]`."""


class Row(Protocol):
    def spec(self, config: Config, layer: int) -> Part: ...


def options(**values: Any) -> Part:
    """The keys that say something: not None, not False, not empty."""
    return {key: value for key, value in values.items() if value not in (None, False, [], 0)}


def vector(name: str, elements: int) -> Part:
    return {"name": name, "shape": [elements], "use": "vector"}


def matrix(name: str, rows: int, columns: int) -> Part:
    return {"name": name, "shape": [rows, columns]}


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """MHA, GQA or MQA, whichever the numbers make it."""

    heads: Reference | Callable[[Config, int], int] = "num_attention_heads"
    kv_heads: Reference = "num_key_value_heads"
    head_dim: Reference = head_dim
    v_head_dim: Reference = None
    window: Reference = None
    chunk: Reference = None
    bias: Biases = ()
    qk_norm: Callable[[Config], str | None] | str | None = None
    sink_logits: Reference = False
    output_gate: Reference = False
    head_gate: Reference = False
    one_projection: Reference = False
    borrows_cache: Callable[[Config, int], bool] | None = None
    selection: Callable[[Config, int], Part | None] | None = None

    def spec(self, config: Config, layer: int) -> Part:
        heads = self.heads(config, layer) if callable(self.heads) else config.count(str(self.heads))
        kv_heads = config.value(self.kv_heads) or heads
        width = config.value(self.head_dim)
        v_width = config.value(self.v_head_dim)
        kind = "mha" if kv_heads == heads else "mqa" if kv_heads == 1 else "gqa"
        return {
            "kind": kind,
            "n_heads": heads,
            **({"n_kv_heads": kv_heads} if kind == "gqa" else {}),
            "head_dim": width,
            **options(
                v_head_dim=None if v_width == width else v_width,
                window_tokens=config.value(self.window),
                chunk_tokens=config.value(self.chunk),
                sink_logits=bool(config.value(self.sink_logits)),
                borrows_cache=bool(self.borrows_cache and self.borrows_cache(config, layer)),
                one_projection=bool(config.value(self.one_projection)),
                qk_norm=self.qk_norm(config) if callable(self.qk_norm) else self.qk_norm,
                bias=biases(config, self.bias),
                output_gate=bool(config.value(self.output_gate)),
                head_gate=bool(config.value(self.head_gate)),
                selection=self.selection and self.selection(config, layer),
            ),
        }


def biases(config: Config, table: Biases, names: dict[str, str] | None = None) -> list[str]:
    """Projections that have a bias, in the order q, k, v, o."""
    there = "".join(projections for flag, projections in table if config.value(flag))
    return [(names or {}).get(letter, letter) for letter in "qkvo" if letter in there]


@dataclass(frozen=True, kw_only=True)
class Latent:
    """MLA. In its bias table q stands for q_a, k for kv_a."""

    v_head_dim: Reference = "v_head_dim"
    bias: Biases = (("attention_bias", "qko"),)
    output_gate: Reference = False
    selection: Callable[[Config, int], Part | None] | None = None

    def spec(self, config: Config, layer: int) -> Part:
        rank = config.get("q_lora_rank")
        bias = biases(config, self.bias, {"q": "q_a", "k": "kv_a"})
        return {
            "kind": "mla",
            "n_heads": config.count("num_attention_heads"),
            **options(q_lora_rank=rank),
            "kv_lora_rank": config.count("kv_lora_rank"),
            "qk_nope_head_dim": config.count("qk_nope_head_dim"),
            "qk_rope_head_dim": config["qk_rope_head_dim"],
            "v_head_dim": config.value(self.v_head_dim),
            **options(
                bias=[name for name in bias if rank or name != "q_a"],
                output_gate=bool(config.value(self.output_gate)),
                selection=self.selection and self.selection(config, layer),
            ),
        }


@dataclass(frozen=True, kw_only=True)
class Mamba1:
    inner: Reference = lambda config: config["mamba_expand"] * config.count("hidden_size")
    state: Reference = "mamba_d_state"
    kernel: Reference = "mamba_d_conv"
    dt_rank: Reference = "mamba_dt_rank"
    conv_bias: Reference = "mamba_conv_bias"
    proj_bias: Reference = "mamba_proj_bias"
    input_norms: bool = False

    def spec(self, config: Config, layer: int) -> Part:
        rank = config.value(self.dt_rank)
        return {
            "kind": "mamba-1",
            "d_inner": config.value(self.inner),
            "d_state": config.value(self.state),
            "conv_kernel": config.value(self.kernel),
            "dt_rank": -(-config.count("hidden_size") // 16) if rank in ("auto", None) else rank,
            **({} if config.value(self.conv_bias) else {"conv_bias": False}),
            **options(proj_bias=bool(config.value(self.proj_bias)), input_norms=self.input_norms),
        }


@dataclass(frozen=True, kw_only=True)
class Mamba2:
    heads: Reference = "mamba_n_heads"
    head_dim: Reference = "mamba_d_head"
    groups: Reference = "mamba_n_groups"
    state: Reference = "mamba_d_state"
    kernel: Reference = "mamba_d_conv"
    conv_bias: Reference = "mamba_conv_bias"
    proj_bias: Reference = "mamba_proj_bias"
    gated_norm: Reference = True

    def spec(self, config: Config, layer: int) -> Part:
        heads, width = config.value(self.heads), config.value(self.head_dim)
        if width == "auto":
            width = (config.get("mamba_d_ssm") or config["mamba_expand"] * config.count("hidden_size")) // heads
        return {
            "kind": "mamba-2",
            "n_heads": heads,
            "head_dim": width,
            "n_groups": config.value(self.groups),
            "d_state": config.value(self.state),
            "conv_kernel": config.value(self.kernel),
            **({} if config.value(self.conv_bias) else {"conv_bias": False}),
            **options(proj_bias=bool(config.value(self.proj_bias))),
            **({} if config.value(self.gated_norm) else {"gated_norm": False}),
            **options(kernel_chunk_tokens=config.get("mamba_chunk_size") or config.get("chunk_size")),
        }


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Any other kind: its keys, each with the field that it is read from."""

    kind: str
    fields: dict[str, Reference]

    def spec(self, config: Config, layer: int) -> Part:
        values = {key: config.value(reference) for key, reference in self.fields.items()}
        return {"kind": self.kind, **{key: value for key, value in values.items() if value is not False}}


@dataclass(frozen=True, kw_only=True)
class Dense:
    width: Reference | Callable[[Config, int], int] = "intermediate_size"
    gated: bool = True
    bias: Reference = False

    def spec(self, config: Config, layer: int) -> Part:
        width = config.value(self.width)
        if isinstance(width, list):
            width = width[layer]
        if not isinstance(width, int):
            config.refuse(str(self.width), f"'{self.width}' must be a whole number, not {width!r}")
        return {
            "kind": "dense",
            "intermediate_size": width,
            **({} if self.gated else {"gated": False}),
            **options(bias=bool(config.value(self.bias))),
        }


@dataclass(frozen=True, kw_only=True)
class Moe:
    """`shared` counts experts of the routed width; `shared_width` is the width of all of them together."""

    experts: Reference = "num_experts"
    per_token: Reference = "num_experts_per_tok"
    width: Reference = "moe_intermediate_size"
    shared: Reference = None
    shared_width: Reference = None
    shared_gate: bool = False
    gated: bool = True
    zero_experts: Reference = 0
    expert_bias: bool = False
    router_bias: Reference = False
    latent: Reference = None

    def spec(self, config: Config, layer: int) -> Part:
        width, shared_width = config.value(self.width), config.value(self.shared_width)
        return {
            "kind": "moe",
            "experts": config.value(self.experts),
            "experts_per_token": config.value(self.per_token),
            "intermediate_size": width,
            **({} if self.gated else {"gated": False}),
            **options(
                shared_experts=config.value(self.shared),
                shared_intermediate_size=shared_width,
                shared_gate=self.shared_gate,
                zero_experts=config.value(self.zero_experts),
                latent_size=config.value(self.latent),
                expert_bias=self.expert_bias,
                router_bias=bool(config.value(self.router_bias)),
            ),
        }

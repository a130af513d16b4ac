"""Packaged specs in the words of transformers' config classes.

What a spec doesn't say stays the class's default: rope, activation functions and the like, none of which changes a
shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Fields = dict[str, Any]


class Spec:
    """A spec's data with its layers written out, for reading single fields."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.layers = [layer for entry in data["layers"] for layer in _written_out(entry)]

    def attentions(self, *kinds: str) -> list[Fields]:
        """Attentions of these kinds, or all, in the order of the layers."""
        found = [attention for layer in self.layers for attention in _listed(layer.get("attention"))]
        return [attention for attention in found if not kinds or attention["kind"] in kinds]

    def attention(self, *kinds: str) -> Fields:
        return self.attentions(*kinds)[0]

    def feed_forward(self, kind: str) -> Fields:
        """The first of that kind; empty where there is none."""
        found = [part for layer in self.layers for part in _listed(layer.get("feed_forward"))]
        return next((part for part in found if part["kind"] == kind), {})

    def feed_forward_kinds(self) -> list[str]:
        return [_listed(layer["feed_forward"])[0]["kind"] for layer in self.layers]

    def dense_layers_first(self) -> int:
        """Layers before the first mixture of experts."""
        return self.feed_forward_kinds().index("moe")

    def layer_types(self, name: Callable[[Fields], str]) -> list[str]:
        return [name(_listed(layer["attention"])[0]) for layer in self.layers]


def _written_out(entry: Fields) -> Iterator[Fields]:
    for _ in range(entry.get("repeat", 1)):
        if "pattern" in entry:
            for layer in entry["pattern"]:
                yield from _written_out(layer)
        else:
            yield entry


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def kv_heads(attention: Fields) -> int:
    return attention.get("n_kv_heads", 1 if attention["kind"] == "mqa" else attention["n_heads"])


def model(spec: Spec) -> Fields:
    data = spec.data
    return {
        "hidden_size": data["hidden_size"],
        "vocab_size": data["vocab_size"],
        "tie_word_embeddings": data["tied_embeddings"],
        "max_position_embeddings": data["max_context_tokens"],
        "num_hidden_layers": len(spec.layers),
    }


def grouped(spec: Spec, attention: Fields | None = None) -> Fields:
    attention = attention or spec.attention("mha", "gqa", "mqa")
    return {
        "num_attention_heads": attention["n_heads"],
        "num_key_value_heads": kv_heads(attention),
        "head_dim": attention["head_dim"],
    }


def dense(spec: Spec) -> Fields:
    return {"intermediate_size": spec.feed_forward("dense")["intermediate_size"]}


def decoder(spec: Spec) -> Fields:
    """Llama's shape: Phi-3, Cohere, Qwen2 and Qwen3 have it too."""
    return {**model(spec), **grouped(spec), **dense(spec)}


def mixtral(spec: Spec) -> Fields:
    moe = spec.feed_forward("moe")
    return {
        **model(spec),
        **grouped(spec),
        "intermediate_size": moe["intermediate_size"],
        "num_local_experts": moe["experts"],
        "num_experts_per_tok": moe["experts_per_token"],
    }


def qwen_moe(spec: Spec) -> Fields:
    moe = spec.feed_forward("moe")
    return {
        **model(spec),
        **grouped(spec),
        "num_experts": moe["experts"],
        "num_experts_per_tok": moe["experts_per_token"],
        "moe_intermediate_size": moe["intermediate_size"],
        "shared_expert_intermediate_size": moe.get("shared_experts", 0) * moe["intermediate_size"],
    }


def delta_net(spec: Spec) -> Fields:
    linear = spec.attention("gated-deltanet")
    return {
        "linear_num_key_heads": linear["n_k_heads"],
        "linear_num_value_heads": linear["n_v_heads"],
        "linear_key_head_dim": linear["k_head_dim"],
        "linear_value_head_dim": linear["v_head_dim"],
        "linear_conv_kernel_dim": linear["conv_kernel"],
        "layer_types": spec.layer_types(
            lambda a: "linear_attention" if a["kind"] == "gated-deltanet" else "full_attention"
        ),
    }


def llama4(spec: Spec) -> Fields:
    moe, kinds = spec.feed_forward("moe"), spec.feed_forward_kinds()
    return {
        **mixtral(spec),
        "intermediate_size_mlp": spec.feed_forward("dense").get("intermediate_size", moe["intermediate_size"]),
        "moe_layers": [position for position, kind in enumerate(kinds) if kind == "moe"],
    }


def windowed(spec: Spec) -> Fields:
    """The two attentions of Gemma: most layers have a window."""
    local = next(a for a in spec.attentions() if "window_tokens" in a)
    return {
        "sliding_window": local["window_tokens"],
        "layer_types": spec.layer_types(lambda a: "sliding_attention" if "window_tokens" in a else "full_attention"),
    }


def gemma4(spec: Spec) -> Fields:
    local = next(a for a in spec.attentions() if "window_tokens" in a)
    everywhere = next(a for a in spec.attentions() if "window_tokens" not in a)
    moe = spec.feed_forward("moe")
    experts = {
        "enable_moe_block": True,
        "num_experts": moe.get("experts"),
        "top_k_experts": moe.get("experts_per_token"),
        "moe_intermediate_size": moe.get("intermediate_size"),
    }
    return {
        **model(spec),
        **grouped(spec, local),
        **dense(spec),
        **windowed(spec),
        **(experts if moe else {}),
        "global_head_dim": everywhere["head_dim"],
        "num_global_key_value_heads": kv_heads(everywhere),
        "attention_k_eq_v": everywhere.get("one_projection", False),
        "hidden_size_per_layer_input": 0,
    }


def falcon(spec: Spec) -> Fields:
    attention = spec.attention()
    grouped_heads = kv_heads(attention) > 1
    return {
        **model(spec),
        "num_attention_heads": attention["n_heads"],
        "num_kv_heads": kv_heads(attention),
        "new_decoder_architecture": grouped_heads,
        "ffn_hidden_size": spec.feed_forward("dense")["intermediate_size"],
    }


def mpt(spec: Spec) -> Fields:
    hidden = spec.data["hidden_size"]
    return {
        "d_model": hidden,
        "n_heads": spec.attention()["n_heads"],
        "n_layers": len(spec.layers),
        "vocab_size": spec.data["vocab_size"],
        "expansion_ratio": spec.feed_forward("dense")["intermediate_size"] // hidden,
    }


def gpt_bigcode(spec: Spec) -> Fields:
    return {
        "n_embd": spec.data["hidden_size"],
        "n_layer": len(spec.layers),
        "n_head": spec.attention()["n_heads"],
        "n_inner": spec.feed_forward("dense")["intermediate_size"],
        "n_positions": spec.data["position_rows"],
        "vocab_size": spec.data["vocab_size"],
    }


def jamba(spec: Spec) -> Fields:
    mamba, moe = spec.attention("mamba-1"), spec.feed_forward("moe")
    types = spec.layer_types(lambda a: a["kind"])
    experts = spec.feed_forward_kinds()
    return {
        **model(spec),
        **{k: v for k, v in grouped(spec).items() if k != "head_dim"},
        **dense(spec),
        "num_experts": moe["experts"],
        "num_experts_per_tok": moe["experts_per_token"],
        "attn_layer_offset": types.index("gqa"),
        "attn_layer_period": len(types) // types.count("gqa"),
        "expert_layer_offset": experts.index("moe"),
        "expert_layer_period": len(experts) // experts.count("moe"),
        "mamba_d_state": mamba["d_state"],
        "mamba_d_conv": mamba["conv_kernel"],
        "mamba_expand": mamba["d_inner"] // spec.data["hidden_size"],
        "mamba_dt_rank": mamba["dt_rank"],
    }


def nemotron_h(spec: Spec) -> Fields:
    mamba, moe = spec.attention("mamba-2"), spec.feed_forward("moe")
    names = {"mamba-2": "linear_attention", "gqa": "full_attention", "dense": "mlp", "moe": "moe"}
    experts = {
        "n_routed_experts": moe.get("experts"),
        "num_experts_per_tok": moe.get("experts_per_token"),
        "moe_intermediate_size": moe.get("intermediate_size"),
        "moe_shared_expert_intermediate_size": moe.get("shared_intermediate_size"),
    }
    fields = {
        **model(spec),
        **grouped(spec),
        **(experts if moe else dense(spec)),
        "layers_block_type": [
            names[(layer.get("attention") or layer["feed_forward"])["kind"]] for layer in spec.layers
        ],
        "mamba_num_heads": mamba["n_heads"],
        "mamba_head_dim": mamba["head_dim"],
        "n_groups": mamba["n_groups"],
        "ssm_state_size": mamba["d_state"],
        "conv_kernel": mamba["conv_kernel"],
    }
    del fields["num_hidden_layers"]
    return fields


def latent(spec: Spec) -> Fields:
    mla = spec.attention("mla")
    names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return {
        **model(spec),
        **{name: mla.get(name) for name in names},
        "num_attention_heads": mla["n_heads"],
        "num_key_value_heads": mla["n_heads"],
    }


def routed(spec: Spec) -> Fields:
    """DeepSeek's names for a mixture of experts behind some dense layers."""
    moe, first = spec.feed_forward("moe"), spec.dense_layers_first()
    return {
        "intermediate_size": spec.feed_forward("dense").get("intermediate_size", moe["intermediate_size"]),
        "n_routed_experts": moe["experts"],
        "num_experts_per_tok": moe["experts_per_token"],
        "moe_intermediate_size": moe["intermediate_size"],
        "n_shared_experts": moe.get("shared_experts", 0),
        "first_k_dense_replace": first,
        "mlp_layer_types": ["dense"] * first + ["sparse"] * (len(spec.layers) - first),
    }


def deepseek(spec: Spec) -> Fields:
    return {**latent(spec), **routed(spec)}


def deepseek_sparse(spec: Spec) -> Fields:
    selections = [attention["selection"] for attention in spec.attentions()]
    indexer = selections[0]["indexer"]
    return {
        **deepseek(spec),
        "index_topk": selections[0]["top_k"],
        "index_n_heads": indexer["heads"],
        "index_head_dim": indexer["head_dim"],
        "indexer_types": ["shared" if selection["indexer"] == "shared" else "full" for selection in selections],
    }


def deepseek_v4(spec: Spec) -> Fields:
    first = spec.attention()
    selecting = next(a for a in spec.attentions() if "top_k" in a)
    names = {None: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    same = ("head_dim", "q_lora_rank", "o_groups", "o_lora_rank")
    return {
        **model(spec),
        **{name: first[name] for name in same},
        **{
            name: value
            for name, value in routed(spec).items()
            if name not in ("first_k_dense_replace", "mlp_layer_types")
        },
        "num_attention_heads": first["n_heads"],
        "sliding_window": first["window_tokens"],
        "index_n_heads": selecting["index_heads"],
        "index_head_dim": selecting["index_head_dim"],
        "index_topk": selecting["top_k"],
        "layer_types": spec.layer_types(lambda a: names[a.get("compress_ratio")]),
    }


def kimi_linear(spec: Spec) -> Fields:
    kda = spec.attention("kda")
    return {
        **deepseek(spec),
        "num_local_experts": spec.feed_forward("moe")["experts"],
        "layer_types": spec.layer_types(lambda a: "linear_attention" if a["kind"] == "kda" else "full_attention"),
        "linear_head_dim": kda["head_dim"],
        "linear_num_heads": kda["n_heads"],
        "linear_conv_kernel_dim": kda["conv_kernel"],
    }


def longcat(spec: Spec) -> Fields:
    moe = spec.feed_forward("moe")
    fields = {
        **latent(spec),
        "num_layers": len(spec.layers),
        "ffn_hidden_size": spec.feed_forward("dense")["intermediate_size"],
        "n_routed_experts": moe["experts"],
        "moe_topk": moe["experts_per_token"],
        "zero_expert_num": moe["zero_experts"],
        "expert_ffn_hidden_size": moe["intermediate_size"],
    }
    del fields["num_hidden_layers"]
    return fields


def glm4_moe(spec: Spec) -> Fields:
    attention = spec.attention()
    return {
        **model(spec),
        **grouped(spec),
        **routed(spec),
        "attention_bias": "bias" in attention,
        "use_qk_norm": "qk_norm" in attention,
    }


def minimax_m1(spec: Spec) -> Fields:
    return {
        **mixtral(spec),
        "layer_types": spec.layer_types(lambda a: "linear_attention" if a["kind"] == "lightning" else "full_attention"),
    }


def minimax_m3(spec: Spec) -> Fields:
    indexer = next(a["selection"]["indexer"] for a in spec.attentions() if "selection" in a)
    moe = spec.feed_forward("moe")
    return {
        **mixtral(spec),
        "dense_intermediate_size": spec.feed_forward("dense")["intermediate_size"],
        "shared_intermediate_size": moe["shared_experts"] * moe["intermediate_size"],
        "mlp_layer_types": routed(spec)["mlp_layer_types"],
        "layer_types": spec.layer_types(lambda a: "minimax_m3_sparse" if "selection" in a else "full_attention"),
        "index_n_heads": indexer["heads"],
        "index_head_dim": indexer["head_dim"],
    }


CLASSES: tuple[tuple[str, Callable[[Spec], Fields], str], ...] = (
    ("LlamaConfig", decoder, "llama-2-7b llama-2-13b llama-2-70b llama-3-8b llama-3-70b deepseek-llm-67b"),
    ("LlamaConfig", decoder, "llama-3.1-8b llama-3.1-70b llama-3.1-405b"),
    ("Llama4TextConfig", llama4, "llama-4-scout llama-4-maverick"),
    ("MistralConfig", decoder, "mistral-7b-v0.1"),
    ("MixtralConfig", mixtral, "mixtral-8x7b mixtral-8x22b"),
    ("Qwen2Config", decoder, "qwen2.5-7b qwen2.5-72b"),
    ("Qwen3Config", decoder, "qwen3-8b qwen3-32b"),
    ("Qwen3MoeConfig", qwen_moe, "qwen3-30b-a3b qwen3-235b-a22b"),
    ("Qwen3NextConfig", lambda s: qwen_moe(s) | delta_net(s), "qwen3-next-80b-a3b"),
    ("Qwen3_5MoeTextConfig", lambda s: qwen_moe(s) | delta_net(s), "qwen3.5-35b-a3b qwen3.5-397b-a17b"),
    ("Qwen3_5TextConfig", lambda s: decoder(s) | delta_net(s), "qwen3.5-27b"),
    ("Gemma2Config", lambda s: decoder(s) | windowed(s), "gemma-2-27b"),
    ("Gemma3TextConfig", lambda s: decoder(s) | windowed(s), "gemma-3-27b"),
    ("Gemma4TextConfig", gemma4, "gemma-4-31b gemma-4-26b-a4b"),
    ("FalconConfig", falcon, "falcon-7b falcon-40b"),
    ("MptConfig", mpt, "mpt-7b"),
    ("GPTBigCodeConfig", gpt_bigcode, "starcoder-15.5b"),
    ("Phi3Config", decoder, "phi-3-mini-4k"),
    ("CohereConfig", decoder, "command-r-v01"),
    ("JambaConfig", jamba, "jamba-v0.1"),
    ("NemotronHConfig", nemotron_h, "nemotron-h-8b nemotron-h-56b nemotron-3-nano-30b-a3b"),
    ("DeepseekV2Config", deepseek, "deepseek-v2 deepseek-v2-lite"),
    ("DeepseekV3Config", deepseek, "deepseek-v3 deepseek-r1 deepseek-v3.1 kimi-k2 mistral-large-3"),
    ("DeepseekV32Config", deepseek_sparse, "deepseek-v3.2"),
    ("DeepseekV4Config", deepseek_v4, "deepseek-v4-flash deepseek-v4-pro"),
    ("KimiLinearConfig", kimi_linear, "kimi-linear-48b-a3b"),
    ("LongcatFlashConfig", longcat, "longcat-flash"),
    ("MiniCPM3Config", lambda s: latent(s) | dense(s), "minicpm3-4b"),
    ("Glm4MoeConfig", glm4_moe, "glm-4.5 glm-4.5-air"),
    ("Glm4MoeLiteConfig", deepseek, "glm-4.7-flash"),
    ("GlmMoeDsaConfig", deepseek_sparse, "glm-5 glm-5.2"),
    ("Mistral4Config", deepseek, "mistral-small-4-119b"),
    ("GptOssConfig", lambda s: mixtral(s) | windowed(s), "gpt-oss-20b gpt-oss-120b"),
    ("MiniMaxConfig", minimax_m1, "minimax-m1"),
    ("MiniMaxM2Config", mixtral, "minimax-m2"),
    ("MiniMaxM3VLTextConfig", minimax_m3, "minimax-m3"),
)
"""Config class, its fields from a spec, and the specs that it fits."""

BY_NAME = {name: (config, fields) for config, fields, names in CLASSES for name in names.split()}
"""Config class and fields by the spec's name; specs without a class are missing."""

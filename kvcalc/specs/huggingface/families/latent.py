"""Families over latent attention (MLA), with and without an indexer (DSA), and DeepSeek-V4's compressed attention."""

from dataclasses import replace
from typing import Any

from kvcalc.specs.huggingface.config import Config
from kvcalc.specs.huggingface.families.dense import always_full
from kvcalc.specs.huggingface.families.moe import dense_then_sparse, mixed, shared_bias, shared_times_width
from kvcalc.specs.huggingface.family import Family
from kvcalc.specs.huggingface.mtp import like_the_last, window_only
from kvcalc.specs.huggingface.rows import Dense, Latent, Mixing, Moe, Part, matrix, options, vector
from kvcalc.specs.huggingface.rules import constant, first_dense, listed

SHARED_EXPERTS = Moe(shared="num_shared_experts")
INDEXED = listed(constant("indexed_attention"))


def dsa(config: Config, layer: int) -> Part:
    """DeepSeek sparse attention; `indexer_types` says which layers use an earlier layer's selection."""
    owners = indexer_types(config)
    indexer = {
        "heads": config.count("index_n_heads"),
        "head_dim": config.count("index_head_dim"),
        **options(q_lora_rank=config.get("q_lora_rank")),
    }
    return {"top_k": config.count("index_topk"), "indexer": "shared" if owners[layer] == "shared" else indexer}


def indexer_types(config: Config) -> list[str]:
    """Stated, or GLM-5.2's pattern letters, or its frequency and offset; HY-V4 has its own rule."""
    count, stated, letters = (
        config.count("num_hidden_layers"),
        config.get("indexer_types"),
        config.get("index_topk_pattern"),
    )
    if stated is not None:
        return list(stated)
    if isinstance(letters, str):
        return [{"F": "full", "S": "shared"}.get(letter, letter) for letter in letters]
    if config.model_type == "hy_v4":
        return ["full" if index == 0 or (index - 1) % 4 == 0 else "shared" for index in range(count)]
    frequency, offset = max(config.get("index_topk_freq", 1), 1), config.get("index_skip_topk_offset", 2)
    return ["full" if max(index - offset + 1, 0) % frequency == 0 else "shared" for index in range(count)]


def deepseek_v2_other(config: Config, layer: int) -> list[Part]:
    sparse = config.get("num_shared_experts") and first_dense()(config)[layer] == "sparse"
    return shared_bias("mlp_bias", shared_times_width("num_shared_experts"))(config, layer) if sparse else []


def hyper_connections(config: Config, streams: int, outputs: int, scales: int) -> list[Part]:
    """Before attention and before the feed-forward: a projection of all residual streams, its bias and scales."""
    width = streams * config.count("hidden_size")
    return [
        {**matrix("hyper_connection", width, outputs), "count": 2},
        {**vector("hyper_connection_bias_and_scales", outputs + scales), "count": 2},
    ]


def hyper_head(config: Config) -> list[Part]:
    streams = config.count("hc_mult")
    return [
        matrix("hyper_connection_head", streams * config.count("hidden_size"), streams),
        vector("hyper_connection_head_bias_and_scale", streams + 1),
    ]


def hy_v4_other(config: Config, layer: int) -> list[Part]:
    streams = config.count("hc_mult")
    sinks = vector("sink_logits", config.count("num_attention_heads"))
    return [sinks, *hyper_connections(config, streams, 2 * streams, 2)]


def v4_other(config: Config, layer: int) -> list[Part]:
    streams = config.count("hc_mult")
    bias = 2 * config.count("moe_intermediate_size") + config.count("hidden_size")
    shared = [vector("shared_bias", bias)] if config.get("mlp_bias") else []
    return [*shared, *hyper_connections(config, streams, (2 + streams) * streams, 3)]


def v4_rate(kind: str, otherwise: int) -> Any:
    """Tokens that become one entry: `compress_rates` by layer type."""
    return lambda config: config.part("compress_rates").get(kind, otherwise)


def v4_layer_types(config: Config) -> list[str]:
    """The publisher writes ratios (0 for a window alone, a last one for the MTP layer), transformers names."""
    count, ratios = config.count("num_hidden_layers"), config.get("compress_ratios")
    if ratios is not None:
        names = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
        return [names.get(ratio, f"compress ratio {ratio}") for ratio in ratios[:count]]
    interleaved = ["heavily_compressed_attention", "compressed_sparse_attention"] * count
    return (["heavily_compressed_attention"] * min(count, 2) + interleaved)[:count]


def v4_placement(config: Config) -> list[str]:
    hashed = config.get("num_hash_layers", 3)
    return first_dense(lambda _: hashed, dense="hash_moe", sparse="moe")(config)


V4_FIELDS: dict[str, Any] = {
    "n_heads": "num_attention_heads",
    "head_dim": "head_dim",
    "qk_rope_head_dim": lambda config: (
        config.get("qk_rope_head_dim") or round(config["head_dim"] * (config.get("partial_rotary_factor") or 0.125))
    ),
    "q_lora_rank": "q_lora_rank",
    "o_groups": "o_groups",
    "o_lora_rank": "o_lora_rank",
    "window_tokens": "sliding_window",
}
V4_CSA = {
    "compress_ratio": v4_rate("compressed_sparse_attention", 4),
    "overlap": True,
    "top_k": "index_topk",
    "index_heads": "index_n_heads",
    "index_head_dim": "index_head_dim",
}
V4_HCA = {"compress_ratio": v4_rate("heavily_compressed_attention", 128)}

DEEPSEEK_V3 = Family(
    attention=Latent(),
    feed_forward=mixed(SHARED_EXPERTS),
    mlp_types=first_dense(),
    mtp=like_the_last,
    modelled={"moe_layer_freq": (1,)},
    unread=("head_dim", "num_key_value_heads", "ep_size", "mlp_bias"),
)
DEEPSEEK_V32 = replace(
    DEEPSEEK_V3,
    attention={"indexed_attention": Latent(selection=dsa)},
    layer_types=INDEXED,
    cache_formats={"index": "fp8_index"},
    mlp_types=listed(first_dense(), "mlp_layer_types"),
    unread=(
        "head_dim",
        "num_key_value_heads",
        "ep_size",
        "first_k_dense_replace",
        "mlp_bias",
        "index_share_for_mtp_iteration",
        "index_skip_topk_offset",
        "index_topk_freq",
        "index_topk_pattern",
    ),
)

FAMILIES: dict[str, Family] = {
    "deepseek_v2": replace(
        DEEPSEEK_V3,
        feed_forward=mixed(SHARED_EXPERTS, Dense(bias="mlp_bias")),
        other=deepseek_v2_other,
        mtp=None,
        unread=("head_dim", "num_key_value_heads", "ep_size"),
    ),
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v32": DEEPSEEK_V32,
    "glm_moe_dsa": DEEPSEEK_V32,
    "glm4_moe_lite": replace(DEEPSEEK_V3, mlp_types=dense_then_sparse(1)),
    "axk1": replace(
        DEEPSEEK_V3,
        mlp_types=dense_then_sparse(1),
        norms=lambda config, layer: 3 if dense_then_sparse(1)(config)[layer] == "sparse" else 2,
        mtp=None,
    ),
    "hy_v4": replace(
        DEEPSEEK_V32,
        attention={"indexed_attention": Latent(selection=dsa, output_gate=True)},
        mlp_types=dense_then_sparse(1),
        other=hy_v4_other,
        cache_formats={},
        model_other=hyper_head,
        mtp=None,
    ),
    # a layer is two attentions and two dense networks, with one mixture as a shortcut beside them
    "longcat_flash": Family(
        attention=(Latent(), Latent()),
        feed_forward=(
            Dense(),
            Dense(),
            Moe(zero_experts="zero_expert_num"),
        ),
        layer_types=always_full,
        norms=4,
        modelled={"zero_expert_type": ("identity",)},
        unread=("head_dim", "num_key_value_heads", "mla_scale_q_lora", "mla_scale_kv_lora", "attention_method"),
    ),
    "deepseek_v4": Family(
        attention={
            "sliding_attention": Mixing(kind="compressed", fields=V4_FIELDS),
            "heavily_compressed_attention": Mixing(kind="compressed", fields=V4_FIELDS | V4_HCA),
            "compressed_sparse_attention": Mixing(kind="compressed", fields=V4_FIELDS | V4_CSA),
        },
        feed_forward={"moe": SHARED_EXPERTS, "hash_moe": SHARED_EXPERTS},
        layer_types=listed(v4_layer_types),
        mlp_types=listed(v4_placement, "mlp_layer_types"),
        other=v4_other,
        model_other=hyper_head,
        modelled={"num_shared_experts": (1,)},
        mtp=window_only,
        cache_formats={"kv": "fp8_ds_v4", "index": "fp8_index"},
        unread=("num_key_value_heads", "compress_rope_theta", "num_hash_layers", "attention_bias"),
    ),
}

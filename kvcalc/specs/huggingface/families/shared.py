"""Gemma 3n and Gemma 4: layers that use an earlier layer's K and V, two head shapes, and embeddings of every layer."""

from dataclasses import replace
from typing import Any

from kvcalc.specs.huggingface.config import Config
from kvcalc.specs.huggingface.families.dense import GEMMA2, QKVO
from kvcalc.specs.huggingface.family import Family
from kvcalc.specs.huggingface.rows import Dense, Grouped, Moe, Part, matrix, vector
from kvcalc.specs.huggingface.rules import every, listed


def borrows(config: Config, layer: int) -> bool:
    """The last num_kv_shared_layers layers use the K and V of the last layer of their type before them."""
    return layer >= config.count("num_hidden_layers") - (config.get("num_kv_shared_layers") or 0)


def per_layer_embeddings(config: Config) -> list[Part]:
    """One narrow embedding a layer, in one table, and the projection of the token's own embedding beside it."""
    width = config.get("hidden_size_per_layer_input") or 0
    if not width:
        return []
    all_layers = width * config.count("num_hidden_layers")
    rows = config.count("vocab_size_per_layer_input")
    return [
        {**matrix("per_layer_embedding", rows, all_layers), "use": "lookup"},
        matrix("per_layer_model_projection", config.count("hidden_size"), all_layers),
        vector("per_layer_projection_norm", width),
    ]


def per_layer_input(config: Config) -> list[Part]:
    width, hidden = config.get("hidden_size_per_layer_input") or 0, config.count("hidden_size")
    if not width:
        return []
    return [matrix("per_layer_input_gate", hidden, width), matrix("per_layer_projection", width, hidden)]


def gemma3n_layer(config: Config, layer: int) -> list[Part]:
    """AltUp (arXiv 2301.13310) predicts and corrects several streams, LAuReL (arXiv 2411.07501) adds a low rank."""
    hidden, streams, rank = config.count("hidden_size"), config.count("altup_num_inputs"), config.count("laurel_rank")
    return [
        *per_layer_input(config),
        matrix("altup_predict", streams, streams * streams),
        matrix("altup_correct", streams, streams),
        matrix("altup_router", hidden, streams),
        vector("altup_output_scale", hidden),
        matrix("laurel_left", hidden, rank),
        matrix("laurel_right", rank, hidden),
    ]


def gemma3n_model(config: Config) -> list[Part]:
    hidden, streams = config.count("hidden_size"), config.count("altup_num_inputs")
    return [*per_layer_embeddings(config), {**matrix("altup_projections", hidden, hidden), "count": 2 * (streams - 1)}]


def global_override(field: str, published: str, otherwise: Any) -> Any:
    """A dimension of the global layers: the publisher's own key, or transformers' `per_layer_config` by layer index."""

    def value(config: Config) -> Any:
        overrides = {int(layer): options for layer, options in (config.get("per_layer_config") or {}).items()}
        if not overrides:
            stated = config.get(published)
            return stated if stated is not None else config.value(otherwise)
        kinds = listed(every(6))(config)
        full = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
        values = {overrides.get(index, {}).get(field) for index in full}
        others = [index for index in overrides if index not in full]
        known = {"head_dim", "num_key_value_heads"}
        if len(values) > 1 or others or any(set(options) - known for options in overrides.values()):
            config.refuse("per_layer_config", "'per_layer_config' gives layers of one type different dimensions")
        stated = values.pop() if values else None
        return stated if stated is not None else config.value(field)

    return value


def global_kv_heads(config: Config) -> Any:
    """num_global_key_value_heads counts only where K and V share a projection."""
    if config.get("per_layer_config") or config.get("attention_k_eq_v"):
        return global_override("num_key_value_heads", "num_global_key_value_heads", "num_key_value_heads")(config)
    return config.get("num_key_value_heads")


def gemma4_width(config: Config) -> list[int]:
    """Layers that borrow a cache may have a feed-forward twice as wide."""
    width, double = config.count("intermediate_size"), config.get("use_double_wide_mlp")
    count = config.count("num_hidden_layers")
    return [width * (2 if double and borrows(config, layer) else 1) for layer in range(count)]


def last_is_global(config: Config) -> list[str]:
    kinds = listed(every(6))(config)
    return [*kinds[:-1], "full_attention"]


def gemma4_layer(config: Config, layer: int) -> list[Part]:
    routed: list[Part] = []
    if config.get("enable_moe_block"):
        routed = [vector("router_scales", config.count("hidden_size") + config.count("num_experts"))]
    return [*per_layer_input(config), *routed]


def gemma4_norms(config: Config, layer: int) -> int:
    return 4 + (1 if config.get("hidden_size_per_layer_input") else 0) + (3 if config.get("enable_moe_block") else 0)


K_IS_V = (
    ("attention_bias", "qko"),
    (lambda config: config.get("attention_bias") and not config.get("attention_k_eq_v"), "v"),
)
LOCAL = Grouped(bias=QKVO, qk_norm="head", window="sliding_window", borrows_cache=borrows)
GLOBAL = Grouped(bias=QKVO, qk_norm="head", borrows_cache=borrows)
GEMMA4 = Family(
    attention={
        "sliding_attention": LOCAL,
        "full_attention": replace(
            GLOBAL,
            kv_heads=global_kv_heads,
            head_dim=global_override("head_dim", "global_head_dim", lambda config: 512),
            one_projection="attention_k_eq_v",
            bias=K_IS_V,
        ),
    },
    feed_forward={
        "dense": Dense(width=gemma4_width),
        "beside": (Dense(width=gemma4_width), Moe()),
    },
    layer_types=last_is_global,
    mlp_types=lambda config: (
        ["beside" if config.get("enable_moe_block") else "dense"] * config.count("num_hidden_layers")
    ),
    norms=gemma4_norms,
    other=gemma4_layer,
    model_other=per_layer_embeddings,
    modelled={"use_bidirectional_attention": (None, False, "vision")},
    unread=("num_global_key_value_heads", "global_head_dim", "vocab_size_per_layer_input", "num_experts"),
)

FAMILIES: dict[str, Family] = {
    "gemma3n_text": replace(
        GEMMA2,
        attention={"sliding_attention": LOCAL, "full_attention": GLOBAL},
        layer_types=listed(every(5)),
        norms=7,
        other=gemma3n_layer,
        model_other=gemma3n_model,
        unread=("altup_active_idx", "altup_coef_clip", "altup_correct_scale", "activation_sparsity_pattern"),
    ),
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
}

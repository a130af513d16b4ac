"""Families of mixtures of experts over grouped attention."""

from dataclasses import replace
from typing import Any

from kvcalc.specs.huggingface.config import Config
from kvcalc.specs.huggingface.families.dense import QKV, QKVO, WINDOW_FLAGS, windowed
from kvcalc.specs.huggingface.family import Family
from kvcalc.specs.huggingface.mtp import like_the_last
from kvcalc.specs.huggingface.rows import Dense, Grouped, Moe, Part, vector
from kvcalc.specs.huggingface.rules import (
    by_index,
    constant,
    every,
    first_dense,
    listed,
    sparse_step,
    when,
)

SPARSE = constant("sparse")
WIDE = Moe(width="intermediate_size")  # experts as wide as the config's intermediate_size


def mixed(moe: Moe, dense: Dense | None = None) -> dict[str, Any]:
    return {"sparse": moe, "dense": dense or Dense()}


def shared_bias(flag: str, width: Any) -> Any:
    """Biases of the shared network: up and gate, and down."""

    def other(config: Config, layer: int) -> list[Part]:
        if not config.get(flag):
            return []
        return [vector("shared_bias", 2 * config.value(width) + config.count("hidden_size"))]

    return other


def ernie_placement(config: Config) -> list[str]:
    """Every moe_layer_interval-th layer between the start and the end index."""
    count, interval = config.count("num_hidden_layers"), config.get("moe_layer_interval") or 1
    start, end = config.get("moe_layer_start_index") or 0, config.get("moe_layer_end_index")
    last = count - 1 if end in (None, -1) else end
    return ["sparse" if (index + 1) % interval == 0 and start <= index <= last else "dense" for index in range(count)]


def llama4_attention(config: Config) -> list[str]:
    """Layers with rotary positions attend in chunks, those without attend everything."""
    count, interval = config.count("num_hidden_layers"), config.get("no_rope_layer_interval") or 4
    rotary = config.get("no_rope_layers") or [int((index + 1) % interval != 0) for index in range(count)]
    return ["chunked_attention" if rotary[index] else "full_attention" for index in range(count)]


def llama4_placement(config: Config) -> list[str]:
    step, stated = config.get("interleave_moe_layer_step") or 1, config.get("moe_layers")
    count = config.count("num_hidden_layers")
    sparse = stated if stated is not None else range(step - 1, count, step)
    return ["sparse" if index in sparse else "dense" for index in range(count)]


def qwen_moe_windows(config: Config) -> list[str]:
    """Qwen2-MoE: every other layer below max_window_layers, if windows are switched on."""
    on, limit = config.get("use_sliding_window"), config.get("max_window_layers") or 0
    return [
        "sliding_attention" if on and index % 2 == 0 and index < limit else "full_attention"
        for index in range(config.count("num_hidden_layers"))
    ]


def cohere2_moe_windows(config: Config) -> list[str]:
    dense, prefix = config.get("first_k_dense_replace") or 0, config.get("prefix_dense_sliding_window_pattern") or 1
    period = config.get("sliding_window_pattern") or 4
    rest = config.count("num_hidden_layers") - dense
    return [
        "sliding_attention" if (index + 1) % step else "full_attention"
        for count, step in ((dense, prefix), (rest, period))
        for index in range(count)
    ]


def minimax_m2_types(config: Config) -> list[str]:
    """attn_type_list is MiniMax-M1's: 1 for softmax attention, which is all that M2 has."""
    kinds = config.get("attn_type_list") or [1] * config.count("num_hidden_layers")
    return ["full_attention" if kind == 1 else f"attention type {kind}" for kind in kinds]


def minimax_m3_types(config: Config) -> list[str]:
    frequency = config.part("sparse_attention_config").get("sparse_attention_freq")
    if frequency is None:
        return constant("full_attention")(config)
    return ["minimax_m3_sparse" if sparse else "full_attention" for sparse in frequency]


def minimax_m3_placement(config: Config) -> list[str]:
    frequency = config.get("moe_layer_freq")
    return SPARSE(config) if frequency is None else ["sparse" if sparse else "dense" for sparse in frequency]


def block_selection(config: Config, layer: int) -> Part:
    """MiniMax-M3 attends the blocks of tokens that its index scores highest, the local ones among them."""
    published = config.part("sparse_attention_config")

    def value(field: str, published_field: str) -> int:
        return published.get(published_field) or config.count(field)

    return {
        "top_k": value("index_topk_blocks", "sparse_topk_blocks") * value("index_block_size", "sparse_block_size"),
        "indexer": {
            "heads": value("index_n_heads", "sparse_num_index_heads"),
            "head_dim": value("index_head_dim", "sparse_index_dim"),
            "norms": "rms",
            "head_weights": False,
        },
    }


def mimo_windows(config: Config) -> list[str]:
    """hybrid_layer_pattern in the publisher's file: 1 for a windowed layer."""
    pattern = config.get("hybrid_layer_pattern")
    if pattern is not None:
        return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]
    full = by_index(lambda index: index == 0 or (index + 1) % 6 == 0, "full_attention", "sliding_attention")
    return full(config)


def mimo_placement(config: Config) -> list[str]:
    frequency = config.get("moe_layer_freq")
    if isinstance(frequency, list):
        return ["sparse" if sparse else "dense" for sparse in frequency]
    return first_dense(lambda _: 1)(config)


def mimo_window_kv_heads(config: Config) -> int:
    """Windowed layers have twice the KV heads; their other dimensions are those of the full layers."""
    for field in ("num_attention_heads", "head_dim", "v_head_dim"):
        config.require(f"swa_{field}", (config[field],), otherwise=config[field])
    stated = config.get("swa_num_key_value_heads")
    return 2 * config.count("num_key_value_heads") if stated is None else stated


def mimo_window(config: Config) -> Any:
    """transformers writes the window plus one; the publisher's file has the window itself as sliding_window_size."""
    stated = config.get("sliding_window_size")
    return config.get("sliding_window") if stated is None else stated + 1


def heads_per_layer(config: Config, layer: int) -> int:
    stated = config.get("num_attention_heads_per_layer")
    return stated[layer] if stated else config.count("num_attention_heads")


def dense_then_sparse(count: int) -> Any:
    return listed(first_dense(lambda config: config.get("first_k_dense_replace", count)), "mlp_layer_types")


def shared_times_width(count: str, width: str = "moe_intermediate_size") -> Any:
    return lambda config: (config.get(count) or 0) * config.count(width)


OLMOE = Family(attention=Grouped(bias=QKVO, qk_norm="full"), feed_forward=WIDE)
GRANITEMOE = Family(attention=Grouped(bias=QKVO), feed_forward=WIDE)
GRANITEMOESHARED = replace(GRANITEMOE, feed_forward=replace(WIDE, shared_width="shared_intermediate_size"))
GLM4_MOE = Family(
    attention=Grouped(bias=QKV, qk_norm=when("use_qk_norm", lambda config: "head")),
    feed_forward=mixed(Moe(shared="num_shared_experts")),
    mlp_types=first_dense(),
    mtp=like_the_last,
)

QWEN3_MOE = Family(
    attention=Grouped(bias=QKVO, qk_norm="head", window=when("use_sliding_window", "sliding_window")),
    feed_forward=mixed(Moe()),
    mlp_types=sparse_step,
    modelled={"use_qk_norm": (True,)},
    unread=("shared_expert_intermediate_size", *WINDOW_FLAGS),
)

FAMILIES: dict[str, Family] = {
    "mixtral": Family(attention=Grouped(window="sliding_window"), feed_forward=WIDE),
    "qwen2_moe": Family(
        attention=windowed(Grouped(bias=(("qkv_bias", "qkv"),))),
        feed_forward=mixed(Moe(shared_width="shared_expert_intermediate_size", shared_gate=True)),
        layer_types=listed(qwen_moe_windows),
        mlp_types=sparse_step,
        unread=WINDOW_FLAGS,
    ),
    "qwen3_moe": QWEN3_MOE,
    "qwen3_vl_moe_text": replace(QWEN3_MOE, attention=Grouped(bias=QKVO, qk_norm="head", window="sliding_window")),
    "olmoe": OLMOE,
    "flex_olmo": OLMOE,
    "phimoe": Family(
        attention=Grouped(bias=QKVO, window="sliding_window"), feed_forward=WIDE, norm="layer", head_bias="lm_head_bias"
    ),
    "granitemoe": GRANITEMOE,
    "granitemoeshared": GRANITEMOESHARED,
    "granitemoe_swa": replace(
        GRANITEMOESHARED,
        attention=windowed(Grouped(bias=QKVO, sink_logits=True)),
        layer_types=listed(by_index(lambda index: index % 4 == 0, "full_attention", "sliding_attention")),
    ),
    "dbrx": Family(
        attention=Grouped(kv_heads=lambda config: config.part("attn_config").get("kv_n_heads", 1)),
        feed_forward=Moe(
            experts=lambda config: config.part("ffn_config").get("moe_num_experts", 4),
            per_token=lambda config: config.part("ffn_config").get("moe_top_k", 1),
            width=lambda config: config.part("ffn_config").get("ffn_hidden_size", 3584),
        ),
        unread=("num_key_value_heads",),
    ),
    "gpt_oss": Family(
        attention=windowed(Grouped(bias=QKVO, sink_logits=True)),
        feed_forward=replace(WIDE, expert_bias=True, router_bias=True),
        layer_types=listed(every(2)),
    ),
    "minimax_m2": Family(
        attention={
            "full_attention": Grouped(qk_norm=lambda config: "full" if config.get("use_qk_norm", True) else None)
        },
        feed_forward=WIDE,
        layer_types=minimax_m2_types,
        modelled={"qk_norm_type": ("per_layer",), "shared_intermediate_size": (0,)},
        unread=("num_mtp_modules", "mtp_transformer_layers", "use_mtp", "use_routing_bias"),
    ),
    "ernie4_5_moe": Family(
        attention=Grouped(bias=(("use_bias", "qkvo"),)),
        feed_forward=mixed(Moe(shared="num_shared_experts", router_bias=True), Dense(bias="use_bias")),
        mlp_types=ernie_placement,
        head_bias="use_bias",
        other=lambda config, layer: (
            shared_bias("use_bias", shared_times_width("num_shared_experts"))(config, layer)
            if config.get("num_shared_experts") and ernie_placement(config)[layer] == "sparse"
            else []
        ),
    ),
    "afmoe": Family(
        attention=windowed(Grouped(bias=QKVO, qk_norm="head", output_gate=True)),
        feed_forward=mixed(Moe(shared="num_shared_experts", router_bias=True)),
        layer_types=listed(every("global_attn_every_n_layers")),
        mlp_types=first_dense("num_dense_layers"),
        norms=4,
    ),
    "aria_text": Family(
        attention=Grouped(bias=QKVO),
        feed_forward=replace(WIDE, shared="num_shared_experts"),
        other=shared_bias("mlp_bias", shared_times_width("num_shared_experts", "intermediate_size")),
    ),
    "beam": Family(
        attention=windowed(Grouped(bias=QKVO, qk_norm="head", output_gate=True)),
        feed_forward=mixed(Moe()),
        layer_types=listed(lambda config: [*every(6)(config)[:-1], "full_attention"]),
        mlp_types=listed(first_dense(lambda config: 3), "mlp_layer_types"),
        norms=4,
        other=lambda config, layer: [vector("gate_bias", config.count("num_attention_heads"))],
    ),
    "flint": Family(
        attention=windowed(Grouped(bias=QKVO, qk_norm="head", sink_logits=True)),
        feed_forward=mixed(Moe(shared_width="shared_expert_intermediate_size")),
        layer_types=listed(
            lambda config: [
                "full_attention"
                if index < 2 or index % 4 == 1 or index == config["num_hidden_layers"] - 1
                else "sliding_attention"
                for index in range(config.count("num_hidden_layers"))
            ]
        ),
        mlp_types=lambda config: [
            "dense"
            if index in (config.get("mlp_only_layers") or ([0, 1] if config.get("mlp_only_layers") is None else []))
            else kind
            for index, kind in enumerate(sparse_step(config))
        ],
    ),
    "kolibri1": Family(
        attention=windowed(Grouped(qk_norm="head")),
        feed_forward=Moe(shared_width="shared_expert_intermediate_size"),
        layer_types=listed(every(5)),
        norms=4,
    ),
    "laguna": Family(
        attention=windowed(Grouped(heads=heads_per_layer, bias=QKVO, qk_norm="head", head_gate="gating")),
        feed_forward=mixed(Moe(shared_width="shared_expert_intermediate_size", router_bias=True)),
        layer_types=listed(constant("full_attention")),
        mlp_types=listed(first_dense(lambda config: 1), "mlp_layer_types"),
        modelled={"gating": (True, "per-head")},
        unread=("num_attention_heads", "sliding_window", "swa_attention_sink_enabled", "intermediate_size"),
    ),
    "mellum": Family(
        attention=windowed(Grouped(bias=QKVO, qk_norm="head")),
        feed_forward=mixed(Moe()),
        layer_types=listed(constant("full_attention")),
        mlp_types=listed(SPARSE, "mlp_layer_types"),
        unread=("intermediate_size", "sliding_window"),
    ),
    "solar_open": Family(attention=Grouped(bias=QKV), feed_forward=Moe(shared="num_shared_experts")),
    "dots1": Family(
        attention=windowed(Grouped(bias=QKVO, qk_norm="head")),
        feed_forward=mixed(Moe(shared="num_shared_experts")),
        layer_types=listed(
            lambda config: [
                "sliding_attention"
                if config.get("sliding_window") and index >= (config.get("max_window_layers") or 0)
                else "full_attention"
                for index in range(config.count("num_hidden_layers"))
            ]
        ),
        mlp_types=first_dense(),
        unread=("sliding_window",),
    ),
    "glm4_moe": GLM4_MOE,
    "exaone_moe": Family(
        attention=windowed(Grouped(qk_norm="head")),
        feed_forward=mixed(Moe(shared="num_shared_experts")),
        layer_types=listed(every("sliding_window_pattern")),
        mlp_types=listed(first_dense(), "mlp_layer_types"),
    ),
    "cohere2_moe": Family(
        attention=windowed(Grouped(bias=QKVO)),
        feed_forward=mixed(
            replace(WIDE, shared="num_shared_experts"),
            Dense(width=lambda config: config.get("prefix_dense_intermediate_size") or config["intermediate_size"]),
        ),
        layer_types=listed(cohere2_moe_windows),
        mlp_types=dense_then_sparse(0),
        norms=1,
    ),
    "hunyuan_v1_moe": Family(
        attention=Grouped(bias=QKVO, qk_norm="head"),
        feed_forward=Moe(width="intermediate_size", shared_width="intermediate_size"),
    ),
    "hy_v3": Family(
        attention=Grouped(bias=QKVO, qk_norm="head"),
        feed_forward=mixed(Moe(shared="num_shared_experts"), Dense(bias="mlp_bias")),
        mlp_types=dense_then_sparse(1),
        other=lambda config, layer: (
            shared_bias("mlp_bias", shared_times_width("num_shared_experts"))(config, layer)
            if dense_then_sparse(1)(config)[layer] == "sparse"
            else []
        ),
    ),
    "llama4_text": Family(
        attention={
            "full_attention": Grouped(bias=QKVO),
            "chunked_attention": Grouped(bias=QKVO, chunk="attention_chunk_size"),
        },
        feed_forward=mixed(replace(WIDE, shared_width="intermediate_size"), Dense(width="intermediate_size_mlp")),
        layer_types=listed(llama4_attention),
        mlp_types=llama4_placement,
        unread=("use_qk_norm", "attn_temperature_tuning", "attn_scale", "floor_scale", "for_llm_compressor"),
    ),
    "minimax_m3_vl_text": Family(
        attention={
            "full_attention": Grouped(qk_norm="head"),
            "minimax_m3_sparse": Grouped(qk_norm="head", selection=block_selection),
        },
        feed_forward=mixed(
            replace(WIDE, shared_width="shared_intermediate_size"), Dense(width="dense_intermediate_size")
        ),
        layer_types=listed(minimax_m3_types),
        mlp_types=listed(minimax_m3_placement, "mlp_layer_types"),
        modelled={"attention_output_gate": (False,)},
        cache_formats={"index": "bf16"},
        unread=(
            "index_n_heads",
            "index_head_dim",
            "index_block_size",
            "index_topk_blocks",
            "index_local_blocks",
            "dense_intermediate_size",
            "use_qk_norm",
            "qk_norm_type",
            "num_mtp_modules",
            "use_routing_bias",
            "num_shared_experts",
            "moe_intermediate_size",
            "first_k_dense_replace",
            "use_gemma_norm",
        ),
    ),
    "mimo_v2_flash": Family(
        attention={
            "full_attention": Grouped(bias=QKV, v_head_dim="v_head_dim"),
            "sliding_attention": Grouped(
                kv_heads=mimo_window_kv_heads,
                bias=QKV,
                v_head_dim="v_head_dim",
                window=mimo_window,
                sink_logits=True,
            ),
        },
        feed_forward=mixed(Moe()),
        layer_types=listed(mimo_windows),
        mlp_types=listed(mimo_placement, "mlp_layer_types"),
        modelled={"add_swa_attention_sink_bias": (True,), "add_full_attention_sink_bias": (False,)},
        unread=("attention_chunk_size", "attention_value_scale", "num_shared_experts"),
    ),
}

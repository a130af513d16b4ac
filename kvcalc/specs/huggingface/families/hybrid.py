"""Families that mix recurrent or convolutional layers with attention, purely recurrent ones, and shared KV caches."""

from dataclasses import replace
from typing import Any

from kvcalc.specs.huggingface.config import Config
from kvcalc.specs.huggingface.families.dense import OLMO2, QKVO, windowed
from kvcalc.specs.huggingface.families.moe import WIDE, dense_then_sparse, mixed
from kvcalc.specs.huggingface.family import Family
from kvcalc.specs.huggingface.mtp import like_the_last
from kvcalc.specs.huggingface.rows import Dense, Grouped, Latent, Mamba1, Mamba2, Mixing, Moe, vector
from kvcalc.specs.huggingface.rules import by_index, constant, every, first_dense, listed, sparse_step

LINEAR = "linear_attention"
GATED_DELTANET = Mixing(
    kind="gated-deltanet",
    fields={
        "n_k_heads": "linear_num_key_heads",
        "n_v_heads": "linear_num_value_heads",
        "k_head_dim": "linear_key_head_dim",
        "v_head_dim": "linear_value_head_dim",
        "conv_kernel": "linear_conv_kernel_dim",
    },
)
SHORT_CONV = Mixing(
    kind="short-conv", fields={"channels": "hidden_size", "conv_kernel": "conv_L_cache", "bias": "conv_bias"}
)


def listed_indices(field: str) -> Any:
    """Attention where a list of layer indices says so (Bamba, LFM2)."""

    def rule(config: Config) -> list[str]:
        indices = config.get(field)
        return [
            "full_attention" if index in (indices or []) else LINEAR
            for index in range(config.count("num_hidden_layers"))
        ]

    return rule


def jamba_types(config: Config) -> list[str]:
    period, offset = config.count("attn_layer_period"), config["attn_layer_offset"]
    return by_index(lambda index: index % period == offset, "full_attention", LINEAR)(config)


def jamba_placement(config: Config) -> list[str]:
    period, offset = config.count("expert_layer_period"), config["expert_layer_offset"]
    many = config.count("num_experts") > 1
    return by_index(lambda index: many and index % period == offset, "sparse", "dense")(config)


def lfm2_types(config: Config) -> list[str]:
    full = config.get("full_attn_idxs")
    return [
        "full_attention" if full is None or index in full else "conv"
        for index in range(config.count("num_hidden_layers"))
    ]


def lfm2_width(config: Config) -> int:
    """Two thirds of intermediate_size, scaled and rounded up, where block_auto_adjust_ff_dim is set."""
    width = config.count("intermediate_size")
    if config.get("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        if config.get("block_ffn_dim_multiplier") is not None:
            multiple = config.count("block_multiple_of")
            width = int(config["block_ffn_dim_multiplier"] * width)
            width = multiple * -(-width // multiple)
    return width


NEMOTRON_LETTERS = {"M": LINEAR, "E": "moe", "*": "full_attention", "-": "mlp"}


def nemotron_types(config: Config) -> list[str]:
    letters = config.get("hybrid_override_pattern")
    if letters is None:
        return listed(lambda _: [LINEAR, "moe", "full_attention", "mlp"])(config)
    return [NEMOTRON_LETTERS.get(letter, letter) for letter in letters]


def falcon_h1_bias(config: Config) -> bool:
    """The mixer's input and output projections have a flag each; a spec has one for both."""
    into, out_of = bool(config.get("mamba_proj_bias")), bool(config.get("projectors_bias"))
    if into != out_of:
        config.refuse(
            "projectors_bias", "'projectors_bias' and 'mamba_proj_bias' of falcon_h1 differ: kvcalc models them equal"
        )
    return into


def kimi_types(config: Config) -> list[str]:
    """linear_attn_config lists the full layers in the publisher's file, counted from 1."""
    full = config.part("linear_attn_config").get("full_attn_layers")
    if full is not None:
        return by_index(lambda index: index + 1 in full, "full_attention", LINEAR)(config)
    return by_index(lambda index: index > 0 and index % 4 == 0, "full_attention", LINEAR)(config)


def kimi_linear(field: str, published: str) -> Any:
    return lambda config: config.part("linear_attn_config").get(published) or config[field]


def minimax_types(config: Config) -> list[str]:
    kinds = config.get("attn_type_list")
    if kinds is not None:
        return ["full_attention" if kind else LINEAR for kind in kinds]
    return by_index(lambda index: index % 2 == 0, "full_attention", LINEAR)(config)


def olmo_hybrid_value(field: str) -> Any:
    """Head counts and widths that follow from the attention's where they are null."""

    def value(config: Config) -> int:
        stated = config.get(field)
        if stated is not None:
            return stated
        if field in ("linear_num_key_heads", "linear_num_value_heads"):
            return config.count("num_attention_heads")
        heads = olmo_hybrid_value("linear_num_key_heads")(config)
        if field == "linear_key_head_dim":
            return int(0.75 * config.count("hidden_size") / heads)
        return 2 * olmo_hybrid_value("linear_key_head_dim")(config)

    return value


SHARED_GATED = Moe(shared_width="shared_expert_intermediate_size", shared_gate=True)
QWEN3_NEXT = Family(
    attention={LINEAR: GATED_DELTANET, "full_attention": Grouped(bias=QKVO, qk_norm="head", output_gate=True)},
    feed_forward=mixed(SHARED_GATED),
    layer_types=listed(every(lambda config: config.get("full_attention_interval", 4), "full_attention", LINEAR)),
    mlp_types=sparse_step,
    mtp=like_the_last,
    other=lambda config, layer: (
        [vector("q_gate_bias", config.count("num_attention_heads") * config.count("head_dim"))]
        if config.get("attention_bias") and QWEN3_NEXT.layer_types(config)[layer] == "full_attention"
        else []
    ),
    modelled={"attn_output_gate": (True,)},
    unread=(
        "intermediate_size",
        "full_attention_interval",
        "mtp_num_hidden_layers",
        "mtp_use_dedicated_embeddings",
        "mamba_ssm_dtype",
    ),
)
BAMBA = Family(
    attention={LINEAR: Mamba2(), "full_attention": Grouped(bias=QKVO)},
    feed_forward=Dense(bias="mlp_bias"),
    layer_types=listed_indices("attn_layer_indices"),
    unread=("mamba_expand", "layer_types"),
)
MAMBA = Family(
    attention=Mamba1(
        inner=lambda config: config.get("intermediate_size") or int(config["expand"] * config.count("hidden_size")),
        state="state_size",
        kernel="conv_kernel",
        dt_rank="time_step_rank",
        conv_bias="use_conv_bias",
        proj_bias="use_bias",
    ),
    feed_forward=None,
    norms=1,
    unread=("expand", "n_ssm_head", "d_inner", "ssm_cfg", "fused_add_norm", "rms_norm"),
)

FAMILIES: dict[str, Family] = {
    "mamba": MAMBA,
    "falcon_mamba": MAMBA,
    "mamba2": replace(
        MAMBA,
        attention=Mamba2(
            heads="num_heads",
            head_dim="head_dim",
            groups="n_groups",
            state="state_size",
            kernel="conv_kernel",
            conv_bias="use_conv_bias",
            proj_bias="use_bias",
        ),
        unread=("expand", "time_step_rank"),
    ),
    "jamba": Family(
        attention={LINEAR: Mamba1(input_norms=True), "full_attention": Grouped()},
        feed_forward=mixed(WIDE),
        layer_types=jamba_types,
        mlp_types=jamba_placement,
        unread=("layer_types",),
    ),
    "bamba": BAMBA,
    "falcon_h1": replace(
        BAMBA,
        attention=(Mamba2(proj_bias=falcon_h1_bias, gated_norm="mamba_rms_norm"), Grouped(bias=QKVO)),
        layer_types=constant("full_attention"),
        unread=("mamba_expand", "mamba_d_ssm", "mamba_norm_before_gate", "layer_types"),
    ),
    "granitemoehybrid": Family(
        attention={LINEAR: Mamba2(), "full_attention": Grouped(bias=QKVO)},
        feed_forward=mixed(
            replace(WIDE, shared_width="shared_intermediate_size"), Dense(width="shared_intermediate_size")
        ),
        layer_types=listed(constant(LINEAR)),
        mlp_types=first_dense(lambda config: 0 if config.get("num_experts") else config.count("num_hidden_layers")),
        unread=("mamba_expand", "position_embedding_type", "intermediate_size", "num_experts_per_tok"),
    ),
    # a layer is one thing: a state space model, an attention, a feed-forward or a mixture
    "nemotron_h": Family(
        attention={
            LINEAR: Mamba2(
                heads="mamba_num_heads",
                head_dim="mamba_head_dim",
                groups=lambda config: config.get("mamba_n_groups") or config["n_groups"],
                state="ssm_state_size",
                kernel=lambda config: config.get("mamba_d_conv") or config["conv_kernel"],
                conv_bias=lambda config: config.get("mamba_conv_bias", config.get("use_conv_bias")),
                proj_bias="use_bias",
            ),
            "full_attention": Grouped(head_dim=lambda config: config.get("attention_head_dim") or config["head_dim"]),
            "mlp": None,
            "moe": None,
        },
        feed_forward={
            LINEAR: None,
            "full_attention": None,
            "mlp": Dense(gated=False, bias="mlp_bias"),
            "moe": Moe(gated=False, shared_width="moe_shared_expert_intermediate_size", latent="moe_latent_size"),
        },
        layer_types=nemotron_types,
        mlp_types=nemotron_types,
        norms=1,
        tied=False,
        unread=(
            "attention_bias",
            "num_hidden_layers",
            "expand",
            "intermediate_size",
            "moe_intermediate_size",
            "num_experts",
            "num_experts_per_tok",
            "moe_shared_expert_intermediate_size",
            "mlp_bias",
            "mamba_expand",
            "mamba_proj_bias",
            "sliding_window",
            "num_shared_experts",
            "moe_shared_expert_overlap",
            "attention_head_dim",
            "mtp_layers_block_type",
            "mtp_hybrid_override_pattern",
            "num_nextn_predict_layers",
        ),
    ),
    "lfm2": Family(
        attention={"conv": SHORT_CONV, "full_attention": Grouped(qk_norm="head")},
        feed_forward=Dense(width=lfm2_width),
        layer_types=listed(lfm2_types),
        unread=("full_attn_idxs", "conv_dim", "conv_dim_out", "block_dim", "block_norm_eps"),
    ),
    "lfm2_moe": Family(
        attention={"conv": SHORT_CONV, "full_attention": Grouped(qk_norm="head")},
        feed_forward=mixed(Moe()),
        layer_types=listed(lfm2_types),
        mlp_types=first_dense("num_dense_layers"),
        unread=("use_expert_bias", "conv_dim", "conv_dim_out"),
    ),
    "lfm3": Family(
        attention={
            "conv": SHORT_CONV,
            **windowed(Grouped(bias=QKVO, qk_norm="head", head_gate="use_attention_gate")),
        },
        feed_forward=Dense(),
        layer_types=listed(
            lambda config: [
                "full_attention" if index % 4 == 2 else "sliding_attention" if index and index % 4 == 0 else "conv"
                for index in range(config.count("num_hidden_layers"))
            ]
        ),
        norms=lambda config, layer: 4 if config.get("use_sandwich_norm") else 2,
    ),
    "minimax": Family(
        attention={
            LINEAR: Mixing(
                kind="lightning",
                fields={
                    "n_heads": "num_attention_heads",
                    "head_dim": lambda config: Grouped().spec(config, 0)["head_dim"],
                },
            ),
            "full_attention": Grouped(),
        },
        feed_forward=WIDE,
        layer_types=listed(minimax_types),
        cache_formats={"state": "fp32"},
        unread=(
            "sliding_window",
            "block_size",
            "full_attn_alpha_factor",
            "full_attn_beta_factor",
            "linear_attn_alpha_factor",
            "linear_attn_beta_factor",
            "mlp_alpha_factor",
            "mlp_beta_factor",
        ),
    ),
    "olmo_hybrid": replace(
        OLMO2,
        attention={
            LINEAR: replace(
                GATED_DELTANET,
                fields={
                    key: olmo_hybrid_value(field) if key != "conv_kernel" else field
                    for key, field in GATED_DELTANET.fields.items()
                    if isinstance(field, str)
                },
            ),
            "full_attention": Grouped(bias=QKVO, qk_norm="full"),
        },
        layer_types=listed(every(4, "full_attention", LINEAR)),
        unread=("linear_allow_neg_eigval", "linear_use_gate"),
    ),
    "qwen3_next": QWEN3_NEXT,
    "qwen3_5_text": replace(QWEN3_NEXT, feed_forward=Dense(), mlp_types=constant("dense")),
    "qwen3_5_moe_text": replace(
        QWEN3_NEXT,
        feed_forward=SHARED_GATED,
        mlp_types=constant("sparse"),
    ),
    "kimi_linear": Family(
        attention={
            LINEAR: Mixing(
                kind="kda",
                fields={
                    "n_heads": kimi_linear("linear_num_heads", "num_heads"),
                    "head_dim": kimi_linear("linear_head_dim", "head_dim"),
                    "conv_kernel": kimi_linear("linear_conv_kernel_dim", "short_conv_kernel_size"),
                },
            ),
            "full_attention": Latent(),
        },
        feed_forward=mixed(Moe(shared="num_shared_experts")),
        layer_types=listed(kimi_types),
        mlp_types=dense_then_sparse(1),
        tied=False,
        cache_formats={"state": "fp32"},
        modelled={"moe_layer_freq": (1,)},
        unread=("head_dim", "num_key_value_heads", "mla_use_nope", "linear_attn_config"),
    ),
}

"""Families from before Llama: learned positions, LayerNorms with bias, two-matrix feed-forwards, Falcon's flags."""

from dataclasses import replace

from kvcalc.specs.huggingface.config import Config
from kvcalc.specs.huggingface.family import Family
from kvcalc.specs.huggingface.rows import Dense, Grouped, vector
from kvcalc.specs.huggingface.rules import four_hidden, hidden_over_heads

ALL = ((True, "qkvo"),)
MHA = {"kv_heads": "num_attention_heads", "head_dim": hidden_over_heads}


def falcon_kv_heads(config: Config) -> int:
    """The trap: num_kv_heads counts in the new architecture only; in the old one multi_query decides."""
    heads = config.count("num_attention_heads")
    if config.get("new_decoder_architecture") or not config.get("multi_query"):
        return config.get("num_key_value_heads") or heads
    return 1


def falcon_norms(config: Config, layer: int) -> int:
    if config.get("new_decoder_architecture"):
        stated = config.get("num_ln_in_parallel_attn")
        return 2 if stated is None else stated
    return 1 if config.get("parallel_attn") else 2


def gpt_bigcode_kv_heads(config: Config) -> int:
    return 1 if config.get("multi_query") else config.count("num_attention_heads")


def two_more(config: Config) -> int:
    """Rows of a position table that keeps two for padding."""
    return config.count("max_position_embeddings") + 2


def mpt_attention_checked(config: Config) -> int:
    """MPT keeps its attention in `attn_config`; only plain multi-head attention exists in transformers."""
    attention = config.part("attn_config")
    attention.require("attn_type", ("multihead_attention",), otherwise="multihead_attention")
    attention.require("qk_ln", (False,), otherwise=False)
    return config.count("num_attention_heads")


GPT2 = Family(
    attention=Grouped(bias=ALL, **MHA),
    feed_forward=Dense(width=four_hidden(), gated=False, bias=True),
    norm="layer",
    position_rows="max_position_embeddings",
    modelled={"add_cross_attention": (False,)},
)
GPTJ = Family(
    attention=Grouped(**MHA),
    feed_forward=Dense(width=four_hidden(), gated=False, bias=True),
    norm="layer",
    norms=1,
    head_bias=True,
)

FAMILIES: dict[str, Family] = {
    "gpt2": GPT2,
    "gpt-sw3": GPT2,
    "gpt_bigcode": replace(
        GPT2,
        attention=Grouped(bias=ALL, kv_heads=gpt_bigcode_kv_heads, head_dim=hidden_over_heads),
        unread=("num_key_value_heads",),
    ),
    "gpt_neo": replace(
        GPT2,
        attention=Grouped(bias=((True, "o"),), **MHA),
        modelled={},
        note="Every second layer attends a window only, but its cache keeps all tokens, as in transformers.",
        unread=("attention_types", "attention_layers", "window_size"),
    ),
    "gpt_neox": Family(
        attention=Grouped(bias=(("attention_bias", "qkvo"),), **MHA),
        feed_forward=Dense(gated=False, bias=True),
        norm="layer",
    ),
    "gpt_neox_japanese": Family(
        attention=Grouped(**MHA),
        feed_forward=Dense(
            width=lambda config: config["intermediate_multiple_size"] * config.count("hidden_size"), gated=False
        ),
        norm="layer",
        other=lambda config, layer: (
            [vector("dense_bias", config.count("hidden_size"))]
            if layer == config.count("num_hidden_layers") - 1
            else []
        ),
    ),
    "gptj": GPTJ,
    "codegen": GPTJ,
    "bloom": Family(
        attention=Grouped(bias=ALL, **MHA),
        feed_forward=Dense(width=lambda config: 4 * config.count("hidden_size"), gated=False, bias=True),
        norm="layer",
        model_other=lambda config: [vector("embedding_norm", 2 * config.count("hidden_size"))],
    ),
    "mpt": Family(
        attention=Grouped(kv_heads=mpt_attention_checked, head_dim=hidden_over_heads),
        feed_forward=Dense(width=lambda config: config["expansion_ratio"] * config.count("hidden_size"), gated=False),
        modelled={"no_bias": (True,)},
        unread=("learned_pos_emb", "embedding_fraction", "norm_type"),
    ),
    "falcon": Family(
        attention=Grouped(kv_heads=falcon_kv_heads, head_dim=hidden_over_heads, bias=(("bias", "qkvo"),)),
        feed_forward=Dense(width=four_hidden(), gated=False, bias="bias"),
        norm="layer",
        norms=falcon_norms,
        unread=("num_key_value_heads", "parallel_attn"),
    ),
    "biogpt": replace(GPT2, position_rows=two_more, modelled={}),
    "xglm": replace(GPT2, feed_forward=Dense(gated=False, bias=True), position_rows=None),
    "opt": Family(
        attention=Grouped(bias=(("enable_bias", "qkvo"),), **MHA),
        feed_forward=Dense(gated=False, bias="enable_bias"),
        norm=lambda config: "layer" if config.get("layer_norm_elementwise_affine") else "none",
        position_rows=two_more,
        final_norm=lambda config: config.get("do_layer_norm_before") and not config.get("_remove_final_layer_norm"),
        embedding_size="word_embed_proj_dim",
    ),
    "ctrl": Family(
        attention=Grouped(bias=ALL, **MHA),
        feed_forward=Dense(gated=False, bias=True),
        norm="layer",
        head_bias=True,
    ),
}

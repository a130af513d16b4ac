"""Families of dense decoders in the shape that Llama made common, row by row with what differs."""

from dataclasses import replace
from typing import Any

from kvcalc.specs.huggingface.config import Config
from kvcalc.specs.huggingface.family import Family
from kvcalc.specs.huggingface.rows import Dense, Grouped, Latent, matrix, vector
from kvcalc.specs.huggingface.rules import by_index, constant, every, hidden_over_heads, listed, qwen_windows, when

QKVO = (("attention_bias", "qkvo"),)
QKV = (("attention_bias", "qkv"),)
ALL = ((True, "qkvo"),)
WINDOW_FLAGS = ("use_sliding_window", "sliding_window", "no_rope_layer_interval", "no_rope_layers")


def windowed(row: Grouped, window: str = "sliding_window") -> dict[str, Grouped]:
    """The row as it is, and with a sliding window, by layer type."""
    return {"full_attention": row, "sliding_attention": replace(row, window=window)}


def always_full(config: Config) -> list[str]:
    return constant("full_attention")(config)


def window_if_stated(config: Config) -> list[str]:
    return constant("sliding_attention" if config.get("sliding_window") else "full_attention")(config)


def smollm3_windows(config: Config) -> list[str]:
    """Where windows are on, the layers with rotary positions have them."""
    count = config.count("num_hidden_layers")
    interval = config.get("no_rope_layer_interval") or 4
    rotary = config.get("no_rope_layers") or [int((index + 1) % interval != 0) for index in range(count)]
    on = config.get("use_sliding_window") and config.get("sliding_window")
    return ["sliding_attention" if on and rotary[index] else "full_attention" for index in range(count)]


def bitnet_sub_norms(config: Config, layer: int) -> list[Any]:
    return [
        vector("attn_sub_norm", config.count("hidden_size")),
        vector("ffn_sub_norm", config.count("intermediate_size")),
    ]


def minicpm3_value_width(config: Config) -> int:
    stated = config.get("v_head_dim")
    return stated if stated is not None else hidden_over_heads(config)


def doge_residuals(config: Config, layer: int) -> list[Any]:
    """A dynamic mask: a decay a KV head, its projection from the values, and a gain on both residual branches."""
    hidden = config.count("hidden_size")
    kv_heads = config.get("num_key_value_heads") or config.count("num_attention_heads")
    width = kv_heads * (hidden // config.count("num_attention_heads"))
    return [
        vector("residual_gains", 2 * hidden),
        vector("decay", kv_heads),
        matrix("dt_proj", width, kv_heads),
        *([vector("dt_bias", kv_heads)] if config.get("attention_bias") else []),
    ]


def head_norms_with_bias(config: Config, layer: int) -> list[Any]:
    """LayerNorms with gain and bias on q and k, over a head's width each."""
    width = config.count("hidden_size") // config.count("num_attention_heads")
    return [vector("qk_norms", 4 * width)] if config.get("qk_layernorm") else []


def modernbert_head(config: Config) -> list[Any]:
    hidden = config.count("hidden_size")
    vectors = 2 if config.get("norm_bias") else 1
    bias = [vector("head_dense_bias", hidden)] if config.get("classifier_bias") else []
    return [vector("embedding_and_head_norms", 2 * vectors * hidden), matrix("head_dense", hidden, hidden), *bias]


def modernbert_window(config: Config) -> Any:
    """local_attention counts both sides; a decoder sees one."""
    stated = config.get("sliding_window")
    return stated if stated is not None else (config.get("local_attention") or 0) // 2 or None


LLAMA = Family(
    attention=Grouped(bias=QKVO),
    feed_forward=Dense(bias="mlp_bias"),
)
MISTRAL = Family(attention=Grouped(window="sliding_window"), feed_forward=Dense())
QWEN2 = Family(
    attention=windowed(Grouped(bias=((True, "qkv"),))),
    feed_forward=Dense(),
    layer_types=listed(qwen_windows),
    unread=WINDOW_FLAGS,
)
GEMMA2 = Family(
    attention=windowed(Grouped(bias=QKVO)),
    feed_forward=Dense(),
    layer_types=listed(every(2)),
    norms=4,
    modelled={"use_bidirectional_attention": (None, False)},
)
OLMO2 = Family(attention=Grouped(bias=QKVO, qk_norm="full"), feed_forward=Dense())
COHERE = Family(
    attention=Grouped(bias=QKVO, qk_norm=when("use_qk_norm", lambda config: "full")), feed_forward=Dense(), norms=1
)

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "emu3_text_model": LLAMA,
    "iquestcoder": LLAMA,
    "internlm3": Family(
        attention=Grouped(bias=((lambda config: config.get("qkv_bias", config.get("attention_bias")), "qkvo"),)),
        feed_forward=Dense(bias=lambda config: config.get("bias", config.get("mlp_bias"))),
    ),
    "mistral": MISTRAL,
    "ministral3": MISTRAL,
    "ministral": Family(attention=windowed(Grouped()), feed_forward=Dense(), layer_types=listed(window_if_stated)),
    "arcee": Family(attention=Grouped(bias=QKVO), feed_forward=Dense(gated=False, bias="mlp_bias")),
    "apertus": Family(
        attention=Grouped(bias=QKVO, qk_norm="head"),
        feed_forward=Dense(gated=False),
        other=lambda config, layer: [vector("xielu", 2)],
    ),
    "cwm": Family(
        attention=windowed(Grouped()),
        feed_forward=Dense(bias="mlp_bias"),
        layer_types=listed(by_index(lambda index: index % 4 == 0, "full_attention", "sliding_attention")),
    ),
    "diffllama": Family(
        attention=Grouped(bias=QKVO),
        feed_forward=Dense(),
        other=lambda config, layer: [
            vector("lambda", 4 * (config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]))
        ],
    ),
    "doge": Family(
        attention=Grouped(bias=QKVO, qk_norm="head", window="sliding_window"),
        feed_forward=Dense(bias="mlp_bias"),
        other=doge_residuals,
        modelled={"is_moe": (False,)},
        unread=("num_experts", "num_experts_per_tok", "keep_window_size"),
    ),
    "ernie4_5": Family(attention=Grouped(bias=(("use_bias", "qkvo"),)), feed_forward=Dense(bias="use_bias")),
    "exaone4": Family(
        attention=windowed(Grouped(qk_norm="head")),
        feed_forward=Dense(),
        layer_types=listed(every("sliding_window_pattern")),
    ),
    "gemma": Family(
        attention=Grouped(bias=QKVO), feed_forward=Dense(), modelled={"use_bidirectional_attention": (None, False)}
    ),
    "gemma2": GEMMA2,
    "gemma3_text": replace(
        GEMMA2,
        attention=windowed(Grouped(bias=QKVO, qk_norm="head")),
        layer_types=listed(every(lambda config: config.get("sliding_window_pattern", 6))),
    ),
    "vaultgemma": replace(GEMMA2, norms=2, modelled={}),
    "glm": Family(attention=Grouped(bias=QKV), feed_forward=Dense()),
    "glm4": Family(attention=Grouped(bias=QKV), feed_forward=Dense(), norms=4),
    "glm4v_text": Family(attention=Grouped(bias=((True, "qkv"),)), feed_forward=Dense(), norms=4),
    "granite": LLAMA,
    "granite_swa": replace(
        LLAMA,
        attention=windowed(Grouped(bias=QKVO, sink_logits=True)),
        layer_types=listed(by_index(lambda index: index % 4 == 0, "full_attention", "sliding_attention")),
    ),
    "helium": Family(attention=Grouped(bias=QKV), feed_forward=Dense(bias="mlp_bias")),
    "hunyuan_v1_dense": Family(attention=Grouped(bias=QKVO, qk_norm="head"), feed_forward=Dense()),
    "hyperclovax": replace(LLAMA, norms=lambda config, layer: 4 if config.get("use_post_norm") else 2),
    "jais2": Family(attention=Grouped(bias=QKVO), feed_forward=Dense(gated=False, bias="mlp_bias"), norm="layer"),
    "minicpm3": Family(
        attention=Latent(v_head_dim=minicpm3_value_width),
        feed_forward=Dense(bias="mlp_bias"),
        unread=("head_dim", "num_key_value_heads"),
    ),
    "youtu": Family(attention=Latent(), feed_forward=Dense(), unread=("head_dim", "num_key_value_heads")),
    "nanochat": Family(
        attention=Grouped(bias=QKVO), feed_forward=Dense(gated=False), norms=0, final_norm=False, norm="none"
    ),
    "nemotron": Family(attention=Grouped(bias=QKVO), feed_forward=Dense(gated=False, bias="mlp_bias"), norm="layer"),
    "olmo": Family(attention=Grouped(bias=QKVO), feed_forward=Dense(), norm="none"),
    "olmo2": OLMO2,
    "olmo3": replace(OLMO2, attention=windowed(Grouped(bias=QKVO, qk_norm="full")), layer_types=listed(every(4))),
    "persimmon": Family(
        attention=Grouped(kv_heads="num_attention_heads", bias=ALL),
        feed_forward=Dense(gated=False, bias=True),
        norm="layer",
        other=head_norms_with_bias,
    ),
    "phi": Family(
        attention=Grouped(bias=ALL),
        feed_forward=Dense(gated=False, bias=True),
        norm="layer",
        norms=1,
        head_bias=True,
        other=head_norms_with_bias,
    ),
    "phi3": MISTRAL,
    "qwen2": QWEN2,
    "qwen2_vl_text": QWEN2,
    "qwen2_5_vl_text": QWEN2,
    "qwen3_vl_text": Family(attention=Grouped(bias=QKVO, qk_norm="head"), feed_forward=Dense()),
    "qwen3": Family(
        attention=windowed(Grouped(bias=QKVO, qk_norm="head")),
        feed_forward=Dense(),
        layer_types=listed(qwen_windows),
        unread=WINDOW_FLAGS,
    ),
    "seed_oss": Family(
        attention=Grouped(bias=(*QKV, ("attention_out_bias", "o"))), feed_forward=Dense(bias="mlp_bias")
    ),
    "smollm3": Family(
        attention=windowed(Grouped(bias=QKVO)),
        feed_forward=Dense(bias="mlp_bias"),
        layer_types=listed(smollm3_windows),
        unread=WINDOW_FLAGS,
    ),
    "stablelm": Family(
        attention=Grouped(bias=(("use_qkv_bias", "qkv"),), qk_norm=when("qk_layernorm", lambda config: "full")),
        feed_forward=Dense(),
        norm="layer",
        norms=lambda config, layer: 1 if config.get("use_parallel_residual") else 2,
    ),
    "starcoder2": Family(
        attention=Grouped(bias=(("use_bias", "qkvo"),), window="sliding_window"),
        feed_forward=Dense(gated=False, bias="use_bias"),
        norm="layer",
    ),
    "bitnet": Family(attention=Grouped(bias=QKVO), feed_forward=Dense(), other=bitnet_sub_norms),
    "cohere": COHERE,
    "cohere2": replace(
        COHERE,
        attention=windowed(Grouped(bias=QKVO)),
        layer_types=listed(every(lambda config: config.get("sliding_window_pattern", 4))),
    ),
    "modernbert-decoder": Family(
        attention={
            "full_attention": Grouped(kv_heads="num_attention_heads", bias=QKVO),
            "sliding_attention": Grouped(kv_heads="num_attention_heads", bias=QKVO, window=modernbert_window),
        },
        feed_forward=Dense(bias="mlp_bias"),
        layer_types=listed(
            lambda config: by_index(
                lambda index: index % config.get("global_attn_every_n_layers", 3) == 0,
                "full_attention",
                "sliding_attention",
            )(config)
        ),
        norm=lambda config: "layer" if config.get("norm_bias") else "rms",
        norms=lambda config, layer: 2 if layer else 1,
        head_bias="decoder_bias",
        model_other=modernbert_head,
    ),
}

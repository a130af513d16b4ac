"""Families whose code is on the hub beside the weights (trust_remote_code) and not in transformers.

No class gives defaults here: every field must be in the publisher's file. The tests hold them to published totals.
"""

from dataclasses import replace

from kvcalc.specs.huggingface.config import Config
from kvcalc.specs.huggingface.families.dense import QWEN2
from kvcalc.specs.huggingface.family import Family
from kvcalc.specs.huggingface.rows import Dense, Grouped
from kvcalc.specs.huggingface.rules import hidden_over_heads


def chatglm_kv_heads(config: Config) -> int:
    if config.get("multi_query_attention"):
        return config.count("multi_query_group_num")
    return config.count("num_attention_heads")


def chatglm_bias(config: Config) -> bool:
    return bool(config.get("add_bias_linear") or config.get("add_qkv_bias"))


FAMILIES: dict[str, Family] = {
    "baichuan": Family(
        attention=Grouped(kv_heads="num_attention_heads", head_dim=hidden_over_heads), feed_forward=Dense()
    ),
    # ChatGLM2, ChatGLM3 and GLM-4-9B; the first ChatGLM has other fields
    "chatglm": Family(
        attention=Grouped(
            kv_heads=chatglm_kv_heads,
            head_dim="kv_channels",
            bias=((chatglm_bias, "qkv"), ("add_bias_linear", "o")),
        ),
        feed_forward=Dense(bias="add_bias_linear"),
        modelled={
            "rmsnorm": (True,),
            "post_layer_norm": (True,),
            "apply_residual_connection_post_layernorm": (False,),
            "pre_seq_len": (None,),
        },
        unread=("multi_query_group_num", "original_rope", "attention_softmax_in_fp32", "bias_dropout_fusion"),
    ),
    "internlm2": Family(attention=Grouped(bias=(("bias", "qkvo"),)), feed_forward=Dense()),
    "mimo": replace(QWEN2, modelled={"attention_bias": (True,)}),
}

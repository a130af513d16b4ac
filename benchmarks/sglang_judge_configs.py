"""The config.json of packaged models, as far as SGLang's sizing asks: class names, and kvcalc's dimensions renamed."""

from typing import Any

from kvcalc.architecture.attention import (
    GatedDeltaNet,
    GroupedAttention,
    KimiDeltaAttention,
    LatentAttention,
    Mamba2,
    SelectedAttention,
)
from kvcalc.architecture.slots import Window

ARCHITECTURES = {
    "command-r": "CohereForCausalLM",
    "deepseek-llm": "LlamaForCausalLM",
    "deepseek-v2": "DeepseekV2ForCausalLM",
    "deepseek-v3.2": "DeepseekV32ForCausalLM",
    "deepseek-v4": "DeepseekV4ForCausalLM",
    "deepseek": "DeepseekV3ForCausalLM",
    "falcon": "FalconForCausalLM",
    "gemma-2": "Gemma2ForCausalLM",
    "gemma-3": "Gemma3ForConditionalGeneration",
    "gemma-4": "Gemma4ForConditionalGeneration",
    "glm-4.5": "Glm4MoeForCausalLM",
    "glm-4.7-flash": "Glm4MoeLiteForCausalLM",
    "glm-5": "GlmMoeDsaForCausalLM",
    "gpt-oss": "GptOssForCausalLM",
    "jamba": "JambaForCausalLM",
    "kimi-k2": "DeepseekV3ForCausalLM",
    "kimi-k3": "KimiK3ForConditionalGeneration",
    "kimi-linear": "KimiLinearForCausalLM",
    "llama-4": "Llama4ForConditionalGeneration",
    "llama": "LlamaForCausalLM",
    "longcat": "LongcatFlashForCausalLM",
    "minicpm3": "MiniCPM3ForCausalLM",
    "minimax-m1": "MiniMaxM1ForCausalLM",
    "minimax-m2": "MiniMaxM2ForCausalLM",
    "minimax-m3": "MiniMaxM3SparseForConditionalGeneration",
    "mistral-7b": "MistralForCausalLM",
    "mistral-large-3": "MistralLarge3ForCausalLM",
    "mistral-small-4": "Mistral4ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "mpt": "MPTForCausalLM",
    "nemotron": "NemotronHForCausalLM",
    "palm": "PaLMForCausalLM",
    "phi-3": "Phi3ForCausalLM",
    "qwen2.5": "Qwen2ForCausalLM",
    "qwen3-235b": "Qwen3MoeForCausalLM",
    "qwen3-30b": "Qwen3MoeForCausalLM",
    "qwen3-next": "Qwen3NextForCausalLM",
    "qwen3.5-27b": "Qwen3_5ForConditionalGeneration",
    "qwen3.5": "Qwen3_5MoeForConditionalGeneration",
    "qwen3": "Qwen3ForCausalLM",
    "starcoder": "GPTBigCodeForCausalLM",
    "transmla": "DeepseekV3ForCausalLM (TransMLA's own class)",
}
"""The class in a checkpoint's config.json, by the longest beginning of a packaged model's name."""

OWN_CONFIGS = {
    "Qwen3NextForCausalLM": "qwen3_next.Qwen3NextConfig",
    "Qwen3_5ForConditionalGeneration": "qwen3_5.Qwen3_5TextConfig",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5.Qwen3_5MoeTextConfig",
    "KimiLinearForCausalLM": "kimi_linear.KimiLinearConfig",
    "KimiK3ForConditionalGeneration": "kimi_linear.KimiLinearConfig",
    "NemotronHForCausalLM": "nemotron_h.NemotronHConfig",
}
"""Classes of sglang.srt.configs for the text part, where SGLang has its own."""


def architecture(name: str) -> str:
    return ARCHITECTURES[max((start for start in ARCHITECTURES if name.startswith(start)), key=len)]


def fields(model: Any) -> dict[str, Any]:
    """What the checkpoint's config.json says of the attention, under its names there."""
    found: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": len(model.layers),
        "max_position_embeddings": model.max_context_tokens,
        "rope_scaling": None,
        "rope_parameters": None,
    }
    grouped = [base for base in bases(model) if isinstance(base, GroupedAttention)]
    for base in grouped:
        prefix = "swa_" if isinstance(base.components()[0].slots, Window) and len(set(grouped)) > 1 else ""
        found |= {f"{prefix}num_key_value_heads": base.n_kv_heads, f"{prefix}head_dim": base.head_dim}
        found |= {"num_attention_heads": base.n_heads, f"{prefix}v_head_dim": base.v_head_dim}
    for base in bases(model):
        if isinstance(base, LatentAttention):
            found |= {"num_attention_heads": base.n_heads, "num_key_value_heads": base.n_heads}
            names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
            found |= {name: getattr(base, name) for name in names}
    return found | windows(model) | selection(model) | linear(model)


def bases(model: Any) -> list[Any]:
    kept = [each for layer in model.layers for each in layer.attentions]
    return [each.base if isinstance(each, SelectedAttention) else each for each in kept]


def windows(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    of_layers = [layer.attentions[0].components()[0].slots if layer.attentions else None for layer in model.layers]
    sizes = {slots.tokens for slots in of_layers if isinstance(slots, Window)}
    if sizes:
        found["sliding_window"] = max(sizes)
        found["attention_chunk_size"] = max(sizes) if model.name.startswith("llama-4") else None
        found["layer_types"] = [
            "sliding_attention" if isinstance(slots, Window) else "full_attention" for slots in of_layers
        ]
    return found


def selection(model: Any) -> dict[str, Any]:
    chosen = [layer.attentions[0] if layer.attentions else None for layer in model.layers]
    indexers = [each.indexer for each in chosen if isinstance(each, SelectedAttention) and each.indexer]
    if not indexers:
        return {}
    if isinstance(chosen[-1], SelectedAttention) and isinstance(chosen[-1].base, GroupedAttention):
        sparse = [int(isinstance(each, SelectedAttention)) for each in chosen]
        return {
            "sparse_attention_config": {
                "sparse_index_dim": indexers[0].head_dim,
                "sparse_attention_freq": sparse,
                "sparse_disable_index_value": sparse,
            }
        }
    found = {"index_topk": 2048, "index_head_dim": indexers[0].head_dim, "index_n_heads": indexers[0].heads}
    if len(indexers) < len(chosen):
        kinds = ["full" if isinstance(each, SelectedAttention) and each.indexer else "shared" for each in chosen]
        found |= {"indexer_types": kinds, "index_topk_freq": 4, "index_skip_topk_offset": 3}
    return found


def linear(model: Any) -> dict[str, Any]:
    """The recurrent layers, as Qwen, Moonshot and NVIDIA write them down."""
    kept = [layer.attentions[0] if layer.attentions else None for layer in model.layers]
    for each in kept:
        if isinstance(each, GatedDeltaNet):
            full = [index for index, one in enumerate(kept, 1) if isinstance(one, GroupedAttention)]
            return {
                "linear_num_key_heads": each.n_k_heads,
                "linear_num_value_heads": each.n_v_heads,
                "linear_key_head_dim": each.k_head_dim,
                "linear_value_head_dim": each.v_head_dim,
                "linear_conv_kernel_dim": each.conv_kernel,
                "full_attention_interval": full[0],
            }
        if isinstance(each, KimiDeltaAttention):
            kda = [index for index, one in enumerate(kept, 1) if isinstance(one, KimiDeltaAttention)]
            return {
                "linear_attn_config": {
                    "kda_layers": kda,
                    "full_attn_layers": [index for index in range(1, len(kept) + 1) if index not in kda],
                    "num_heads": each.n_heads,
                    "head_dim": each.head_dim,
                    "short_conv_kernel_size": each.conv_kernel,
                }
            }
        if isinstance(each, Mamba2):
            letters = {Mamba2: "M", GroupedAttention: "*", type(None): "-"}
            return {
                "hybrid_override_pattern": "".join(letters[type(one)] for one in kept),
                "mamba_num_heads": each.n_heads,
                "mamba_head_dim": each.head_dim,
                "mamba_n_groups": each.n_groups,
                "n_groups": each.n_groups,
                "ssm_state_size": each.d_state,
                "mamba_d_conv": each.conv_kernel,
                "conv_kernel": each.conv_kernel,
            }
    return {}

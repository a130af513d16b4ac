"""Types that are refused by name, each with the reason, and wrappers that are read through their inner config."""

_ENCODER = "an encoder, or an encoder's layers run as a decoder; kvcalc describes decoder-only models"
_ENCODER_DECODER = "an encoder-decoder: its cross-attention cache depends on the encoder's input"
_AUDIO = "an audio model: its decoder attends encoder states or several codebooks"
_STATELESS = "a model whose implementation in transformers keeps no cache"

_GROUPS: dict[str, str] = {
    _ENCODER: """albert bert bert-generation big_bird camembert data2vec-text deberta deberta-v2 distilbert electra
        ernie megatron-bert modernbert mpnet rembert roberta roberta-prelayernorm roc_bert roformer xlm-roberta
        xlm-roberta-xl xmod""",
    _ENCODER_DECODER: """bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian
        mbart mt5 mvp nllb-moe pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma t5gemma2
        trocr udop umt5""",
    _AUDIO: "moshi musicgen musicgen_melody moss_transcribe_diarize speech_to_text whisper bark csm dia",
    _STATELESS: "openai-gpt xlm",
    "a vision model": "vit clip siglip dinov2 dinov3_vit swin convnext detr sam beit deit segformer",
    "a captioning decoder whose prefix is an image": "git",
    "adapters for vision and speech inside every layer": "phi4_multimodal",
    "an embedding model that transformers can't build from its defaults": "cohere_compass_text cohere_compass",
    "Transformer-XL style memory of hidden states instead of a KV cache": "xlnet transfo-xl",
    "hashed and chunked attention with its own buckets": "reformer",
    "a prompt of learned tokens in front of every sequence": "cpmant",
    "byte patches: three decoders of different lengths": "blt",
    "two stacks of layers that are run in turns (hierarchical recurrence)": "hrm_text",
    "time mixing with a state that kvcalc has no kind for": "rwkv rwkv7",
    "a matrix memory that kvcalc has no kind for": "xlstm",
    "a real-gated linear recurrent unit that kvcalc has no kind for": "recurrent_gemma",
    "one attention block whose weights several layers share": "zamba zamba2",
    "a mixture of attention heads (MoA)": "jetmoe",
    "compressed convolutional attention with a convolution beside every KV cache": "zaya",
    "short convolutions on K and V and learned relative positions beside every KV cache": "inkling_text inkling2_text",
    "latent attention with a sliding window": "dots3_note_text dots3_note",
    "gated norms and a query gate inside the low-rank projection": "axk2",
    "KDA whose gates have full rank": "bailing_hybrid",
    "per-layer n-gram embeddings and block selection": "qwen4_exp_text qwen4_exp",
    "cross-attention to an image encoder in some layers": "mllama mllama_text_model",
    "a draft model that attends another model's cache": "gemma4_assistant gemma4_unified_assistant",
}
REFUSED: dict[str, str] = {name: reason for reason, names in _GROUPS.items() for name in names.split()}

TEXT_KEYS = ("text_config", "llm_config", "language_config", "language_model_config")
"""Keys under which a wrapper's text decoder stands."""

_WRAPPED: dict[str, str] = {
    "aria_text": "aria",
    "cohere2": "aya_vision cohere2_vision",
    "deepseek_v3": "kimi_k25 kimi_vl",
    "emu3_text_model": "emu3",
    "exaone4": "exaone4_5",
    "gemma": "paligemma",
    "gemma3_text": "gemma3 shieldgemma2",
    "gemma3n_text": "gemma3n",
    "gemma4_text": "gemma4",
    "gemma4_unified_text": "gemma4_unified",
    "glm4v_text": "glm4v glm46v",
    "granite": "granite_speech granite_speech_plus",
    "hyperclovax": "hyperclovax_vision_v2",
    "lfm2": "lfm2_vl",
    "lfm3": "lfm3_vl",
    "llama": """deepseek_vl deepseek_vl_hybrid glmasr idefics3 janus llava llava_next llava_next_video perception_lm
        smolvlm video_llava vipllava voxtral""",
    "llama4_text": "llama4",
    "minimax_m3_vl_text": "minimax_m3_vl",
    "mistral": "idefics2 mistral3",
    "nemotron_h": "nemotron_h_omni",
    "opt": "blip-2 instructblip instructblipvideo",
    "persimmon": "fuyu",
    "qwen2": """audioflamingo3 fast_vlm got_ocr2 internvl llava_onevision musicflamingo ovis2 pp_chart2table qwen2_audio
        video_llama_3""",
    "qwen2_5_vl_text": "qwen2_5_vl",
    "qwen2_vl_text": "qwen2_vl",
    "qwen3": "fun_asr_nano lighton_ocr qianfan_ocr qwen3_asr",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_5_text": "qwen3_5 minicpmv4_6 minicpmv4_7",
    "qwen3_vl_moe_text": "qwen3_vl_moe",
    "qwen3_vl_text": "qwen3_vl",
}
WRAPPERS: dict[str, str] = {wrapper: text for text, wrappers in _WRAPPED.items() for wrapper in wrappers.split()}
"""Multimodal types whose cache is their text decoder's -> the decoder's type, where the inner config doesn't say."""

RENAMED: dict[str, str] = {"kimi_k2": "deepseek_v3", "minimax_m3": "minimax_m3_vl_text"}
"""Types that exist on the hub only and have exactly the fields and layers of a known one."""

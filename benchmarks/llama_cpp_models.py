"""Models of a few narrow layers as GGUF files with zero weights, and their kvcalc specs: for llama_cpp_judge.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Attention = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
HIDDEN, WIDE, VOCAB, EXPERTS, CONTEXT = 128, 64, 64, 4, 32_768


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A model: its layers in the words of a kvcalc spec, and what else its architecture in llama.cpp asks for.

    layers   each a list of attention kinds; empty where a layer is a feed-forward network alone
    mtp      layers of multi-token prediction behind them
    norms    norms of the hidden size in a layer beside the usual two
    """

    arch: str
    layers: list[list[Attention]]
    name: str = ""
    mtp: int = 0
    norms: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    experts: bool = False

    @property
    def title(self) -> str:
        return self.name or self.arch

    def spec(self) -> dict[str, Any]:
        network = {"kind": "dense", "intermediate_size": WIDE}
        layers = [{"attention": each or None, "feed_forward": network} for each in self.layers]
        return {
            "name": f"{self.title}-tiny",
            "title": self.title,
            "source": {"cite": "benchmarks/llama_cpp_judge.py", "date": "2026-11-24"},
            "hidden_size": HIDDEN,
            "vocab_size": VOCAB,
            "tied_embeddings": True,
            "max_context_tokens": CONTEXT,
            "weight_formats": {"default": "bf16"},
            "layers": [{key: value for key, value in layer.items() if value} for layer in layers],
        }


def grouped(heads: int = 4, kv_heads: int = 2, width: int = 32, **more: Any) -> Attention:
    return {"kind": "gqa", "n_heads": heads, "n_kv_heads": kv_heads, "head_dim": width, **more}


def latent(**more: Any) -> Attention:
    sizes = {"kv_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64}
    return {"kind": "mla", "n_heads": 4, **sizes, **more}


MAMBA2 = {"kind": "mamba-2", "n_heads": 8, "head_dim": 32, "n_groups": 2, "d_state": 64, "conv_kernel": 4}
MAMBA1 = {"kind": "mamba-1", "d_inner": 256, "d_state": 64, "conv_kernel": 4, "dt_rank": 8, "input_norms": True}
DELTA = {
    "kind": "gated-deltanet",
    "n_k_heads": 2,
    "n_v_heads": 4,
    "k_head_dim": 32,
    "v_head_dim": 32,
    "conv_kernel": 4,
}
KDA = {"kind": "kda", "n_heads": 4, "head_dim": 32, "conv_kernel": 4}
LIGHTNING = {"kind": "lightning", "n_heads": 4, "head_dim": 32}
SHORT = {"kind": "short-conv", "channels": HIDDEN, "conv_kernel": 3}
DENSE_MLA = {
    "leading_dense_block_count": 99,
    "expert_feed_forward_length": WIDE,
    "expert_shared_count": 1,
    "expert_count": EXPERTS,
    "expert_used_count": 2,
    "expert_gating_func": 2,
    "expert_weights_scale": 1.0,
}
INDEXER = {"heads": 2, "head_dim": 64, "q_lora_rank": 32}
OWNER = latent(q_lora_rank=32, selection={"top_k": 64, "indexer": INDEXER})
SHARER = latent(q_lora_rank=32, selection={"top_k": 64, "indexer": "shared"})
GEMMA_NORMS = ("post_attention_norm", "post_ffw_norm")
MODELS = (
    Tiny(arch="llama", name="mha", layers=[[grouped(kv_heads=4)]] * 3),
    Tiny(arch="llama", name="gqa", layers=[[grouped()]] * 3),
    Tiny(arch="llama", name="mqa", layers=[[grouped(kv_heads=1)]] * 3),
    Tiny(arch="llama", name="mistral", layers=[[grouped(window_tokens=1024)]] * 3),
    Tiny(arch="phi3", layers=[[grouped(kv_heads=4, window_tokens=1000)]] * 3),
    Tiny(arch="gemma2", layers=[[grouped(window_tokens=1000)], [grouped()]] * 13, norms=GEMMA_NORMS),
    Tiny(
        arch="gemma3",
        layers=[[grouped(qk_norm="head", window_tokens=512)]] * 5
        + [[grouped(qk_norm="head")], [grouped(qk_norm="head", window_tokens=512)]],
        norms=GEMMA_NORMS,
    ),
    Tiny(
        arch="gemma4",
        layers=[[grouped(qk_norm="head", kv_heads=4, window_tokens=512)], [grouped(qk_norm="head", width=64)]] * 2
        + [
            [grouped(qk_norm="head", kv_heads=4, window_tokens=512, borrows_cache=True)],
            [grouped(qk_norm="head", width=64, borrows_cache=True)],
        ],
        norms=GEMMA_NORMS,
        metadata={"attention.shared_kv_layers": 2, "embedding_length_per_layer_input": 0},
    ),
    Tiny(
        arch="llama4",
        layers=[[grouped(chunk_tokens=8192)]] * 3 + [[grouped()]],
        metadata={"interleave_moe_layer_step": 99, **DENSE_MLA},
    ),
    Tiny(arch="glm4moe", layers=[[grouped()]] * 3, mtp=1, norms=("post_attention_norm",), metadata=DENSE_MLA),
    Tiny(
        arch="deepseek2",
        layers=[[latent(q_lora_rank=32)]] * 3,
        metadata={"rope.scaling.yarn_log_multiplier": 0.1, **DENSE_MLA},
    ),
    Tiny(arch="minicpm3", name="minicpm3", layers=[[latent(q_lora_rank=32)]] * 3),
    Tiny(arch="deepseek32", layers=[[OWNER]] * 3, metadata=DENSE_MLA),
    Tiny(
        arch="glm-dsa",
        layers=[[OWNER], [SHARER], [SHARER], [OWNER]],
        metadata={"attention.indexer.types": [True, False, False, True], **DENSE_MLA},
    ),
    Tiny(arch="jamba", layers=[[MAMBA1], [MAMBA1], [grouped()], [MAMBA1]]),
    Tiny(arch="mamba2", layers=[[MAMBA2]] * 3),
    Tiny(arch="falcon-h1", layers=[[grouped(), MAMBA2]] * 3),
    Tiny(arch="nemotron_h", layers=[[MAMBA2], [], [grouped()], [], [MAMBA2], []]),
    Tiny(
        arch="qwen3next",
        layers=[[DELTA]] * 3 + [[grouped(qk_norm="head", output_gate=True)]],
        experts=True,
        norms=("post_attention_norm",),
    ),
    Tiny(arch="lfm2", layers=[[SHORT], [grouped(qk_norm="head")], [SHORT], [SHORT]]),
    Tiny(arch="kimi-linear", layers=[[KDA], [KDA], [latent()], [KDA]], metadata=DENSE_MLA),
    Tiny(
        arch="minimax-01",
        layers=[[LIGHTNING]] * 3 + [[grouped()]],
        experts=True,
        metadata={"full_attention_interval": 4, "residual_scale": 1.0},
    ),
)


def shapes(model: Tiny) -> Shapes:
    """Every tensor, in ggml's order: the fastest dimension first."""
    norm = "token_embd_norm" if model.arch == "lfm2" else "output_norm"
    found: Shapes = {"token_embd.weight": (HIDDEN, VOCAB), f"{norm}.weight": (HIDDEN,)}
    if model.arch in ("kimi-linear", "minimax-01", "deepseek2"):
        found["output.weight"] = (HIDDEN, VOCAB)
    for index, attentions in enumerate(model.layers + model.layers[-1:] * model.mtp):
        layer: Shapes = {f"{name}.weight": (HIDDEN,) for name in ("attn_norm", *model.norms)}
        for attention in attentions:
            layer |= KINDS[attention["kind"]](attention, model)
        if model.arch not in ("nemotron_h", "mamba2", "qwen3next", "glm4moe"):
            layer["ffn_norm" if model.arch == "falcon-h1" else "ffn_norm.weight"] = (HIDDEN,)
        if model.arch not in ("nemotron_h", "mamba2") or not attentions:
            layer |= moe(model) if model.experts else dense(model)
        if index >= len(model.layers):
            layer |= {f"nextn.{name}.weight": (HIDDEN,) for name in ("enorm", "hnorm", "shared_head_norm")}
            layer |= {f"nextn.{name}.weight": (HIDDEN, VOCAB) for name in ("embed_tokens", "shared_head_head")}
            layer["nextn.eh_proj.weight"] = (2 * HIDDEN, HIDDEN)
        found |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
    if model.arch == "gemma4":
        found["rope_freqs.weight"] = (32,)
    return found


def dense(model: Tiny) -> Shapes:
    up = 2 * WIDE if model.arch == "phi3" else WIDE
    gate = {} if model.arch in ("phi3", "nemotron_h") else {"ffn_gate.weight": (HIDDEN, WIDE)}
    return {"ffn_up.weight": (HIDDEN, up), "ffn_down.weight": (WIDE, HIDDEN), **gate}


def moe(model: Tiny) -> Shapes:
    found: Shapes = {"ffn_gate_inp.weight": (HIDDEN, EXPERTS)}
    matrices: Shapes = {"gate": (HIDDEN, WIDE), "up": (HIDDEN, WIDE), "down": (WIDE, HIDDEN)}
    found |= {f"ffn_{name}_exps.weight": (*shape, EXPERTS) for name, shape in matrices.items()}
    if model.arch == "qwen3next":
        found |= {f"ffn_{name}_shexp.weight": shape for name, shape in matrices.items()}
        found["ffn_gate_inp_shexp.weight"] = (HIDDEN,)
    return found


def grouped_shapes(a: Attention, model: Tiny) -> Shapes:
    queries, keys, width = a["n_heads"] * a["head_dim"], a["n_kv_heads"] * a["head_dim"], a["head_dim"]
    found: Shapes = {
        "attn_q.weight": (HIDDEN, queries * (2 if a.get("output_gate") else 1)),
        "attn_k.weight": (HIDDEN, keys),
        "attn_v.weight": (HIDDEN, keys),
        "attn_output.weight": (queries, HIDDEN),
    }
    if model.arch == "phi3":
        found = {"attn_qkv.weight": (HIDDEN, queries + 2 * keys), "attn_output.weight": (queries, HIDDEN)}
    if model.arch == "glm4moe":
        found |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    norms: Shapes = {"attn_q_norm.weight": (width,), "attn_k_norm.weight": (width,)}
    return found | (norms if a.get("qk_norm") else {})


def latent_shapes(a: Attention, model: Tiny) -> Shapes:
    heads, rank, rope, nope, value = (
        a[name] for name in ("n_heads", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    queries = a.get("q_lora_rank")
    found: Shapes = {} if queries else {"attn_q.weight": (HIDDEN, heads * (nope + rope))}
    if queries:
        found = {"attn_q_a.weight": (HIDDEN, queries), "attn_q_a_norm.weight": (queries,)}
        found |= {"attn_q_b.weight": (queries, heads * (nope + rope))}
    found |= {
        "attn_kv_a_mqa.weight": (HIDDEN, rank + rope),
        "attn_kv_a_norm.weight": (rank,),
        "attn_output.weight": (heads * value, HIDDEN),
    }
    if model.arch == "minicpm3":
        return found | {"attn_kv_b.weight": (rank, heads * (nope + value))}
    found |= {"attn_k_b.weight": (nope, rank, heads), "attn_v_b.weight": (rank, value, heads)}
    if "selection" in a:
        index, width = INDEXER["heads"], INDEXER["head_dim"]
        found |= {"indexer.k_norm.weight": (width,), "indexer.k_norm.bias": (width,)}
        found |= {"indexer.proj.weight": (HIDDEN, index), "indexer.attn_k.weight": (HIDDEN, width)}
        found |= {"indexer.attn_q_b.weight": (queries, index * width)}
    return found


def mamba1_shapes(a: Attention, model: Tiny) -> Shapes:
    inner, state, rank = a["d_inner"], a["d_state"], a["dt_rank"]
    return {
        "ssm_in.weight": (HIDDEN, 2 * inner),
        "ssm_conv1d.weight": (a["conv_kernel"], inner),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (inner, rank + 2 * state),
        "ssm_dt_norm.weight": (rank,),
        "ssm_b_norm.weight": (state,),
        "ssm_c_norm.weight": (state,),
        "ssm_dt.weight": (rank, inner),
        "ssm_dt.bias": (inner,),
        "ssm_a": (state, inner),
        "ssm_d": (inner,),
        "ssm_out.weight": (inner, HIDDEN),
    }


def mamba2_shapes(a: Attention, model: Tiny) -> Shapes:
    heads, inner, groups = a["n_heads"], a["n_heads"] * a["head_dim"], a["n_groups"]
    channels = inner + 2 * groups * a["d_state"]
    return {
        "ssm_in.weight": (HIDDEN, inner + channels + heads),
        "ssm_conv1d.weight": (a["conv_kernel"], channels),
        "ssm_conv1d.bias": (channels,),
        "ssm_dt.bias": (heads,),
        "ssm_a": (1, heads),
        "ssm_d": (1, heads),
        "ssm_norm.weight": (inner // groups, groups),
        "ssm_out.weight": (inner, HIDDEN),
    }


def delta_shapes(a: Attention, model: Tiny) -> Shapes:
    heads, values = a["n_v_heads"], a["n_v_heads"] * a["v_head_dim"]
    channels = values + 2 * a["n_k_heads"] * a["k_head_dim"]
    return {
        "attn_qkv.weight": (HIDDEN, channels),
        "attn_gate.weight": (HIDDEN, values),
        "ssm_conv1d.weight": (a["conv_kernel"], channels),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_ba.weight": (HIDDEN, 2 * heads),
        "ssm_norm.weight": (a["v_head_dim"],),
        "ssm_out.weight": (values, HIDDEN),
    }


def kda_shapes(a: Attention, model: Tiny) -> Shapes:
    heads, width = a["n_heads"], a["head_dim"]
    inner = heads * width
    found: Shapes = {f"ssm_conv1d_{name}.weight": (a["conv_kernel"], 1, inner) for name in "qkv"}
    found |= {f"attn_{name}.weight": (HIDDEN, inner) for name in "qkv"}
    for name in "fg":
        found |= {f"ssm_{name}_a.weight": (HIDDEN, width), f"ssm_{name}_b.weight": (width, inner)}
    return found | {
        "ssm_beta.weight": (HIDDEN, heads),
        "ssm_a": (1, heads),
        "ssm_dt.bias": (inner,),
        "ssm_norm.weight": (width,),
        "attn_output.weight": (inner, HIDDEN),
    }


def lightning_shapes(a: Attention, model: Tiny) -> Shapes:
    inner = a["n_heads"] * a["head_dim"]
    return {
        "attn_norm_2.weight": (inner,),
        "attn_qkv.weight": (HIDDEN, 3 * inner),
        "attn_gate.weight": (HIDDEN, inner),
        "attn_output.weight": (inner, HIDDEN),
    }


def short_shapes(a: Attention, model: Tiny) -> Shapes:
    return {
        "shortconv.conv.weight": (a["conv_kernel"], HIDDEN),
        "shortconv.in_proj.weight": (HIDDEN, 3 * HIDDEN),
        "shortconv.out_proj.weight": (HIDDEN, HIDDEN),
    }


KINDS = {
    "gqa": grouped_shapes,
    "mla": latent_shapes,
    "mamba-1": mamba1_shapes,
    "mamba-2": mamba2_shapes,
    "gated-deltanet": delta_shapes,
    "kda": kda_shapes,
    "lightning": lightning_shapes,
    "short-conv": short_shapes,
}


def metadata(model: Tiny) -> dict[str, Any]:
    """The keys that llama.cpp reads, without the architecture's name before them."""
    layers = model.layers + model.layers[-1:] * model.mtp
    found: dict[str, Any] = {
        "context_length": CONTEXT,
        "embedding_length": HIDDEN,
        "block_count": len(layers),
        "vocab_size": VOCAB,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
    }
    if model.mtp:
        found["nextn_predict_layers"] = model.mtp
    if model.experts:
        found |= {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": WIDE}
        found |= {"expert_shared_feed_forward_length": WIDE}
    kv_heads, windows, networks = [], [], []
    for attentions in layers:
        attention = next((each for each in attentions if each["kind"] in ("gqa", "mla")), {})
        latents = 4 if model.arch == "minicpm3" else 1
        kv_heads.append(latents if attention.get("kind") == "mla" else attention.get("n_kv_heads", 0))
        windows.append("window_tokens" in attention)
        networks.append(0 if model.arch == "nemotron_h" and attentions else WIDE)
        for each in attentions:
            found |= of_kind(each, model)
    if model.arch != "mamba2":
        by_layer = model.arch in ("jamba", "lfm2", "nemotron_h", "kimi-linear", "gemma4")
        found |= {"attention.head_count": 4, "attention.head_count_kv": kv_heads if by_layer else max(kv_heads)}
    if model.arch == "gemma4":
        found["attention.sliding_window_pattern"] = windows
    found["feed_forward_length"] = networks if model.arch == "nemotron_h" else WIDE
    return found | model.metadata


def of_kind(a: Attention, model: Tiny) -> dict[str, Any]:
    """The keys of an attention kind."""
    kind = a["kind"]
    if kind in ("gqa", "lightning"):
        swa = "_swa" if "window_tokens" in a and model.arch == "gemma4" else ""
        width = a["head_dim"]
        found = {f"attention.key_length{swa}": width, f"attention.value_length{swa}": width}
        found |= {f"rope.dimension_count{swa}": width}
        return found | ({"attention.sliding_window": a["window_tokens"]} if "window_tokens" in a else {})
    if kind == "mla":
        rank, rope = a["kv_lora_rank"], a["qk_rope_head_dim"]
        whole = (a["qk_nope_head_dim"] + rope, a["v_head_dim"])
        expanded = model.arch == "minicpm3"
        key, value = whole if expanded else (rank + rope, rank)
        found = {"attention.kv_lora_rank": rank, "rope.dimension_count": rope}
        found |= {"attention.q_lora_rank": a["q_lora_rank"]} if "q_lora_rank" in a else {}
        found |= {"attention.key_length": key, "attention.value_length": value}
        found |= {} if expanded else {"attention.key_length_mla": whole[0], "attention.value_length_mla": whole[1]}
        if "selection" in a:
            found |= {"attention.indexer.head_count": INDEXER["heads"], "attention.indexer.top_k": 64}
            found |= {"attention.indexer.key_length": INDEXER["head_dim"]}
        return found
    if kind == "short-conv":
        return {"shortconv.l_cache": a["conv_kernel"]}
    if kind == "kda":
        return {"ssm.conv_kernel": a["conv_kernel"], "kda.head_dim": a["head_dim"]}
    if kind == "mamba-1":
        inner, state, rank, groups = a["d_inner"], a["d_state"], a["dt_rank"], 0
    elif kind == "mamba-2":
        inner, state, rank, groups = a["n_heads"] * a["head_dim"], a["d_state"], a["n_heads"], a["n_groups"]
    else:
        inner, state, rank, groups = a["n_v_heads"] * a["v_head_dim"], a["k_head_dim"], a["n_v_heads"], a["n_k_heads"]
    found = {"conv_kernel": a["conv_kernel"], "inner_size": inner, "state_size": state, "time_step_rank": rank}
    return {f"ssm.{key}": value for key, value in (found | {"group_count": groups}).items()}


def write_gguf(model: Tiny, path: Path) -> None:
    import numpy
    from gguf import GGUFWriter

    writer = GGUFWriter(path, model.arch)
    writer.add_name(model.title)
    writer.add_tokenizer_model("no_vocab")
    for key, value in metadata(model).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add[type(value)](f"{model.arch}.{key}", value)
    for name, shape in shapes(model).items():
        writer.add_tensor(name, numpy.zeros(shape[::-1], dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

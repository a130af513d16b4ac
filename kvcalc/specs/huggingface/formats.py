"""Number formats of the published weights, from `dtype` and `quantization_config`."""

from collections.abc import Mapping
from typing import Any

from kvcalc.specs.huggingface.config import Config

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float": "fp32", "half": "fp16"}


def weight_formats(outer: Mapping[str, Any], text: Config) -> dict[str, str]:
    """`default`, and the parts that differ: quantised checkpoints leave embedding, head, norms and router alone."""
    stated = next((m[key] for m in (text.given, outer) for key in ("dtype", "torch_dtype") if m.get(key)), "bfloat16")
    plain = DTYPES.get(str(stated).removeprefix("torch."))
    if plain is None:
        text.refuse("torch_dtype", f"dtype '{stated}' is not known", "known: " + ", ".join(DTYPES))
    quantization = text.given.get("quantization_config") or outer.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return {"default": plain}
    unquantised = dict.fromkeys(("embedding", "head", "router", "norm", "other"), plain)
    quantised = _quantised(quantization)
    if quantised is None:
        method = quantization.get("quant_algo") or quantization.get("quant_method")
        text.refuse(
            "quantization_config",
            f"quantization '{method}' has no single weight format that kvcalc knows",
            "remove quantization_config to size the weights in their dtype, or write a spec with weight_formats",
        )
    if quantised == "mxfp4":
        return {"default": plain, "experts": "mxfp4"}
    excluded = str(quantization.get("ignore") or quantization.get("modules_to_not_convert") or "")
    for part, module in (("attention", "self_attn"), ("shared_experts", "shared_expert")):
        if module in excluded:
            unquantised[part] = plain
    if text.get("expert_dtype") == "fp4":  # DeepSeek-V4 ships its experts apart
        unquantised["experts"] = "mxfp4"
    return {"default": quantised, **unquantised}


def _quantised(quantization: Mapping[str, Any]) -> str | None:
    method = str(quantization.get("quant_method") or "").replace("_", "-").lower()
    algorithm = quantization.get("quant_algo")  # NVIDIA's ModelOpt
    if algorithm is not None:
        return {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4"}.get(str(algorithm))
    bits = quantization.get("bits")
    if method in ("fp8", "fbgemm-fp8"):
        return "fp8_block" if quantization.get("weight_block_size") else "fp8"
    if method == "mxfp4":
        return "mxfp4"
    if method in ("gptq", "awq", "auto-round"):
        return {4: "int4", 8: "int8"}.get(bits if isinstance(bits, int) else 4)
    if method == "bitsandbytes":
        return "int4" if quantization.get("load_in_4bit") else "int8"
    if method == "bitnet":
        return None
    if method == "compressed-tensors":
        groups = quantization.get("config_groups") or {}
        weights = next((group.get("weights") or {} for group in groups.values() if isinstance(group, Mapping)), {})
        kind, bits = weights.get("type"), weights.get("num_bits")
        return {("float", 8): "fp8", ("int", 8): "int8", ("int", 4): "int4", ("float", 4): "nvfp4"}.get((kind, bits))
    return None

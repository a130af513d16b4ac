"""Matrix products of the torch kernels and of the matmul ceiling: the fastest route that a device has.

On a CPU, torch multiplies fp32 with MKL, which is slower on AMD than oneDNN (AVX2: 1.1 times, AVX-512: 2.2 times on an
EPYC Zen 5, torch 2.13); oneDNN's inner product is reachable through an operator that torch registers for its compiler.
Formats that a CPU has no units for (bf16 and fp16 on AVX2: 1 GFLOP/s) are widened to fp32 first, by the timed call
itself.
"""

import torch


def has_onednn_linear(device: torch.device) -> bool:
    """Whether fp32 products on this device can go through oneDNN's inner product."""
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops, "mkldnn")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The format that products of `dtype` are computed in: itself where the device has units for it, else fp32."""
    if device.type != "cpu" or dtype is torch.float32:
        return dtype
    probe = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, probe) and getattr(torch.ops.mkldnn, probe)():
        return dtype
    return torch.float32


def times_transposed(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """x [M, K] times the transpose of rows [N, K] -> [M, N]. `rows` or its transpose has to be contiguous."""
    if x.dtype is torch.float32 and has_onednn_linear(x.device):
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, rows, None, "none", [], "")
        return product
    return x @ rows.t()

"""The kernels, in one explicit table: adding a kernel is one file and one line here.

Neither torch nor triton is imported before a kernel is loaded. The order is the order in which they run and are listed.
"""

from importlib import import_module

from kvcalc.errors import UsageError
from kvcalc.profiling.kernels.base import Kernel, Missing, Output

KERNELS: dict[str, str] = {
    "native-decode": "kvcalc.profiling.kernels.native_decode:NativeDecode",
    "torch-sdpa": "kvcalc.profiling.kernels.torch_sdpa:TorchSdpa",
    "torch-absorbed": "kvcalc.profiling.kernels.torch_absorbed:TorchAbsorbed",
    "torch-expanded": "kvcalc.profiling.kernels.torch_expanded:TorchExpanded",
    "triton-mla": "kvcalc.profiling.kernels.triton_mla:TritonMla",
    "triton-gqa": "kvcalc.profiling.kernels.triton_gqa:TritonGqa",
    "flashmla": "kvcalc.profiling.kernels.flashmla:FlashMla",
    "flashinfer": "kvcalc.profiling.kernels.flashinfer:FlashInfer",
}
"""Name of a kernel, and the module and class that it is; the class is called without arguments."""


def load(name: str) -> Kernel:
    """The kernel of that name; one whose package is missing supports nothing. Raises UsageError for other names."""
    if name not in KERNELS:
        from kvcalc.names import nearest

        raise UsageError(f"unknown kernel '{name}'", hint=nearest(name, list(KERNELS)))
    module, _, attribute = KERNELS[name].partition(":")
    try:
        found = getattr(import_module(module), attribute)()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("kvcalc"):
            raise
        return Missing(name, f"{error.name} is not installed")
    kernel: Kernel = found
    return kernel


__all__ = ["KERNELS", "Kernel", "Missing", "Output", "load"]

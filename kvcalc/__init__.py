"""kvcalc: how many bytes an LLM's KV cache takes, how long a step takes, and whether that is true on this machine.

The commands are one import away, loaded when they are first asked for:

>>> import kvcalc
>>> kvcalc.estimate("deepseek-v3", context_tokens=131072).to_json()["cache"]["bytes_per_token"]
70272
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvcalc.api import compare, estimate, load_gpu, load_model

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "estimate", "load_gpu", "load_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from kvcalc import api

        return getattr(api, name)
    raise AttributeError(f"module 'kvcalc' has no attribute {name!r}")

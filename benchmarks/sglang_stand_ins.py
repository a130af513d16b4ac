"""SGLang without its CUDA stack: what sizes and builds its pools comes from an unpacked wheel, all else is a stand-in.

A stand-in answers whatever is asked of it; questions about the platform get a no, so that the code takes the ways of a
plain NVIDIA GPU whose generation is not known.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from engine_judge import Stub  # noqa: E402


class No:
    """A feature that is off, whichever way it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any, **__: Any) -> None:
        return None

    def __bool__(self) -> bool:
        return False


class Options:
    """SGLang's arguments and process-wide settings in one: what is set here, else what its arguments default to."""

    def __init__(self, declared: dict[str, Any]) -> None:
        self.__dict__.update(declared)

    def __getattr__(self, name: str) -> Any:
        if name in ("kernel", "mamba", "features", "graph", "cuda_graph_config", "prefill"):
            return self
        raise AttributeError(name)

    def override(self, _: str, **values: Any) -> None:
        self.__dict__.update(values)


OPTIONS = Options({})


class Config:
    """As much of transformers' PretrainedConfig as SGLang asks for."""

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)

    def get_text_config(self, *_: Any, **__: Any) -> Any:
        return self.__dict__.get("text_config", self)


class Struct(Config):
    """msgspec's: made of keywords too."""

    def __init_subclass__(cls, **_: Any) -> None:
        """Takes frozen and the like."""


class Elsewhere(Stub):
    """Questions about the platform get a no; a configuration class of transformers is one like all."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("is_", "cpu_has", "use_")):
            return No()
        return Config if re.fullmatch(r"(?!Auto)\w+Config", name) else super().__getattr__(name)


ABSENT = frozenset(
    ("huggingface_hub", "msgspec", "orjson", "psutil", "regex", "sglang", "torchvision", "transformers", "triton")
)


class Finder:
    """Finds what sizes and builds pools in the wheel, and stand-ins for all else that is not installed."""

    REAL = re.compile(
        r"sglang\.srt\.(environ|(configs|mem_cache)(\.\w+)*|distributed\.utils|layers\.(cp\.utils|attention\.qsa\.config|"
        r"quantization\.fp4_kv_cache_quant_method)|model_executor\.(model_runner(_kv_cache_mixin|_components\.layer_setup)?|"
        r"pool_configurator))$"
    )

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        top = name.partition(".")[0]
        if top == "sglang" and self.REAL.match(name):
            file = self.root / name.replace(".", "/")
            if (file / "__init__.py").exists():
                places = [str(file)]
                return importlib.util.spec_from_file_location(
                    name, file / "__init__.py", submodule_search_locations=places
                )
            if file.with_suffix(".py").exists():
                return importlib.util.spec_from_file_location(name, file.with_suffix(".py"))
        if top not in ABSENT:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = (Elsewhere if spec.name.startswith(("sglang.srt.utils", "transformers")) else Stub)(spec.name)
        module.__path__ = []  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__.update(STAND_INS.get(module.__name__, {}))
        if module.__name__.startswith("sglang.srt.utils"):
            module.__dict__.update(UTILS)


UTILS: dict[str, Any] = {
    "is_float4_e2m1fn_x2": lambda dtype: str(dtype) == "torch.float4_e2m1fn_x2",
    "get_available_gpu_memory": lambda *_, **__: OPTIONS.available_gib,
    "ceil_div": lambda a, b: -(-a // b),
    "ceil_align": lambda a, b: -(-a // b) * b,
    "get_hf_text_config": lambda config: config.get_text_config(),
    "next_power_of_2": lambda n: 1 << max(0, n - 1).bit_length(),
}
ALONE = types.SimpleNamespace(world_size=1, cpu_group=None)
NAMESPACES = ("schedule", "memory", "exec", "model", "parallel", "spec", "disagg", "mm", "context", "server_args")
STAND_INS: dict[str, dict[str, Any]] = {
    "msgspec": {"Struct": Struct},
    "sglang.srt.multimodal.customized_mm_processor_utils": {
        "register_customized_processor": lambda *_, **__: lambda kind: kind
    },
    "sglang.srt.server_args": {
        "m3_fp8_attn_gemm_enabled": lambda *_: False,
        "get_global_server_args": lambda: OPTIONS,
    },
    "sglang.srt.platforms": {"current_platform": No()},
    "sglang.srt.runtime_context": {f"get_{name}": lambda: OPTIONS for name in NAMESPACES}
    | {
        "get_platform": lambda: No(),
        "linear_attn_tp_size": lambda: OPTIONS.attn_tp_size,
        "configured_pp_size": lambda: 1,
        "max_speculative_num_draft_tokens": lambda: None,
    },
    "sglang.srt.layers.dp_attention": {"get_attention_tp_size": lambda: OPTIONS.attn_tp_size},
    "sglang.srt.distributed": {"get_world_group": lambda: ALONE},
    "sglang.srt.distributed.parallel_state": {"get_world_group": lambda: ALONE},
}


def declared(root: Path) -> dict[str, Any]:
    """What SGLang's arguments default to: their literals, or the fallback that one names."""
    found: dict[str, Any] = {}
    srt = root / "sglang/srt"
    for file in (srt / "server_args.py", *sorted((srt / "arg_groups/fields").glob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                fallbacks = [
                    word.value
                    for word in ast.walk(node.annotation)
                    if isinstance(word, ast.keyword) and word.arg == "fallback"
                ]
                for value in (node.value, *fallbacks):
                    if isinstance(value, ast.Constant) and found.get(node.target.id) is None:
                        found[node.target.id] = value.value
    return found


def install(root: Path) -> None:
    """Let SGLang be imported from an unpacked wheel, and from that one alone."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ABSENT]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    sys.meta_path.insert(0, Finder(root))

"""The engines whose cache layouts are known: an explicit table; each module is imported when it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING

from kvcalc.errors import UsageError
from kvcalc.names import nearest

if TYPE_CHECKING:
    from kvcalc.architecture.layout import Layout
    from kvcalc.engines.base import Engine, Request

MODULES = {
    "vllm": "kvcalc.engines.vllm",
    "sglang": "kvcalc.engines.sglang",
    "trtllm": "kvcalc.engines.trtllm",
    "llama-cpp": "kvcalc.engines.llama_cpp",
    "transformers": "kvcalc.engines.transformers",
}
ALIASES = {"llama.cpp": "llama-cpp", "llama_cpp": "llama-cpp", "tensorrt-llm": "trtllm", "hf": "transformers"}
GENERIC = "generic"
NAMES = (GENERIC, *MODULES)


def split_name(text: str) -> tuple[str, str | None]:
    """`vllm@0.33` as ("vllm", "0.33"). Raises UsageError for an engine that is not in the table."""
    name, at, version = text.strip().partition("@")
    name = ALIASES.get(name.lower(), name.lower())
    if name not in NAMES:
        raise UsageError(f"no cache layout is known for engine '{text}'", hint=nearest(name, NAMES))
    if at and (name == GENERIC or not version):
        raise UsageError(f"'{text}' names no version", hint="write vllm@0.33, or generic alone")
    return name, version or None


def load_engine(name: str) -> "Engine":
    """The engine of a name in the table."""
    engine: Engine = import_module(MODULES[name]).ENGINE
    return engine


def engine_layout(text: str, request: "Request") -> "Layout":
    """The layout of `engine@version` for a model. Raises UsageError where the version's rules are not known."""
    name, version = split_name(text)
    engine = load_engine(name)
    return engine.make(request, engine.version(version))


def default_memory_utilization(text: str) -> float | None:
    """The share of the GPU that an engine takes by default; None where it is no constant."""
    name, version = split_name(text)
    if name == GENERIC:
        return None
    engine = load_engine(name)
    rule = engine.memory_utilization
    return None if rule is None else rule.at(engine.version(version))

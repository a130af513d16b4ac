"""Small rules that several families share: which layer is of which kind, and values that follow from other fields."""

from collections.abc import Callable
from typing import Any

from kvcalc.names import nearest
from kvcalc.specs.huggingface.config import Config, Reference

LayerRule = Callable[[Config], list[str]]

_LEGACY_LAYER_TYPES = {
    "attention": "full_attention",
    "mamba": "linear_attention",
    "deepseek_sparse_attention": "indexed_attention",
}


def layers(config: Config) -> int:
    return config.count("num_hidden_layers")


def constant(kind: str) -> LayerRule:
    return lambda config: [kind] * layers(config)


def by_index(is_first: Callable[[int], bool], first: str, second: str) -> LayerRule:
    """The kind of each layer from its index, which starts at 0."""
    return lambda config: [first if is_first(index) else second for index in range(layers(config))]


def every(period: Reference, kind: str = "full_attention", between: str = "sliding_attention") -> LayerRule:
    """Each period-th layer is of `kind`, counted from 1: five local ones, then a global one."""

    def rule(config: Config) -> list[str]:
        step = config.value(period)
        if not isinstance(step, int) or step < 1:
            config.refuse(str(period), f"'{period}' must be a whole number of at least 1, not {step!r}")
        return [between if (index + 1) % step else kind for index in range(layers(config))]

    return rule


def listed(otherwise: LayerRule, field: str = "layer_types") -> LayerRule:
    """The publisher's list, or the rule of the class where the file has none."""

    def rule(config: Config) -> list[str]:
        kinds = config.get(field)
        if kinds is None:
            return otherwise(config)
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            config.refuse(field, f"'{field}' must be a list of names")
        return [_LEGACY_LAYER_TYPES.get(kind, kind) for kind in kinds]

    return rule


def first_dense(field: Reference = "first_k_dense_replace", dense: str = "dense", sparse: str = "sparse") -> LayerRule:
    """So many dense layers, then mixtures of experts."""

    def rule(config: Config) -> list[str]:
        leading = config.value(field) or 0
        return [dense if index < leading else sparse for index in range(layers(config))]

    return rule


def sparse_step(config: Config) -> list[str]:
    """Qwen's placement: each decoder_sparse_step-th layer is a mixture, unless mlp_only_layers lists it."""
    step, dense = config.get("decoder_sparse_step", 1) or 1, config.get("mlp_only_layers") or []
    return ["sparse" if index not in dense and (index + 1) % step == 0 else "dense" for index in range(layers(config))]


def qwen_windows(config: Config) -> list[str]:
    """Layers from max_window_layers on are windowed, if windows are switched on at all."""
    windowed = config.get("use_sliding_window") and config.get("sliding_window")
    start = config.get("max_window_layers") or 0
    return ["sliding_attention" if windowed and index >= start else "full_attention" for index in range(layers(config))]


def head_dim(config: Config) -> int:
    """head_dim, or hidden_size over the heads where the file leaves it out."""
    stated = config.get("head_dim")
    return stated if stated is not None else hidden_over_heads(config)


def hidden_over_heads(config: Config) -> int:
    return config.count("hidden_size") // config.count("num_attention_heads")


def four_hidden(field: str = "intermediate_size") -> Callable[[Config], int]:
    """The field, or four times the hidden size where it is null."""
    return lambda config: config.get(field) or 4 * config.count("hidden_size")


def when(flag: str, value: Any, otherwise: Any = None) -> Callable[[Config], Any]:
    """A value (a field's name is looked up) that holds where the flag is set."""
    return lambda config: config.value(value) if config.get(flag) else otherwise


def unknown_kind(config: Config, field: str, kind: str, known: list[str]) -> None:
    config.refuse(
        field, f"'{field}' of {config.model_type} has '{kind}', which kvcalc doesn't model", nearest(kind, known)
    )

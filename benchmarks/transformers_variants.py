"""The configs that the judge tries: class defaults, and two small changed ones whose dimensions all differ."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers_variant_tables import CHANGES, FLIPPED, RUNNABLE, SKIP, SPECIFIC

NOT_ARCHITECTURE = re.compile(
    r"""_token_id|dropout|_eps$|epsilon|initializer|^init|^rope|rope_theta|rope_inter|_loss|pdrop|(?<!dim_)multiplier|scal|softcap|^summary
    |^hidden_act|activation|act_fn|time_step_(m|f|l|s|i)|_std$|output_router|use_cache|norm_topk|^n_group$|topk_group|topk_method
    |scoring|jitter|pretraining_tp|(?<!attention_)chunk_size$|swiglu_|z_loss|logits|hc_(eps|sink)|vision|audio|_act$|image|video|^eo[a-z]_
    |use_mamba|associative|rescale|residual_in|layerdrop|original_max""",
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A config to try. `changes` are the arguments of its class: what a sparse config.json would hold."""

    label: str
    config: Any
    changes: dict[str, Any]
    wrapper: Any = None

    def forms(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config.json in whole, and the sparse one; with a wrapper, inside it as its text_config."""
        whole, sparse = self.config.to_dict(), {"model_type": self.config.model_type, **self.changes}
        if self.wrapper is not None:
            whole = {**self.wrapper.to_dict(), "text_config": whole}
            sparse = {"model_type": self.wrapper.model_type, "text_config": sparse}
        return json.loads(json.dumps(whole, default=str)), sparse


def variants(model_type: str, text_type: str | None = None) -> Iterator[Variant]:
    """Class defaults (with the least that makes them run, where transformers can't run its own), and two changed ones.

    For a multimodal type, `text_type` is its text decoder's: the variants are that one's, wrapped.
    """
    if text_type is not None:
        wrapper = CONFIG_MAPPING[model_type]()
        yield from (dataclasses.replace(variant, wrapper=wrapper) for variant in variants(text_type))
        return
    config_class = CONFIG_MAPPING[model_type]
    least = RUNNABLE.get(model_type, {})
    default = config_class(**least)
    yield Variant(label="defaults", config=default, changes=least)
    for which, label in enumerate(("changed-1", "changed-2")):
        changes = _changes(config_class().to_dict(), model_type, which)
        config = config_class(**changes)
        for name in ("layer_types", "mlp_layer_types") if which == 1 else ():
            kinds = getattr(config, name, None) or []
            if name not in changes and len(set(kinds)) > 1:
                turned = changes | {name: list(reversed(kinds))}
                try:
                    config, changes = config_class(**turned), turned
                except (AttributeError, ValueError):  # a class whose layer types follow from other fields
                    continue
        yield Variant(label=label, config=config, changes=changes)


def _changes(values: dict[str, Any], model_type: str, which: int) -> dict[str, Any]:
    changes = {
        name: pair[which]
        for name, pair in CHANGES.items()
        if values.get(name) is not None and not isinstance(values[name], list)
    }
    changes |= {
        name: not values[name] for name, flips in FLIPPED.items() if flips[which] and isinstance(values.get(name), bool)
    }
    tokens = ("pad_token_id", "bos_token_id", "eos_token_id")
    changes |= {name: 0 for name in tokens if values.get(name) is not None}  # inside the small vocabulary
    if "qk_rope_head_dim" in changes:
        changes["num_key_value_heads"] = changes.get("num_attention_heads")
        if "head_dim" in changes:
            changes["head_dim"] = changes["qk_rope_head_dim"]
    if which == 1 and values.get("sliding_window", 0) is None:
        changes["sliding_window"] = CHANGES["sliding_window"][which]
    changes |= SPECIFIC.get(model_type, ({}, {}))[which]
    return {name: value for name, value in changes.items() if value is not SKIP}


def class_default_fields(config_class: type) -> dict[str, Any]:
    """Fields of a config class that may matter to its architecture, with the defaults that the class declares."""
    base = {field.name for field in dataclasses.fields(PretrainedConfig)} - {"tie_word_embeddings"}
    inner = getattr(config_class, "sub_configs", {})
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if field.name in base or field.name in inner or NOT_ARCHITECTURE.search(field.name):
            continue
        value = field.default
        if value is dataclasses.MISSING:
            value = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        if value is None or isinstance(value, (bool, int, float, str, list, tuple)):
            found[field.name] = value
    return found

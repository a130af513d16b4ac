"""`config.json` to a model spec: find the family, read its fields, write its layers.

    spec_from_config(config, source="deepseek-ai/DeepSeek-V3 config.json") -> {"name": "deepseek-v3", ...}

The result has the shape of a YAML spec and is checked and built like one. A type, or a field that changes the cache or
the parameters, that no table models is refused by name: there is no generic reading of an unknown config.
"""

import datetime
import re
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

from kvcalc.errors import Problem, SpecError
from kvcalc.names import nearest
from kvcalc.specs.huggingface.config import Config
from kvcalc.specs.huggingface.families import FAMILIES
from kvcalc.specs.huggingface.family import Family, unmodelled
from kvcalc.specs.huggingface.formats import weight_formats
from kvcalc.specs.huggingface.layers import runs
from kvcalc.specs.huggingface.mtp import mtp_count, mtp_layers
from kvcalc.specs.huggingface.refused import REFUSED, RENAMED, TEXT_KEYS, WRAPPERS
from kvcalc.specs.huggingface.rows import Part, options
from kvcalc.specs.reader import Document

TELLING_SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_experts",
    "num_experts_per_tok",
    "kv_lora_rank",
    "max_position_embeddings",
)
"""Fields that decide how large a model and its cache are: the class's default is right, but worth saying."""

UNLIMITED_CONTEXT_TOKENS = 1 << 20
"""Stated for models that have no maximum of their own (purely recurrent ones)."""


def spec_from_config(
    config: Mapping[str, Any],
    *,
    source: str,
    name: str | None = None,
    title: str | None = None,
    date: datetime.date | None = None,
    document: Document | None = None,
) -> dict[str, Any]:
    """The spec of the text decoder that a config describes. Raises SpecError for what kvcalc doesn't model.

    source    where the config is from; cited in the spec
    name      the spec's name; otherwise from `_name_or_path` or the source
    document  the document that the config was read from, for the place of an error
    """
    text = text_config(config, source=source, document=document)
    problems = unmodelled(text, FAMILIES[text.model_type])
    try:
        spec = _spec(config, text, name=name, title=title or _title(config, source), date=date or datetime.date.today())
    except SpecError as error:
        raise SpecError(problems or error.problems) from None  # what follows from an unmodelled value is no news
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
        if problems:
            raise SpecError(problems) from None
        # a value that no table foresaw, such as a text where a number belongs
        field = text.last_read
        text.refuse(field, f"'{field}' of {text.model_type} is {text.get(field)!r}: kvcalc can't use that value")
    if problems := [*problems, *text.unread()]:
        raise SpecError(problems)
    if taken := _defaults_taken(text):
        warnings.warn(f"{source} leaves out, and the class defaults of {text.model_type} say: {taken}", stacklevel=2)
    return spec


def _defaults_taken(config: Config) -> str:
    """The sizes that the config does not state and the tables used all the same."""
    names = [name for name in TELLING_SIZES if name in config.read and not config.is_given(name)]
    values = {name: config.get(name) for name in names}
    if "num_key_value_heads" in values and values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = "as many as query heads"
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _spec(
    config: Mapping[str, Any], text: Config, *, name: str | None, title: str, date: datetime.date
) -> dict[str, Any]:
    family = FAMILIES[text.model_type]
    layers = family.layers(text)
    norms = _most_common(layer["norms"] for layer in layers)
    for layer in layers:
        if layer["norms"] == norms:
            del layer["norms"]
    return {
        "name": name or spec_name(title),
        "title": title,
        "source": {"cite": text.source, "date": date},
        **options(notes=_notes(text, family)),
        "hidden_size": text.count("hidden_size"),
        "vocab_size": text.count("vocab_size"),
        "tied_embeddings": bool(text.value(family.tied)),
        "max_context_tokens": text.get("max_position_embeddings") or UNLIMITED_CONTEXT_TOKENS,
        **_model_options(text, family, norms),
        "weight_formats": weight_formats(config, text),
        **options(cache_formats=_cache_formats(text, family) or None),
        "layers": runs(layers),
        **options(mtp=mtp_layers(text, family.mtp(text, layers)) if family.mtp else None),
        **options(other=family.model_other(text) if family.model_other else None),
    }


def text_config(config: Mapping[str, Any], *, source: str, document: Document | None = None) -> Config:
    """The text decoder's config, of a type that the tables know."""
    if not isinstance(config, Mapping):
        raise SpecError([Problem(message=f"{source}: a config is a mapping of keys")])
    model_type = config.get("model_type")

    def refuse(message: str, hint: str | None = None, within: tuple[str, ...] = ()) -> NoReturn:
        place = document.place((*within, "model_type"), of_value=True) if document else None
        raise SpecError([Problem(message=message if place else f"{source}: {message}", place=place, hint=hint)])

    if not isinstance(model_type, str):
        refuse("no 'model_type': it names the architecture", nearest(str(model_type), FAMILIES) if model_type else None)
    if model_type in REFUSED:
        refuse(f"model_type '{model_type}' is not modelled: {REFUSED[model_type]}")
    if config.get("is_encoder_decoder") is True:
        refuse(f"model_type '{model_type}' is an encoder-decoder (is_encoder_decoder): kvcalc models decoder-only ones")
    known = RENAMED.get(model_type, model_type)
    if known in FAMILIES:
        return Config(config, model_type=known, source=source, document=document)
    if model_type not in WRAPPERS:
        refuse(f"model_type '{model_type}' is not known", nearest(model_type, [*FAMILIES, *WRAPPERS]))
    key = next((key for key in TEXT_KEYS if isinstance(config.get(key), Mapping)), None)
    if key is None and config.get("hidden_size") is not None:  # older files have the text decoder's keys at the top
        return Config(config, model_type=WRAPPERS[model_type], source=source, document=document)
    if key is None:
        refuse(f"model_type '{model_type}' has no text_config: its text decoder is described there")
    inner_type = config[key].get("model_type") or WRAPPERS[model_type]
    if inner_type in REFUSED:
        reason = f"is not modelled: {REFUSED[inner_type]}"
        refuse(f"the text decoder of '{model_type}', '{inner_type}', {reason}", within=(key,))
    inner_type = RENAMED.get(inner_type, inner_type)
    if inner_type not in FAMILIES:
        hint = nearest(str(inner_type), FAMILIES)
        refuse(f"the text decoder of '{model_type}', '{inner_type}', is not known", hint, within=(key,))
    inner = dict(config[key])
    if "tie_word_embeddings" not in inner and "tie_word_embeddings" in config:
        inner["tie_word_embeddings"] = config["tie_word_embeddings"]
    return Config(inner, model_type=inner_type, source=source, document=document, path=(key,))


def spec_name(title: str) -> str:
    """`deepseek-ai/DeepSeek-V3` -> `deepseek-v3`."""
    name = re.sub(r"[^a-z0-9._-]+", "-", title.rsplit("/", 1)[-1].lower()).strip("-._")
    return name[:100] or "model"


def _title(config: Mapping[str, Any], source: str) -> str:
    stated = str(config.get("_name_or_path") or "")
    if stated and not stated.startswith((".", "/")):
        return stated.rsplit("/", 1)[-1]
    stem = re.sub(r"([/\\]?config)?\.json.*$", "", source.removeprefix("hf:")).rstrip("/\\ ")
    last = re.split(r"[/\\]", stem)[-1].partition("@")[0]
    return str(config.get("model_type")) if last in ("", "config", "<stdin>") else last


def _most_common(values: Any) -> int:
    listed = list(values)
    return max(sorted(set(listed)), key=listed.count)


def _model_options(config: Config, family: Family, norms: int) -> Part:
    """Keys of the model that are written only where they differ from what a spec has by default."""
    norm = family.norm(config) if callable(family.norm) else family.norm
    embedding = config.value(family.embedding_size)
    return {
        **({} if norm == "rms" else {"norm": norm}),
        **({} if norms == 2 else {"norms_per_layer": norms}),
        **({} if config.value(family.final_norm) else {"final_norm": False}),
        **options(
            embedding_size=None if embedding == config.get("hidden_size") else embedding,
            position_rows=config.value(family.position_rows),
            head_bias=bool(config.value(family.head_bias)),
        ),
    }


def _cache_formats(config: Config, family: Family) -> Part:
    """The family's, and single precision for recurrent states where the file asks for it."""
    stated = (config.get(field) for field in ("mamba_ssm_dtype", "mamba_ssm_cache_dtype"))
    return {**family.cache_formats, **({"state": "fp32"} if "float32" in stated else {})}


def _notes(config: Config, family: Family) -> str | None:
    unlimited = config.get("max_position_embeddings") is None
    stated = "The config states no maximum context." if unlimited else None
    left_out = "Its multi-token prediction layers are left out." if mtp_count(config) and not family.mtp else None
    return " ".join(note for note in (family.note, stated, left_out) if note) or None

"""transformers as the judge of `kvcalc import`: every causal LM type that it knows, beside what kvcalc reads.

For each model type three configs are tried: the class defaults and two small changed ones (layers, heads, kv heads,
head size, window, layer types, experts, biases, tied embeddings: whatever of these the class has). The model is built
on the meta device, its parameters are counted, and it is run at several lengths. kvcalc imports each config twice: the
whole `config.to_dict()`, and a sparse one with only what was changed, where kvcalc's own class defaults must fill the
rest. Right means the same number of parameters, and for every tensor of every layer's cache the same elements a token,
the same cap and the same constant. A type is right only if all three variants are, in both forms.

It needs kvcalc, torch and transformers on the path; PYTHONPATH=. serves in a checkout.

    python benchmarks/transformers_judge.py                                 judge all types, into benchmarks/results/
    python benchmarks/transformers_judge.py --types llama gemma3_text -v    some types, and what differs
    python benchmarks/transformers_judge.py --survey survey.json            what transformers has, nothing of kvcalc
    python benchmarks/transformers_judge.py --write-defaults                refresh kvcalc's class_defaults.json

How the caches are set side by side:
    a window of w tokens       transformers' dynamic cache keeps w - 1: the newest token brings itself
    a convolution of k         transformers keeps k columns, kvcalc (as engines do) the k - 1 that the next token needs
    DeepSeek-V4's one vector   transformers keeps it as K and again as V; its compressor's ring buffers, whose filling
                               varies with the length, are left out
    Falcon's new architecture  transformers copies each K and V head to all its query heads before it keeps them;
                               kvcalc (as engines do) keeps one
    LongCat's zero experts     transformers' fused tensor has rows for them that nothing uses: not counted
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers_cache import CachedTensor, Measurement, compact, measure
from transformers_variants import Variant, class_default_fields, variants

from kvcalc.architecture.attention.base import Component, Role
from kvcalc.architecture.model import Layer, Model
from kvcalc.architecture.slots import Borrowed, Constant, EveryNTokens, Selected, Window
from kvcalc.errors import SpecError
from kvcalc.specs.build import build_model
from kvcalc.specs.huggingface.convert import spec_from_config
from kvcalc.specs.huggingface.families import FAMILIES
from kvcalc.specs.huggingface.refused import WRAPPERS
from kvcalc.specs.reader import Document

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DEFAULTS = HERE.parent / "kvcalc" / "specs" / "huggingface" / "class_defaults.json"
SECONDS_PER_VARIANT = 240
LEFT_OUT = ("buffer_", "overlap_")
TENSOR_NAMES = {
    Role.KEY: "keys",
    Role.LATENT: "keys",
    Role.VALUE: "values",
    Role.ROPE: "values",
    Role.INDEX: "index",
    Role.STATE: "state",
    Role.CONVOLUTION: "convolution",
}
SAME_NAME = {
    "indexer_keys": "index",
    "idx_keys": "index",
    "compressed_kv.indexer": "index",
    "recurrent_states.0": "state",
    "linear_cache": "state",
    "conv_states.0": "convolution",
    "compressed_kv.compressor": "compressed",
}

Kept = tuple[str, float, int | None, int]
"""A tensor as it is compared: name, elements a token, cap in tokens, constant elements."""


def imported(config: dict[str, Any]) -> Model:
    return build_model(Document("config.json", "", spec_from_config(config, source="config.json")))


def kept_by_kvcalc(model: Model) -> dict[int, Counter[Kept]]:
    """Cache layer -> what kvcalc says it keeps, in the terms of transformers' cache."""
    kept: dict[int, Counter[Kept]] = {}
    index = 0
    for layer in model.layers:
        for attentions in _cache_layers(layer):
            kept[index] = _kept(attentions)
            index += 1
    return kept


def _cache_layers(layer: Layer) -> list[tuple[Any, ...]]:
    """Attentions of one kind in a layer have a cache layer each (LongCat); different kinds share one (Falcon-H1)."""
    if len({attention.kind for attention in layer.attentions}) < len(layer.attentions):
        return [(attention,) for attention in layer.attentions]
    return [layer.attentions]


def _kept(attentions: tuple[Any, ...]) -> Counter[Kept]:
    totals: dict[tuple[str, int | None], list[float]] = defaultdict(lambda: [0.0, 0])
    for attention in attentions:
        for component in attention.components():
            _add(totals, attention, component)
    return Counter((name, rate, cap, int(constant)) for (name, cap), (rate, constant) in totals.items())


def _add(totals: dict[tuple[str, int | None], list[float]], attention: Any, component: Component) -> None:
    name, slots, elements = TENSOR_NAMES.get(component.role, ""), component.slots, component.elements_per_slot
    if isinstance(slots, Borrowed) or component.role is Role.COMPRESSOR:
        return
    if isinstance(slots, Constant):
        if component.role is Role.CONVOLUTION:
            elements = elements * attention.conv_kernel // (attention.conv_kernel - 1)
        totals[name, None][1] += elements * slots.entries
        return
    base = slots.of if isinstance(slots, Selected) else slots
    rate, cap = elements / (base.tokens if isinstance(base, EveryNTokens) else 1), None
    if isinstance(base, Window):
        cap = base.tokens - 1
    names = [name]
    if attention.kind == "compressed" and component.role is not Role.INDEX:
        names = ["keys", "values"] if cap is not None else ["compressed"]
    for each in names:
        totals[each, cap][0] += rate


def kept_by_transformers(tensors: Iterable[CachedTensor], copies: int) -> dict[int, Counter[Kept]]:
    kept: dict[int, Counter[Kept]] = defaultdict(Counter)
    for tensor in tensors:
        empty = not tensor.elements_per_token and not tensor.constant_elements
        if empty or tensor.name.startswith(LEFT_OUT):
            continue
        name = SAME_NAME.get(tensor.name, tensor.name)
        # a stream of entries made of many tokens starts late: its offset is rounding, not a constant
        constant = 0 if tensor.name.startswith("compressed_kv") else tensor.constant_elements
        kept[tensor.layer][name, tensor.elements_per_token / copies, tensor.cap_tokens, constant] += 1
    return kept


def copies(config: Any) -> int:
    """How often transformers keeps one K and V head."""
    if config.model_type == "falcon" and config.new_decoder_architecture:
        return config.num_attention_heads // config.num_kv_heads
    return 1


def unused_parameters(config: Any) -> int:
    """Parameters of the transformers class that no forward pass uses."""
    if config.model_type == "longcat_flash":
        rows = (config.zero_expert_num or 0) * 2 * config.expert_ffn_hidden_size * config.hidden_size
        return config.num_layers * rows
    return 0


def keeps(model: Model) -> dict[str, Any]:
    """What a model keeps, in kvcalc's own terms: what the tests hold a later kvcalc to, without transformers."""
    growing, constant, windows = Fraction(0), 0, Counter()
    for layer in model.layers:
        for attention in layer.attentions:
            for component in attention.components():
                growing += component.elements_per_slot * component.slots.per_token
                if isinstance(component.slots, Constant):
                    constant += component.elements_per_slot * component.slots.entries
                elif isinstance(component.slots, Window):
                    windows[str(component.slots.tokens)] += component.elements_per_slot
    return {"elements_per_token": str(growing), "constant_elements": constant, "window_elements": dict(windows)}


def differences(variant: Variant, measurement: Measurement) -> tuple[list[str], dict[str, Any]]:
    """What kvcalc's two readings of a variant get wrong, and what it keeps; SpecError where it refuses one."""
    found: list[str] = []
    model: Model | None = None
    whole, sparse = variant.forms()
    wanted = kept_by_transformers(measurement.tensors, copies(variant.config))
    parameters = measurement.parameters - unused_parameters(variant.config)
    for form, config in (("whole", whole), ("sparse", sparse)):
        model = imported(config)
        if model.parameters.total != parameters:
            found.append(f"{form}: {model.parameters.total} parameters, transformers {parameters}")
        ours = kept_by_kvcalc(model)
        layers: dict[str, list[int]] = defaultdict(list)
        for layer in sorted({*ours, *wanted}):
            mine, theirs = ours.get(layer, Counter()), wanted.get(layer, Counter())
            if mine != theirs:
                layers[f"{sorted(mine - theirs, key=str)}, transformers {sorted(theirs - mine, key=str)}"].append(layer)
        found += [f"{form}: layers {compact(numbers)} keep {what}" for what, numbers in layers.items()]
    assert model is not None
    return found, {"parameters": model.parameters.total, **keeps(model)}


def _too_slow(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS_PER_VARIANT} s")


def judge(model_type: str) -> dict[str, Any]:
    """The record of one type: verdict (right, refused, wrong, not measured), its variants and the reason."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_slow)
    record: dict[str, Any] = {"type": model_type, "variants": {}}
    tried = list(variants(model_type, WRAPPERS.get(model_type))) if model_type in [*FAMILIES, *WRAPPERS] else []
    try:
        imported(tried[0].forms()[1] if tried else {"model_type": model_type})
    except SpecError as error:
        reason = error.problems[0].message.removeprefix("config.json: ")
        if "model_type" in reason:
            return record | {"verdict": "refused", "reason": reason}
    except Exception as error:
        return record | {"verdict": "wrong", "reason": f"{type(error).__name__}: {error}"}
    problems: dict[str, str] = {}
    for variant in tried:
        try:
            signal.alarm(SECONDS_PER_VARIANT)
            measurement = measure(variant.config)
        except Exception as error:
            problems[variant.label] = f"not measured: {type(error).__name__}: {str(error)[:200]}"
            continue
        finally:
            signal.alarm(0)
        try:
            wrong, kept = differences(variant, measurement)
        except SpecError as error:
            wrong, kept = [f"refused: {error.problems[0].message}"], {}
        except Exception as error:
            wrong, kept = [f"{type(error).__name__}: {error}"], {}
        record["variants"][variant.label] = {
            "verdict": "wrong" if wrong else "right",
            "config": variant.forms()[1],
            "transformers_parameters": measurement.parameters,
            "cached_tensors": len(measurement.tensors),
            **kept,
        }
        record["class"] = measurement.model_class
        if wrong:
            problems[variant.label] = "; ".join(wrong)
    record["verdict"] = "right" if not problems else "wrong"
    if problems:
        record["reason"] = " | ".join(f"{label}: {problem}" for label, problem in problems.items())
        if all(problem.startswith("not measured") for problem in problems.values()):
            record["verdict"] = "not measured"
    return record


def survey(model_type: str) -> dict[str, Any]:
    """What transformers has for a type: parameter shapes and cached tensors by layer."""
    torch.set_num_threads(1)
    record: dict[str, Any] = {"type": model_type, "variants": {}}
    for variant in variants(model_type):
        try:
            measurement = measure(variant.config)
        except Exception as error:
            record["variants"][variant.label] = {"error": f"{type(error).__name__}: {error}"}
            continue
        layers: dict[str, list[int]] = defaultdict(list)
        for tensor in measurement.tensors:
            layers[str(tensor)].append(tensor.layer)
        record["variants"][variant.label] = {
            "parameters": measurement.parameters,
            "cache": {what: compact(numbers) for what, numbers in layers.items()},
            "shapes": measurement.shapes,
            "changes": variant.changes,
        }
    return record


def versions() -> dict[str, str]:
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def document(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The result as JSON: counts of the causal LM types, and apart from them those of multimodal types."""
    causal = [record["verdict"] for record in records if record["type"] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    others = [record["verdict"] for record in records if record["type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    return {
        "schema": "kvcalc.transformers_judge/1",
        "versions": versions(),
        "counts": {"causal_lm": Counter(causal), "multimodal": Counter(others)},
        "types": records,
    }


def markdown(result: dict[str, Any]) -> str:
    counts = {
        kind: ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
        for kind, verdicts in result["counts"].items()
    }
    lines = [
        "# kvcalc import, judged by transformers",
        "",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()) + ".",
        f"Causal LM types: {counts['causal_lm']}. Multimodal types and their text parts: {counts['multimodal']}.",
        "Each right type was tried in three variants, each read in two forms: see transformers_judge.py.",
        "",
        "| type | class | parameters of the class defaults | verdict | reason |",
        "|---|---|---:|---|---|",
    ]
    for record in result["types"]:
        parameters = record["variants"].get("defaults", {}).get("transformers_parameters")
        reason = record.get("reason", "").replace("|", "/").replace("\n", " ")
        lines.append(
            f"| {record['type']} | {record.get('class', '')} | {f'{parameters:,}' if parameters else ''} "
            f"| {record['verdict']} | {reason} |"
        )
    return "\n".join(lines) + "\n"


def write_results(result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    head = json.dumps({key: value for key, value in result.items() if key != "types"})
    types = ",\n".join(json.dumps(record, default=str) for record in result["types"])  # one type a line
    text = head.removesuffix("}") + ', "types": [\n' + types + "\n]}\n"
    (RESULTS / "transformers_judge.json").write_text(text, encoding="utf-8")
    (RESULTS / "transformers_judge.md").write_text(markdown(result), encoding="utf-8")


def judged_types() -> list[str]:
    """Every causal LM type of transformers, and the multimodal ones and their text parts that kvcalc claims."""
    claimed = [*FAMILIES, *WRAPPERS]
    texts = [name for name in claimed if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and name in CONFIG_MAPPING]
    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *texts]


def write_defaults() -> None:
    """One model type a line: fields of its config class that a table may read, with their plain defaults."""
    lines = [
        f"{json.dumps(model_type)}: {json.dumps(class_default_fields(CONFIG_MAPPING[model_type]))}"
        for model_type in sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *FAMILIES} & set(CONFIG_MAPPING))
    ]
    DEFAULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="*", help="only these model types, without writing results")
    parser.add_argument("--survey", type=Path, metavar="FILE", help="write what transformers has, and judge nothing")
    parser.add_argument("--write-defaults", action="store_true", help="write kvcalc's class defaults and end")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the reason of every verdict")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    if arguments.write_defaults:
        write_defaults()
        return 0
    types = arguments.types or judged_types()
    records = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for record in pool.map(survey if arguments.survey else judge, types):
            records.append(record)
            reason = record.get("reason", "") if arguments.verbose or record.get("verdict") == "wrong" else ""
            print(f"{record['type']:28} {record.get('verdict', '')} {reason}", file=sys.stderr, flush=True)
    if arguments.survey:
        arguments.survey.write_text(json.dumps(records, default=str), encoding="utf-8")
        return 0
    counts = Counter(record["verdict"] for record in records)
    print(dict(counts))
    if not arguments.types:
        write_results(document(records))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a transformers model is made of and keeps: distinct parameters, and how every tensor of its cache grows.

A model is built and run on the meta device, so that no weight and no activation exists. The few places where a forward
pass asks the data something (which experts were drawn, the sizes of their batches) get a fixed answer; no cache shape
depends on it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForCausalLM

CACHE_FIELDS = ("past_key_values", "cache_params", "state", "past_buckets_states", "mems")
UNMAPPED_CLASSES = {"emu3_text_model": "Emu3ForCausalLM"}
LATE_TOKENS = 256  # a multiple of every compression ratio
SPAN = re.compile(r"window|chunk|conv|kernel|mem_len|compress|block_size|rel_extent|local_attention")


@dataclass(frozen=True, kw_only=True)
class CachedTensor:
    """One tensor of one cache layer:

    elements that a token adds, where that ends, and what does not depend on tokens.
    """

    layer: int
    name: str
    elements_per_token: float
    cap_tokens: int | None
    constant_elements: int

    def __str__(self) -> str:
        if not self.elements_per_token:
            return f"{self.name} {self.constant_elements} constant"
        cap = f", at most {self.cap_tokens} tokens" if self.cap_tokens is not None else ""
        constant = f", and {self.constant_elements}" if self.constant_elements else ""
        return f"{self.name} {self.elements_per_token:g} a token{cap}{constant}"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    parameters: int
    tensors: list[CachedTensor]
    shapes: dict[str, str]
    model_class: str


class MetaAnswers(TorchDispatchMode):
    """Answers on the meta device what only data could: `nonzero` finds nothing, a scalar that is read is 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name == "nonzero":
            return torch.empty((0, args[0].dim()), dtype=torch.long, device="meta")
        if name == "_to_copy" and str(kwargs.get("device")) == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "_local_scalar_dense" and args[0].device.type == "meta":
            return True if args[0].dtype == torch.bool else 1.0 if args[0].dtype.is_floating_point else 1
        if name in ("equal", "is_nonzero"):
            return True
        return func(*args, **kwargs)


def build(config: Any) -> torch.nn.Module:
    config._attn_implementation = "eager"
    config._experts_implementation = "batched_mm"
    if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        config.is_decoder = True
    with torch.device("meta"):
        if config.model_type in UNMAPPED_CLASSES:
            return getattr(transformers, UNMAPPED_CLASSES[config.model_type])(config).eval()
        if type(config) in AutoModelForCausalLM._model_mapping:
            return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        return TextDecoder(config).eval()


class TextDecoder(torch.nn.Module):
    """The text part of a multimodal model, which has no causal LM class of its own, with the head that its wrapper
    has.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.model = AutoModel.from_config(config, attn_implementation="eager")
        if not getattr(config, "tie_word_embeddings", False):
            self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


def count_parameters(model: torch.nn.Module) -> int:
    """Distinct parameters: a tied embedding counts once;

    buffers (a router's correction bias, frequencies) don't count.
    """
    return sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


def measure(config: Any) -> Measurement:
    """Build, count, and run at two short lengths and at two beyond every window."""
    model = build(config)
    beyond = -(-max(widest_span(config) + 8, 64) // 128) * 128
    lengths = (4, 5, beyond, beyond + LATE_TOKENS)
    runs: list[dict[tuple[int, str], int]] = []
    with torch.no_grad(), MetaAnswers():
        for length in lengths:
            ids = torch.ones((1, length), dtype=torch.long, device="meta")
            runs.append(cache_elements(model(input_ids=ids, use_cache=True)))
    tensors = [
        growth(key, [run.get(key, 0) for run in runs], beyond_tokens=beyond)
        for key in sorted({k for r in runs for k in r})
    ]
    return Measurement(
        parameters=count_parameters(model), tensors=tensors, shapes=shapes(model), model_class=type(model).__name__
    )


def growth(key: tuple[int, str], elements: list[int], *, beyond_tokens: int) -> CachedTensor:
    early, late = elements[1] - elements[0], (elements[3] - elements[2]) / LATE_TOKENS
    if late:
        per_token, cap, constant = late, None, round(elements[2] - late * beyond_tokens)
    elif early > 0:
        per_token, cap, constant = float(early), elements[2] // early, 0
    else:
        per_token, cap, constant = 0.0, None, elements[2]
    return CachedTensor(
        layer=key[0], name=key[1], elements_per_token=per_token, cap_tokens=cap, constant_elements=constant
    )


def widest_span(config: Any) -> int:
    """The widest window, chunk or kernel that the config names."""
    widest, open_mappings = 0, [config.to_dict()]
    while open_mappings:
        for key, value in open_mappings.pop().items():
            if isinstance(value, dict):
                open_mappings.append(value)
            elif SPAN.search(str(key)):
                numbers = value if isinstance(value, list) else [value]
                widest = max([widest, *(n for n in numbers if isinstance(n, int) and not isinstance(n, bool))])
    return widest


def cache_elements(output: Any) -> dict[tuple[int, str], int]:
    """(cache layer, tensor name) -> elements, for batch 1. Counters and position vectors are no cache."""
    found: dict[tuple[int, str], int] = defaultdict(int)
    for field in CACHE_FIELDS:
        for path, tensor in _tensors(getattr(output, field, None)):
            if tensor.dim() < 2:
                continue
            numbers = [part for part in path if isinstance(part, int)]
            names = [str(part) for part in path if not isinstance(part, int) and part != "layers"] or [field]
            name = ".".join([*names, *(str(number) for number in numbers[1:])])
            found[numbers[0] if numbers else -1, name] += tensor.numel()
    return dict(found)


def _tensors(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, torch.Tensor]]:
    """Every tensor reachable from a cache, with the attributes, keys and indices that lead to it."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, (*path, index))
    elif hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module, transformers.PretrainedConfig)):
        for key, item in vars(value).items():
            yield from _tensors(item, (*path, key))


def shapes(model: torch.nn.Module) -> dict[str, str]:
    """Parameter names with the layer folded, and shapes -> the layers that have them.

    What a new family's row is read from.
    """
    folded: dict[tuple[str, tuple], list[int]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        match = re.search(r"\.(\d+)\.", name)
        folded[re.sub(r"\.\d+\.", ".*.", name, count=1), tuple(parameter.shape)].append(int(match[1]) if match else -1)
    return {f"{name} {list(shape)}": compact(layers) for (name, shape), layers in folded.items()}


def compact(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> '0-2,5'."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)

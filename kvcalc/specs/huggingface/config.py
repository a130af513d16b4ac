"""A `config.json` as the family tables read it: older key names, class defaults, and which keys nobody read.

A publisher's file leaves out what equals the default of the class in `transformers`; those defaults are in
`class_defaults.json` as plain numbers, one model type a line. An explicit `null` is a statement (no window, no query
LoRA) and is not replaced by a default.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, NoReturn

from kvcalc.errors import Problem, SpecError
from kvcalc.specs.reader import Document

ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "n_embed", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "attention_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "dff", "block_ff_dim"),
    "max_position_embeddings": (
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "model_max_length",
        "seq_length",
        "context_length",
        "max_sequence_length",
    ),
    "num_experts": ("n_routed_experts", "num_local_experts", "moe_num_experts"),
    "num_experts_per_tok": ("num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts"),
    "num_shared_experts": ("n_shared_experts", "moe_num_shared_experts"),
    "moe_intermediate_size": ("expert_ffn_hidden_size",),
    "layer_types": ("layers_block_type",),
    "vocab_size": ("padded_vocab_size",),
    "tie_word_embeddings": ("tie_embedding",),
    "num_nextn_predict_layers": ("num_mtp_layers",),
}
"""Field -> the names that it also goes by in published files."""

HARMLESS = re.compile(
    r"""^_|token|(?<!qk_)rope|rotary|theta|eps$|epsilon$|dropout|pdrop|initializer|^init_|_init$|_std$|loss|aux|act$|act_fn
    |activation|scal(e|ar|ing)|softcap|logit|multiplier|^use_cache|dtype|transformers_version|architectures|auto_map
    |quantization_config|chunk_size_feed_forward|^output_|return_dict|id2label|label2id|problem_type|summary|classifier
    |^is_(decoder|encoder_decoder|causal)$|norm_topk|^n_group$|topk_group|topk_method|scoring|score_func|route_norm
    |pretraining_tp|jitter|^swiglu|rescale|residual_in_fp32|time_step|layerdrop|use_mamba|use_fast|use_flash|associative
    |^chunk_size$|mamba_chunk|_coef|renormalize|num_expert_group|moe_grouped|name_or_path|max_window_layers|keep_window
    |router_dtype|attn_implementation|alibi|slow_but_exact|qk_head_dim|expert_selection|padding|hc_(eps|sink)|kda_|mup_
    |seed|partial_rotary|clip|experts_implementation|position_embedding_type|vision|image|video|audio|^bo[a-z]_|^eo[a-z]_
    |sep_|cls_|pad_""",
    re.VERBOSE,
)
"""Keys that change neither what is kept nor how many parameters there are."""

TELLING = re.compile(
    r"""kv_|_kv|cache|window|chunk|layer_types|block_type|expert|moe|latent|lora|rank|mamba|ssm|conv|index|sink|compress
    |attn|attention|shared|heads|head_dim|pattern|interval|norm|bias|_size$|mtp|nextn|gate|gating|per_layer|laurel|altup|hc_""",
    re.VERBOSE,
)
"""Keys that may: one of them that no table has read is refused by name."""

_MISSING = object()
MAX_LAYERS = 10_000


@cache
def class_defaults() -> Mapping[str, Mapping[str, Any]]:
    """model_type -> the defaults of its config class."""
    return json.loads(files(__package__).joinpath("class_defaults.json").read_text(encoding="utf-8"))


class Config:
    """Fields of one model's text decoder. Indexing gives a value; every name that was asked for is remembered."""

    def __init__(
        self,
        given: Mapping[str, Any],
        *,
        model_type: str,
        source: str,
        document: Document | None = None,
        path: tuple[str, ...] = (),
    ) -> None:
        self.given = given
        self.model_type = model_type
        self.source = source
        self.document = document
        self.path = path
        self.defaults = class_defaults().get(model_type, {})
        self.read: set[str] = set()
        self.last_read = ""

    def get(self, field: str, otherwise: Any = None) -> Any:
        """The field as given, else as the class has it, else `otherwise`. An explicit null stays None."""
        names = (field, *ALIASES.get(field, ()))
        self.read.update(names)
        self.last_read = field
        for values in (self.given, self.defaults):
            found = [values[name] for name in names if name in values]
            if found:
                return next((value for value in found if value is not None), None)
        return otherwise

    def __getitem__(self, field: str) -> Any:
        """The field, which must be there. Numbers that are no numbers are refused here, once for all tables."""
        value = self.get(field, _MISSING)
        if value is _MISSING or value is None:
            self.refuse(field, f"'{field}' is missing: a {self.model_type} can't be described without it")
        return value

    def count(self, field: str) -> int:
        """The field as a whole number of one or more."""
        value = self[field]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(field, f"'{field}' must be a whole number of at least 1, not {value!r}")
        if field == "num_hidden_layers" and value > MAX_LAYERS:
            self.refuse(field, f"'{field}' is {value:,}: more than {MAX_LAYERS:,}")
        return value

    def is_given(self, field: str) -> bool:
        self.read.update((field, *ALIASES.get(field, ())))
        return any(self.given.get(name) is not None for name in (field, *ALIASES.get(field, ())))

    def value(self, reference: Any) -> Any:
        """What a table's reference stands for: a field's name, a rule to compute, or the value itself."""
        if isinstance(reference, str):
            return self.get(reference)
        if callable(reference):
            return reference(self)
        return reference

    def part(self, field: str) -> "Config":
        """A nested mapping (`attn_config`, `linear_attn_config`) as a config of its own; empty where it is left out."""
        inner = self.get(field) or {}
        if not isinstance(inner, Mapping):
            self.refuse(field, f"'{field}' must be a mapping of keys")
        return Config(inner, model_type="", source=self.source, document=self.document, path=(*self.path, field))

    def require(self, field: str, allowed: tuple[Any, ...], otherwise: Any = None) -> None:
        """Refuse a value that kvcalc has no model for."""
        problem = self.unmodelled(field, allowed, otherwise)
        if problem is not None:
            raise SpecError([problem])

    def unmodelled(self, field: str, allowed: tuple[Any, ...], otherwise: Any = None) -> Problem | None:
        """What is wrong with a value that kvcalc has no model for; None where it has."""
        value = self.get(field, otherwise)
        if any(value == option and type(value) is type(option) for option in allowed):
            return None
        return self.problem(
            field,
            f"'{field}' of {self.model_type} is {value!r}: kvcalc doesn't model that",
            "modelled: " + ", ".join(repr(option) for option in allowed),
        )

    def refuse(self, field: str, message: str, hint: str | None = None) -> NoReturn:
        raise SpecError([self.problem(field, message, hint)])

    def problem(self, field: str, message: str, hint: str | None = None) -> Problem:
        """Something that is wrong with a field, at its place in the file."""
        place = None
        if self.document is not None:
            name = next((n for n in (field, *ALIASES.get(field, ())) if n in self.given), field)
            place = self.document.place((*self.path, name))
        prefix = "" if place else f"{self.source}: "
        return Problem(message=prefix + message, place=place, hint=hint)

    def unread(self) -> list[Problem]:
        """Keys that no table has read, that are no field of the class, and that may change cache or parameters.

        Fields of the class itself are for the judge (benchmarks/transformers_judge.py) to find.
        """
        found = []
        for name, value in self.given.items():
            if name in self.read or name in self.defaults or value in (None, False, 0, "", [], {}):
                continue
            if HARMLESS.search(name) or not TELLING.search(name):
                continue
            message = f"'{name}' is not a field of {self.model_type} that kvcalc models, "
            found.append(self.problem(name, message + "and it may change the cache or the parameters"))
        if found:
            hint = "write a spec by hand, or remove what changes neither"
            found[-1] = replace(found[-1], hint=hint)
        return found


Reference = str | int | bool | None | Callable[[Config], Any]
"""In a table: a field's name, a literal, or a rule."""

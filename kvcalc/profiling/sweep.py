"""Which cases a run measures: the model's distinct attentions at one rank's heads, over batches and contexts. Pure.

An MLA model is set beside itself with GQA-8 and with MHA, at the same batch and context: that comparison is the point
of measuring. What the user does not choose is chosen for the device, so that a CPU run ends within half a minute and
a GPU run within three.
"""

from dataclasses import dataclass

from kvcalc.architecture.attention import Attention, GroupedAttention, LatentAttention
from kvcalc.architecture.model import Model
from kvcalc.errors import UsageError
from kvcalc.profiling.case import DECODE, PHASES, PREFILL, Case, rank_attention
from kvcalc.what_if import alternatives

Profiled = GroupedAttention | LatentAttention
DEFAULT_WHAT_IF = "gqa:8,mha"
NO_WHAT_IF = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Batches and contexts of a default run, and the seconds that it may take."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    budget_s: float


DEFAULT_SIZES = {
    ("cpu", DECODE, False): Sizes(batches=(1,), contexts=(4096, 32768), budget_s=27),
    ("cpu", DECODE, True): Sizes(batches=(1,), contexts=(4096,), budget_s=6),
    ("cpu", PREFILL, False): Sizes(batches=(1,), contexts=(512, 2048), budget_s=27),
    ("cpu", PREFILL, True): Sizes(batches=(1,), contexts=(512,), budget_s=6),
    ("cuda", DECODE, False): Sizes(batches=(1, 8, 32, 128), contexts=(4096, 32768, 131072), budget_s=170),
    ("cuda", DECODE, True): Sizes(batches=(1, 64), contexts=(8192,), budget_s=15),
    ("cuda", PREFILL, False): Sizes(batches=(1,), contexts=(1024, 4096, 16384, 65536), budget_s=170),
    ("cuda", PREFILL, True): Sizes(batches=(1,), contexts=(4096,), budget_s=15),
}
"""By device, phase, and whether the run is to be quick."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a user asked for; None where the device decides.

    kernels   names of kernels; None for all of them
    what_if   other attentions to set beside an MLA model's own: `gqa:8,mha`, or `none`
    case_ids  only cases with these ids; none named means all
    limit_s   seconds that the run may take; None for the default: no limit where the user named sizes
    """

    phase: str = DECODE
    batches: tuple[int, ...] | None = None
    contexts: tuple[int, ...] | None = None
    query_tokens: int | None = None
    tp: int = 1
    dtype: str | None = None
    kv_dtype: str | None = None
    kernels: tuple[str, ...] | None = None
    what_if: str = DEFAULT_WHAT_IF
    case_ids: tuple[str, ...] = ()
    quick: bool = False
    repeat_process: int = 1
    seed: int = 0
    limit_s: float | None = None

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise UsageError(f"unknown phase '{self.phase}'", hint=f"one of {', '.join(PHASES)}")
        if self.repeat_process < 1:
            raise UsageError(f"{self.repeat_process} processes; it must be 1 or more")

    def sizes(self, device_kind: str) -> Sizes:
        return DEFAULT_SIZES[device_kind, self.phase, self.quick]

    def budget_s(self, device_kind: str) -> float | None:
        """Seconds that the run may take; None for no limit."""
        if self.limit_s is not None:
            return self.limit_s
        chosen = self.batches is not None or self.contexts is not None
        return None if chosen and not self.quick else self.sizes(device_kind).budget_s

    def dtype_on(self, device_kind: str) -> str:
        """fp32 on a CPU, many of which have no units for anything smaller; bf16 elsewhere."""
        return self.dtype or ("fp32" if device_kind == "cpu" else "bf16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A case, and the attention that it replaces the model's own by (None: it is the model's own)."""

    case: Case
    what_if: str | None = None

    @property
    def name(self) -> str:
        """What people call it: the kind's label, and for a replacement what it is of the whole model (`GQA-8`)."""
        if self.what_if is None:
            return self.case.attention.label
        kind, _, argument = self.what_if.partition(":")
        return kind.upper() + (f"-{argument}" if argument else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """The cases, smallest first; what of the model is not profiled, and why; and warnings."""

    planned: tuple[Planned, ...]
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def plan(model: Model, request: Request, device_kind: str) -> Sweep:
    """All cases of a run. Raises UsageError where the request makes no sense."""
    left_out: list[tuple[str, str]] = []
    subjects = _subjects(model, request, left_out)
    sizes = request.sizes(device_kind)
    batches = request.batches or sizes.batches
    contexts = request.contexts or tuple(sorted({min(each, model.max_context_tokens) for each in sizes.contexts}))
    dtype = request.dtype_on(device_kind)
    planned = [
        Planned(
            case=Case(
                attention=attention,
                phase=request.phase,
                batch=batch,
                context_tokens=context,
                query_tokens=request.query_tokens or 0,
                dtype=dtype,
                kv_dtype=request.kv_dtype or "",
            ),
            what_if=what_if,
        )
        for context in contexts
        for batch in batches
        for attention, what_if in subjects.items()
    ]
    planned = list({each.case.id: each for each in reversed(planned)}.values())[::-1]  # the model's own goes first
    if request.case_ids:
        known = {each.case.id for each in planned}
        missing = [each for each in request.case_ids if each not in known]
        if missing:
            raise UsageError(
                f"no case of this run has the id '{missing[0]}'",
                hint="repeat the options of the line that was printed with it; ids name batch, context and formats",
            )
        planned = [each for each in planned if each.case.id in request.case_ids]
    above = sorted(
        {each.case.context_tokens for each in planned if each.case.context_tokens > model.max_context_tokens}
    )
    warnings = [f"context {each:,} is above the model's maximum {model.max_context_tokens:,}" for each in above]
    planned.sort(key=lambda each: (each.case.context_tokens * each.case.batch, each.case.context_tokens))
    return Sweep(planned=tuple(planned), left_out=tuple(left_out), warnings=tuple(warnings))


def _subjects(model: Model, request: Request, left_out: list[tuple[str, str]]) -> dict[Profiled, str | None]:
    """The attentions to measure, each once, with the what-if that each is."""
    subjects: dict[Profiled, str | None] = {}
    for attention in _distinct(model):
        _add(subjects, attention, None, request, left_out)
    is_latent = any(isinstance(attention, LatentAttention) for attention in subjects)
    if not is_latent or request.what_if == NO_WHAT_IF:
        return subjects
    for wanted in request.what_if.split(","):
        try:
            (other,) = alternatives(model, wanted)
        except UsageError as error:
            if request.what_if != DEFAULT_WHAT_IF:
                raise
            left_out.append((wanted, error.message))
            continue
        replaced = [new for new, own in zip(_all(other), _all(model), strict=True) if new != own]
        for attention in dict.fromkeys(replaced):
            _add(subjects, attention, wanted, request, left_out)
    return subjects


def _add(
    subjects: dict[Profiled, str | None],
    attention: Attention,
    what_if: str | None,
    request: Request,
    left_out: list[tuple[str, str]],
) -> None:
    """Take an attention up; leave out a kind without kernels, and a replacement that can't be spread over the ranks."""
    try:
        rank_attention(attention)
    except UsageError as error:
        left_out.append((what_if or attention.label, error.message))
        return
    try:
        subjects.setdefault(rank_attention(attention, tp=request.tp), what_if)
    except UsageError as error:
        if what_if is None:
            raise
        left_out.append((what_if, error.message))


def _all(model: Model) -> list[Attention]:
    return [attention for layer in model.layers for attention in layer.attentions]


def _distinct(model: Model) -> list[Attention]:
    return list(dict.fromkeys(_all(model)))

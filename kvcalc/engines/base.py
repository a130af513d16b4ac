"""What an engine module is made of: rules, each with the version from which it holds and the line that says so.

A rule is a short history: from a version on, the value that the arithmetic uses, the sentence that a reader gets and
the source (file and line of a release that was read). Versions that nobody read are not covered: asking for one is an
error, never a guess from its neighbours.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

from kvcalc.architecture.attention import Attention, Component, LatentAttention, Role, by_record
from kvcalc.architecture.layout import Allocation, Layout, Precision, Record, RecordByRecord, RecordCount
from kvcalc.architecture.model import Model
from kvcalc.architecture.slots import Slots
from kvcalc.errors import UsageError
from kvcalc.names import nearest
from kvcalc.workload import Parallelism

Version = tuple[int, ...]


def parse_version(text: str) -> Version:
    """`0.33`, `v0.33.0`, `5.15.1`, `0.11.1rc6.dev3+g12`, `b9318`, `2026-01-24`: the leading numbers. Raises UsageError.

    A pre-release has the rules of the release that it leads to.
    """
    digits = text.strip().lower().removeprefix("v").removeprefix("b").replace("-", ".")
    numbers = []
    for part in digits.split("."):
        lead = part[: next((i for i, letter in enumerate(part) if not letter.isdigit()), len(part))]
        if lead:
            numbers.append(int(lead))
        if lead != part or not lead:
            break
    if not numbers:
        raise UsageError(f"'{text}' is not a version", hint="write engine@version, such as vllm@0.33")
    return tuple(numbers)


def written(version: Version) -> str:
    """A version as it is usually written: dates with dashes, all else with dots."""
    if version[0] > 1900:
        return "-".join(f"{number:02}" for number in version)
    return ".".join(map(str, version))


def compare(left: Version, right: Version) -> int:
    """Below 0, 0 or above 0, with missing numbers as zeros: 0.33 is 0.33.0."""
    width = max(len(left), len(right))
    padded = [version + (0,) * (width - len(version)) for version in (left, right)]
    return (padded[0] > padded[1]) - (padded[0] < padded[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What holds from a version on: the value for the arithmetic, the sentence for a reader, the line that says so."""

    since: str
    value: Any = None
    says: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One thing that an engine does, through its versions, oldest first."""

    name: str
    history: tuple[Known, ...]

    def known(self, version: Version) -> Known | None:
        """What holds in a version; None before the first that is known."""
        found = None
        for step in self.history:
            if compare(parse_version(step.since), version) <= 0:
                found = step
        return found

    def at(self, version: Version) -> Any:
        """The value in a version. Raises UsageError before the first that is known."""
        step = self.known(version)
        if step is None:
            raise UsageError(
                f"{self.name}: not known before {self.history[0].since}, and {written(version)} was asked for",
                hint="name a later version, or use --engine generic",
            )
        return step.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a layout is made for. Values that are None are the engine's to choose.

    compute_capability      of the GPU, such as (9, 0): engines choose attention backends, and so block sizes, by it
    gpu_memory_bytes        what the driver reports; some defaults go by it
    prefix_caching          whether finished prefixes are kept for reuse
    max_batched_tokens      tokens that one step may process
    speculative_tokens      draft tokens that a step verifies
    """

    model: Model
    version: str | None = None
    parallelism: Parallelism = Parallelism()
    precision: Precision
    kv_dtype: str | None = None
    index_dtype: str | None = None
    state_dtype: str | None = None
    block_tokens: int | None = None
    compute_capability: tuple[int, int] | None = None
    gpu_memory_bytes: int | None = None
    prefix_caching: bool | None = None
    max_batched_tokens: int | None = None
    speculative_tokens: int = 0


class LayoutMaker(Protocol):
    def __call__(self, request: Request, version: Version) -> Layout: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """An engine: what it is called, which of its versions were read, its rules, and how it lays a cache out.

    covers              spans of versions, both ends included, whose rules are known
    memory_utilization  share of the GPU that it takes by default, by version; None where that is no constant
    read_name           what a user may call a version, as one of those in `covers`
    """

    name: str
    title: str
    covers: tuple[tuple[str, str], ...]
    rules: tuple[Rule, ...]
    make: LayoutMaker
    memory_utilization: Rule | None = None
    remark: str = ""
    read_name: Callable[[str], str] = str

    @property
    def latest(self) -> str:
        return self.covers[-1][1]

    def version(self, text: str | None) -> Version:
        """The version asked for, by default the newest that was read. Raises UsageError for one that was not."""
        if text is None:
            return parse_version(self.latest)
        version = parse_version(self.read_name(text))
        for first, last in self.covers:
            newest = parse_version(last)
            low = compare(parse_version(first), version) <= 0
            if low and (compare(version, newest) <= 0 or version[: len(newest)] == newest):
                return version
        spans = ", ".join(first if first == last else f"{first} to {last}" for first, last in self.covers)
        raise UsageError(
            f"the rules of {self.name} {text} are not known",
            hint=f"known: {spans}; --engine {self.name} takes {self.latest}, and generic needs none",
        )

    def label(self, version: Version) -> str:
        """`vllm 0.33.0`, `llama-cpp 2026-01-25`."""
        return f"{self.name} {written(version)}"


@dataclass(frozen=True, slots=True)
class KeptWhole:
    """Entries that the engine keeps for every token although attention reads only those of `of`."""

    of: Slots

    per_token = Fraction(1)
    spans_context = True

    def stored(self, context_tokens: int) -> int:
        return context_tokens

    def read(self, context_tokens: int, query_tokens: int) -> int:
        return self.of.read(context_tokens, query_tokens)

    def pairs(self, context_tokens: int, query_tokens: int) -> int:
        return self.of.pairs(context_tokens, query_tokens)

    def formula(self, context: str = "context_tokens") -> str:
        return context


def full_heads(base: LatentAttention, latent: Component) -> tuple[Component, ...]:
    """Full keys and values of every head, in the place of a latent."""
    widths = (
        ("key", Role.KEY, base.qk_nope_head_dim + base.qk_rope_head_dim, "qk_nope_head_dim + qk_rope_head_dim"),
        ("value", Role.VALUE, base.v_head_dim, "v_head_dim"),
    )
    return tuple(
        replace(latent, name=name, role=role, width=width, symbol=symbol, heads=base.n_heads, flop_per_pair=2 * width)
        for name, role, width, symbol in widths
    )


def _unchanged(attention: Attention, components: tuple[Component, ...]) -> tuple[Component, ...]:
    return components


@dataclass(frozen=True, kw_only=True)
class ChangedLayout:
    """Components record by record, after an engine's rules have changed what a record holds.

    name    the engine's label: its name and version
    change  the components that the engine keeps for an attention, from those that the attention names
    """

    name: str
    precision: Precision
    block_tokens: int
    notes: tuple[str, ...] = ()
    reserves_requests: bool = False
    change: Callable[[Attention, tuple[Component, ...]], tuple[Component, ...]] = _unchanged

    @property
    def engine(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def compute(self) -> str:
        return self.precision.kv.compute

    def records(self, attention: Attention, *, shards: int) -> tuple[Record, ...]:
        records = []
        for group in by_record(self.change(attention, attention.components())):
            format = self.precision.of(group[0].role)
            size = format.record_bytes(group, shards=shards)
            records.append(Record(components=group, bytes_per_slot=size, format=format, block_tokens=self.block_tokens))
        return tuple(records)

    def copied_weight_bytes(self, attention: Attention, *, weights: str, tp: int) -> int:
        return 0

    def allocation(self, records: tuple[RecordCount, ...], *, whole: tuple[RecordCount, ...], dcp: int) -> Allocation:
        return RecordByRecord(records=records, dcp=dcp)


def attentions(model: Model) -> Iterator[Attention]:
    """The different attentions of a model."""
    yield from dict.fromkeys(each for layer in model.layers for each in layer.attentions)


def kept(model: Model) -> Iterator[Component]:
    """Everything that the model's attentions keep."""
    for attention in attentions(model):
        yield from attention.components()


def check_format(engine: str, request: Request, allowed: Iterable[str]) -> None:
    """Raise UsageError where an engine does not store the cache in the format that was asked for."""
    names, asked = set(allowed), request.precision.kv.name
    if request.kv_dtype is not None and asked not in names and asked not in request.model.native_formats.values():
        raise UsageError(f"{engine} does not store its cache as {asked}", hint=nearest(asked, names))

"""Rows out of result documents: what a row is (its key), what must agree to compare it, and its metrics.

A row is one estimate, one line of a comparison or prediction, or one kernel on one case of a profile. Its key has all
that was asked for; `about` has what must agree besides, the GPU first. Metrics are exact values, and for a profile the
samples of a time, with the ceiling that was measured in the same run.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvcalc.check.documents import Document, Part
from kvcalc.errors import UsageError, printable

Value = int | float | bool
TIME = "median_s"
MEMORY, COMPUTE = "memory", "compute"

LOWER, HIGHER = -1, 1
_ESTIMATE_METRICS = ("model.parameters", "cache", "decode", "prefill", "memory")
_LEFT_OUT = frozenset({"flop_per_byte", "stage", "period_tokens", "terms", "components", "interval_s"})
_COMPARE_METRICS = (
    "elements_per_token",
    "bytes_per_token",
    "constant_bytes_per_sequence",
    "stored_bytes",
    "decode_attention_flop_per_token",
    "parameters",
    "decode_roofline_s",
    "prefill_roofline_s",
    "max_batch",
)
_PREDICT_METRICS = ("roofline_us", "expected_us", "low_us", "high_us")
_PREDICT_OTHER = frozenset({*_PREDICT_METRICS, "bound", "latency_us"})
_PROFILE_METRICS = ("bytes", "flop", "kernel_extra_bytes", "kernel_extra_flop")
_PROFILE_KEY = ("phase", "batch", "context_tokens", "query_tokens", "dtype", "kv_dtype")

_DTYPE = re.compile(r"(.*)-((?:fp32|fp16|bf16)(?:-kv-\w+)?)((?:-page\d+)?(?:-ragged\w+)?)", re.DOTALL)

SOFT_KEYS = ("kernel", "dtype", "kv_dtype", "kv", "index", "state", "weights")
"""Parts of a key in which rows that are alike otherwise may differ: they are told to be not comparable."""


def direction(metric: str) -> int:
    """Whether less of a metric is better, or more."""
    name = metric.rpartition(".")[2]
    return HIGHER if name.startswith("max_") or name in ("fits", "passed", "bandwidth_fraction") else LOWER


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """A time as it was measured.

    processes          the process of each sample
    ceiling            bytes/s or FLOP/s that the same run measured for what bounds the case; None where nothing is
    fraction           of that ceiling
    clock_hz           of the GPU's multiprocessors, the mean while it was measured
    unusable           why no verdict can be built on them
    """

    seconds: tuple[float, ...]
    processes: tuple[int, ...] = ()
    median_s: float
    bound: str = ""
    ceiling: float | None = None
    fraction: float | None = None
    clock_hz: float | None = None
    unusable: str | None = None

    @property
    def process_count(self) -> int:
        return len(set(self.processes)) or 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One thing that can be compared.

    lost  why it has no values although it was asked for: the kernel died, or the run was cut short
    """

    key: Mapping[str, str]
    about: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Value] = field(default_factory=dict)
    samples: Samples | None = None
    lost: str | None = None
    source: str = ""

    @property
    def id(self) -> str:
        """Short and stable: parts of the key that say nothing are left out, and control characters are spelled out."""
        text = "/".join(value for value in self.key.values() if value)
        return text if text.isprintable() else printable(text.replace("\n", "\\n"))

    def without(self, name: str) -> tuple[tuple[str, str], ...]:
        """The key without one of its parts."""
        return tuple((key, value) for key, value in self.key.items() if key != name)


def rows_of(documents: Iterable[Document]) -> list[Row]:
    """All rows, each id once. Raises UsageError where two documents have the same row, or values that make no sense."""
    found: dict[str, Row] = {}
    for document in documents:
        for row in _READERS[document.command](document):
            twice = found.get(row.id)
            if twice is not None:
                where = (
                    f"'{document.source}'"
                    if twice.source == document.source
                    else f"'{twice.source}' and '{row.source}'"
                )
                raise UsageError(f"{row.id} stands twice, in {where}", hint="each side may have a row once")
            found[row.id] = row
    return list(found.values())


def _estimate(document: Document) -> Iterator[Row]:
    part = Part.of(document)
    workload, precision, parallel = part.get("workload"), part.get("precision"), part.get("parallel")
    engine = part.get("engine")
    tokens = [f"{letter}{workload.get(name).shown('?')}" for letter, name in _WORKLOAD]
    ranks = [(name, parallel.get(name).shown("1")) for name in ("tp", "pp", "dp", "dcp", "ep")]
    yield Row(
        key={
            "command": "estimate",
            "model": part.at("model.name").text(),
            "workload": "-".join(tokens) + ("-mtp" if workload.get("mtp").value is True else ""),
            **{name: f"{name}-{precision.get(name).shown('?')}" for name in ("kv", "index", "state", "weights")},
            "parallel": "-".join(f"{name}{count}" for name, count in ranks if count != "1"),
            "engine": f"{engine.get('name').shown('generic')}-block{engine.get('block_tokens').shown('?')}",
        },
        about=_gpu(part),
        metrics=dict(_numbers(part, _ESTIMATE_METRICS)),
        source=document.source,
    )


_WORKLOAD = (("b", "batch"), ("n", "context_tokens"), ("q", "query_tokens"))


def _numbers(part: Part, names: Sequence[str]) -> Iterator[tuple[str, Value]]:
    for name in names:
        yield from _flat(part.at(name))


def _flat(part: Part) -> Iterator[tuple[str, Value]]:
    """All plain numbers below a part, by their dotted names."""
    name, value = part.path.rpartition(".")[2], part.value
    if name in _LEFT_OUT:
        return
    if isinstance(value, Mapping):
        for key in value:
            yield from _flat(part.get(key))
    elif isinstance(value, int | float):
        yield part.path, value


def _gpu(part: Part) -> dict[str, str]:
    gpu = part.get("gpu")
    name = gpu.get("slug").shown() if isinstance(gpu.value, Mapping) else gpu.shown()
    return {"gpu": name} if name else {}


def _compare(document: Document) -> Iterator[Row]:
    whole = Part.of(document)
    for part in whole.get("rows").items():
        tokens = f"b{part.get('batch').shown('?')}-n{part.get('context_tokens').shown('?')}"
        yield Row(
            key={
                "command": "compare",
                "model": part.get("model").text(),
                "workload": tokens,
                **_given(part, ("kv", "kv_dtype", "engine")),
            },
            about=_gpu(whole),
            metrics=_present(part, _COMPARE_METRICS),
            source=document.source,
        )


def _given(part: Part, names: Sequence[str]) -> dict[str, str]:
    return {name: value for name in names if (value := part.get(name).shown())}


def _present(part: Part, names: Sequence[str]) -> dict[str, Value]:
    return {name: part.get(name).number() for name in names if part.get(name).value is not None}


def _predict(document: Document) -> Iterator[Row]:
    """A row's key is all of its input columns; the same input again is counted.

    The CSV names no GPU, but a case's roofline is its datasheet's: another one is another GPU.
    """
    whole = Part.of(document)
    seen: dict[str, int] = {}
    for part in whole.get("rows").items():
        if not isinstance(part.value, Mapping):
            raise part.wrong("an object")
        inputs = {name: f"{name}-{part.get(name).shown()}" for name in part.value if name not in _PREDICT_OTHER}
        row = Row(
            key={"command": "predict", **{name: text for name, text in inputs.items() if not text.endswith("-")}},
            about=_gpu(whole) or {"gpu": f"of roofline {part.get('roofline_us').shown()} us"},
            metrics=_present(part, _PREDICT_METRICS),
            source=document.source,
        )
        seen[row.id] = seen.get(row.id, 0) + 1
        count = seen[row.id]
        yield (
            row
            if count == 1
            else Row(key={**row.key, "again": f"#{count}"}, about=row.about, metrics=row.metrics, source=row.source)
        )


def _profile(document: Document) -> Iterator[Row]:
    whole = Part.of(document)
    device = whole.at("environment.device")
    run = {
        "command": "profile",
        "model": whole.at("model.name").text(),
        "tp": f"tp{whole.at('parallel.tp').shown('1')}",
    }
    about = {"gpu": device.get("name").shown("unknown"), "device": device.get("kind").shown("unknown")}
    ceilings, seen = whole.get("ceilings"), set()
    for part in whole.get("cases").items():
        row = _case(part, run, about, ceilings)
        seen.add((row.key["kernel"], row.key["case"], row.key["dtype"]))
        yield row
    for part in whole.get("skipped").items():
        kernel, case = part.get("kernel").shown(), part.get("case").shown()
        name, dtype = _split_dtype(case)
        lost = part.get("failed").value is True or part.get("reason").shown().startswith("not reached")
        if lost and (kernel, name, dtype) not in seen:
            seen.add((kernel, name, dtype))
            yield Row(
                key={**run, "kernel": kernel, "case": name, "dtype": dtype},
                about=about,
                lost=part.get("reason").shown("not measured"),
                source=document.source,
            )


def _split_dtype(case: str) -> tuple[str, str]:
    """A case's id without its number formats, and those: rows that differ in them alone are told so."""
    found = _DTYPE.fullmatch(case)
    return (found[1] + found[3], found[2]) if found else (case, "")


def _case(part: Part, run: dict[str, str], about: dict[str, str], ceilings: Part) -> Row:
    kernel, case = part.get("kernel").text(), part.get("id").shown()
    if not case:
        names = [part.get("attention").shown(), f"h{part.get('n_heads').shown()}"]
        case = "-".join([*names, *(part.get(name).shown() for name in _PROFILE_KEY)])
    name, dtype = _split_dtype(case)
    passed = part.at("correctness.passed").value
    metrics: dict[str, Value] = dict(_present(part, _PROFILE_METRICS))
    if isinstance(passed, bool):
        metrics["correctness.passed"] = passed
    clock = part.get("clock").shown()
    return Row(
        key={**run, "kernel": kernel, "case": name, "dtype": dtype},
        about={**about, "clock": clock} if clock else about,
        metrics=metrics,
        samples=None if passed is False else _samples(part, ceilings),
        source=part.source,
    )


def _samples(part: Part, ceilings: Part) -> Samples | None:
    values = [each.positive() for each in part.get("samples_s").items()]
    if not values:
        return None
    processes = [int(each.number()) for each in part.get("samples_process").items()]
    if processes and len(processes) != len(values):
        raise part.get("samples_process").wrong(f"as long as samples_s, which has {len(values)}")
    median_s = part.get(TIME).optional_positive()
    bound = part.get("bound").shown()
    rates = {
        MEMORY: ("bandwidth_fraction", ceilings.get("read_bandwidth_bytes_per_s")),
        COMPUTE: ("flop_fraction", ceilings.get("matmul_flop_per_s").get(part.get("dtype").shown())),
    }
    fraction, ceiling = rates.get(bound, ("", None))
    suspect = part.get("suspect").shown()
    contended = "others used the machine all along" if part.get("contended").value is True else None
    return Samples(
        seconds=tuple(values),
        processes=tuple(processes),
        median_s=median_s if median_s is not None else sorted(values)[len(values) // 2],
        bound=bound,
        ceiling=ceiling.optional_positive() if ceiling is not None else None,
        fraction=part.get(fraction).optional_positive() if fraction else None,
        clock_hz=part.at("telemetry.during.sm_clock_hz.mean").optional_positive(),
        unusable=suspect or contended,
    )


def _baseline(document: Document) -> Iterator[Row]:
    from kvcalc.check.baseline import read_rows

    return read_rows(document)


_READERS: Mapping[str, Any] = {
    "estimate": _estimate,
    "compare": _compare,
    "predict": _predict,
    "profile": _profile,
    "baseline": _baseline,
}

"""Requests as they come: lengths from a file or a distribution, as weighted contexts.

A request is counted at its peak, prompt and answer together. A distribution is taken at 64 quantiles, so that the same
words give the same plan.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log
from statistics import NormalDist

from kvcalc.errors import UsageError
from kvcalc.units import parse_tokens

QUANTILES = 64
_PEAK_COLUMNS = ("context_tokens", "total_tokens", "tokens")
_PART_COLUMNS = (
    ("input_tokens", "output_tokens"),
    ("prompt_tokens", "completion_tokens"),
    ("ContextTokens", "GeneratedTokens"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Peak contexts of requests with how many have each, shortest first."""

    counts: tuple[tuple[int, int], ...]
    source: str

    @property
    def requests(self) -> int:
        return sum(count for _, count in self.counts)

    @property
    def longest_tokens(self) -> int:
        return self.counts[-1][0]

    @property
    def mean_tokens(self) -> int:
        """Rounded up: a context has whole tokens."""
        return -(-sum(tokens * count for tokens, count in self.counts) // self.requests)


def of_lengths(lengths: Iterable[int], *, source: str) -> Lengths:
    """Lengths of single requests. Raises UsageError where there are none."""
    counts: dict[int, int] = {}
    for tokens in lengths:
        if tokens < 1:
            raise UsageError(f"{source}: a request of {tokens} tokens makes no sense")
        counts[tokens] = counts.get(tokens, 0) + 1
    if not counts:
        raise UsageError(f"{source} holds no requests")
    return Lengths(counts=tuple(sorted(counts.items())), source=source)


def distribution(text: str) -> Lengths | None:
    """`uniform:1k:32k` or `lognormal:4k:32k` (median and 95th percentile); None where the text is neither."""
    kind, *numbers = text.split(":")
    if kind not in ("uniform", "lognormal") or len(numbers) != 2:
        return None
    low, high = (parse_tokens(number, name="length") for number in numbers)
    if low > high:
        raise UsageError(f"lengths '{text}' start above their end")
    quantiles = [(index + 0.5) / QUANTILES for index in range(QUANTILES)]
    if kind == "uniform":
        return of_lengths((round(low + (high - low) * share) for share in quantiles), source=text)
    spread = log(high / low) / NormalDist().inv_cdf(0.95)
    values = (max(1, round(low * exp(spread * NormalDist().inv_cdf(share)))) for share in quantiles)
    return of_lengths(values, source=text)


def read_lengths(lines: Iterable[str], *, source: str) -> Lengths:
    """A CSV with a column of whole contexts, or one of prompts and one of answers; or one number a line."""
    rows = csv.reader(lines)
    head = next(rows, [])
    names = [name.strip() for name in head]
    parts = next((pair for pair in _PART_COLUMNS if all(name in names for name in pair)), None)
    peak = next((name for name in _PEAK_COLUMNS if name in names), None)
    if peak:
        columns = [names.index(peak)]
    elif parts:
        columns = [names.index(name) for name in parts]
    elif len(names) == 1 and names[0].isdigit():
        return of_lengths(_numbers([head, *rows], [0], source, first=1), source=source)
    else:
        raise UsageError(
            f"{source} has no column of lengths",
            hint=f"name one {_PEAK_COLUMNS[0]}, or two {_PART_COLUMNS[0][0]} and {_PART_COLUMNS[0][1]}",
        )
    return of_lengths(_numbers(rows, columns, source, first=2), source=source)


def _numbers(rows: Iterable[list[str]], columns: list[int], source: str, *, first: int) -> Iterable[int]:
    for line, row in enumerate(rows, start=first):
        if not any(cell.strip() for cell in row):
            continue
        try:
            yield sum(int(row[column]) for column in columns)
        except (IndexError, ValueError):
            raise UsageError(f"{source}:{line}: '{','.join(row)[:80]}' is no length in whole tokens") from None

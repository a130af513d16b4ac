"""A verdict a row, and one for all: better, the same, worse, or not to be told.

Exact metrics are equal or the difference is named; measured times are judged by `times`. Rows of one side only are new
or gone, and rows whose GPU, number format or kernel differ are not comparable.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvcalc.check.findings import (
    GONE,
    IMPROVED,
    NEW,
    NOT_COMPARABLE,
    REGRESSED,
    SAME,
    WITHIN_NOISE,
    Finding,
    Settings,
)
from kvcalc.check.results import HIGHER, SOFT_KEYS, TIME, Row, Value, direction
from kvcalc.check.times import Pair, judge

EQUAL = 1e-9
"""Relative difference below which two computed seconds are the same number."""
_MACHINE = ("gpu", "device", "clock")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """All findings, and what they come to.

    matched  rows that stand on both sides
    first    there was no baseline yet
    """

    findings: tuple[Finding, ...]
    settings: Settings
    matched: int
    first: bool = False

    def count(self, verdict: str | None) -> int:
        return sum(finding.verdict == verdict for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The worst that was found."""
        if self.count(REGRESSED):
            return REGRESSED
        if self.settings.strict and self.count(GONE):
            return GONE
        if self.settings.strict and self.settings.locked and self.count(NEW):
            return NEW
        if self.first:
            return NEW
        if self.count(NOT_COMPARABLE) or not self.matched:
            return NOT_COMPARABLE
        for verdict in (IMPROVED, WITHIN_NOISE):
            if self.count(verdict):
                return verdict
        return SAME

    @property
    def exit_code(self) -> int:
        """0 fine, 1 worse or (strict) vanished, 3 not comparable."""
        if self.verdict == NOT_COMPARABLE:
            return 3
        return 0 if self.first or self.verdict in (IMPROVED, WITHIN_NOISE, SAME) else 1

    def sentence(self) -> str:
        """The last line: the verdict, and what it counts."""
        named = ((verdict or "without a verdict", self.count(verdict)) for verdict in (*_ORDER, None))
        counts = ", ".join(f"{count:,} {name}" for name, count in named if count)
        if not self.matched and not self.first:
            counts = "no row stands on both sides" + (f"; {counts}" if counts else "")
        return f"verdict: {self.verdict} ({counts})"

    def to_json(self) -> dict[str, Any]:
        """The object of schema `kvcalc.check/1`."""
        return {
            "schema": "kvcalc.check/1",
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "sentence": self.sentence(),
            "settings": {
                "threshold": self.settings.threshold,
                "alpha": self.settings.alpha,
                "max_regression": dict(self.settings.max_regression),
                "strict": self.settings.strict,
                "allow_different_gpu": self.settings.allow_different_gpu,
                "locked": self.settings.locked,
            },
            "rows": [finding.to_json() for finding in self.findings],
        }


_ORDER = (REGRESSED, GONE, NOT_COMPARABLE, NEW, IMPROVED, WITHIN_NOISE, SAME)


def compare(baseline: Sequence[Row], current: Sequence[Row], settings: Settings, *, first: bool = False) -> Check:
    """Set the current rows against the baseline's; `first` where there is no baseline yet."""
    before, after = {row.id: row for row in baseline}, {row.id: row for row in current}
    common = [(old, after[id]) for id, old in before.items() if id in after]
    times = judge(list(_pairs_of_samples(common, settings)), settings)
    findings: list[Finding] = []
    for old, now in common:
        reason = _not_comparable(old, now, settings)
        if reason is not None:
            findings.append(_about_row(now.id, NOT_COMPARABLE, reason))
            continue
        findings += _exact(old, now, settings)
        if now.id in times:
            findings.append(times[now.id])
        elif old.samples is not None and now.metrics.get("correctness.passed") is not False:
            findings.append(
                Finding(id=now.id, metric=TIME, baseline=old.samples.median_s, verdict=GONE, note="not timed")
            )
    findings += _unmatched(before, after)
    return Check(findings=tuple(findings), settings=settings, matched=len(common), first=first)


def _pairs_of_samples(common: Sequence[tuple[Row, Row]], settings: Settings) -> Iterator[Pair]:
    for old, now in common:
        if old.samples is not None and now.samples is not None and _not_comparable(old, now, settings) is None:
            other_gpu = old.about.get("gpu") != now.about.get("gpu")
            yield Pair(id=now.id, old=old.samples, now=now.samples, other_gpu=other_gpu)


def _not_comparable(old: Row, now: Row, settings: Settings) -> str | None:
    """Why two rows of one id must not be set against each other."""
    if now.lost is not None or old.lost is not None:
        return f"no result: {now.lost or old.lost}"
    for name in dict.fromkeys((*old.about, *now.about)):
        one, other = old.about.get(name), now.about.get(name)
        if one == other or (settings.allow_different_gpu and name in _MACHINE):
            continue
        hint = "; --allow-different-gpu compares all the same" if name in _MACHINE else ""
        return f"{name} {one or 'not named'} against {other or 'not named'}{hint}"
    return None


def _about_row(id: str, verdict: str, note: str = "") -> Finding:
    return Finding(id=id, metric="*", verdict=verdict, note=note)


def _exact(old: Row, now: Row, settings: Settings) -> Iterator[Finding]:
    for metric in dict.fromkeys((*old.metrics, *now.metrics)):
        one, other = old.metrics.get(metric), now.metrics.get(metric)
        verdict, note = _exact_verdict(metric, one, other, settings)
        yield Finding(id=now.id, metric=metric, baseline=one, current=other, verdict=verdict, note=note)


def _exact_verdict(metric: str, one: Value | None, other: Value | None, settings: Settings) -> tuple[str, str]:
    if one is None:
        return NEW, ""
    if other is None:
        return GONE, ""
    if _equal(one, other):
        return SAME, ""
    if settings.locked:
        return REGRESSED, "moved; --update takes it into the lock"
    worse = (other < one) if direction(metric) == HIGHER else (other > one)
    if not worse:
        return IMPROVED, ""
    allowed = settings.allowed(metric)
    if one and abs(other - one) / abs(one) <= allowed:
        return WITHIN_NOISE, f"within the allowed {allowed * 100:g}%"
    return REGRESSED, ""


def _equal(one: Value, other: Value) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return math.isclose(one, other, rel_tol=EQUAL)
    return one == other


def _unmatched(before: Mapping[str, Row], after: Mapping[str, Row]) -> Iterator[Finding]:
    """Rows of one side only; those that differ in one soft part of their key are paired and told to differ in it."""
    gone = {id: row for id, row in before.items() if id not in after}
    new = {id: row for id, row in after.items() if id not in before}
    for name in SOFT_KEYS:
        for one, other in _pairs(gone, new, name):
            del gone[one.id], new[other.id]
            texts = [row.key[name].removeprefix(f"{name}-") for row in (one, other)]
            note = f"{name} {texts[0]} against {texts[1]}"
            yield _about_row(one.id, NOT_COMPARABLE, note)
    for id in gone:
        yield _about_row(id, GONE)
    for id, row in new.items():
        if row.lost is None:
            yield _about_row(id, NEW)


def _pairs(gone: Mapping[str, Row], new: Mapping[str, Row], name: str) -> list[tuple[Row, Row]]:
    """Rows that are the only ones on their sides with the rest of their key."""
    sides = []
    for rows in (gone, new):
        groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
        for row in rows.values():
            if name in row.key:
                groups.setdefault(row.without(name), []).append(row)
        sides.append({rest: group[0] for rest, group in groups.items() if len(group) == 1})
    return [(sides[0][rest], sides[1][rest]) for rest in sides[0] if rest in sides[1]]

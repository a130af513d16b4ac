"""Layers written as a person would: runs of equal layers, and patterns that repeat."""

from typing import Any

LONGEST_PATTERN = 24


def runs(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layer list of a spec. Where several patterns fit, the one that covers most; among those the shortest."""
    return _entries(layers, LONGEST_PATTERN)


def _entries(layers: list[dict[str, Any]], longest: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    position = 0
    while position < len(layers):
        period, times = _best_period(layers, position, longest)
        if period == 1:
            entries.append({**({"repeat": times} if times > 1 else {}), **layers[position]})
        else:
            entries.append({"repeat": times, "pattern": _entries(layers[position : position + period], 1)})
        position += period * times
    return entries


def _best_period(layers: list[dict[str, Any]], start: int, longest: int) -> tuple[int, int]:
    best = (1, _repeats(layers, start, 1))
    if best[1] * 2 > len(layers) - start:
        return best
    for period in range(2, longest + 1):
        times = _repeats(layers, start, period)
        if times > 1 and period * times > best[0] * best[1]:
            block = layers[start : start + period]
            if any(layer != block[0] for layer in block):
                best = (period, times)
    return best


def _repeats(layers: list[dict[str, Any]], start: int, period: int) -> int:
    """How often the block of `period` layers at `start` occurs back to back."""
    block, times = layers[start : start + period], 1
    while layers[start + times * period : start + (times + 1) * period] == block:
        times += 1
    return times

"""Reading plain JSON results leniently: what is missing or of another type is left out of a report, never fatal."""

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
LARGEST = 1e100


def get(data: Any, dotted: str) -> Any:
    """The value at `a.b.c`, None where there is none."""
    for key in dotted.split("."):
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def text(data: Any, dotted: str, default: str = "") -> str:
    """A plain value as text."""
    value = get(data, dotted)
    if value is None or isinstance(value, Mapping | list):
        return default
    return str(value)


def number(data: Any, dotted: str) -> float | None:
    """A number, where it is one that two of can be multiplied or divided."""
    value = get(data, dotted)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        return None
    return value


def positive(data: Any, dotted: str) -> float | None:
    value = number(data, dotted)
    return value if value is not None and value > 1 / LARGEST else None


def items(data: Any, dotted: str) -> Sequence[Json]:
    """The objects of a list."""
    value = get(data, dotted)
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def texts(data: Any, dotted: str) -> list[str]:
    """The plain values of a list."""
    value = get(data, dotted)
    return [str(each) for each in value if not isinstance(each, Mapping | list)] if isinstance(value, list) else []

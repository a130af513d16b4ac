"""Units: reading what people type (`128k`, `4k:1m:x2`) and writing numbers with the unit that they are in.

Memory is in GiB, bandwidth in GB/s, compute in TFLOP/s. A `k` of tokens is 1,024 and an `m` is 1,048,576.
"""

from fractions import Fraction

from kvcalc.errors import UsageError

GIB = 1 << 30
_TOKEN_SUFFIXES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MAX_SWEEP = 10_000_000


def parse_tokens(text: str, *, name: str = "value") -> int:
    """A whole number of tokens: `131072`, `131_072`, `128k`, `1m`. Raises UsageError for anything else."""
    digits, factor = text.strip().lower().replace("_", ""), 1
    if digits and digits[-1] in _TOKEN_SUFFIXES:
        digits, factor = digits[:-1], _TOKEN_SUFFIXES[digits[-1]]
    try:
        value = Fraction(digits[:40]) * factor
    except (ValueError, ZeroDivisionError):
        value = Fraction(1, 2)
    if value.denominator != 1 or value < 1 or len(digits) > 40 or not digits.replace(".", "").isdigit():
        raise UsageError(f"{name} '{text}' is not a whole number above 0", hint="write 32768, 32k or 1m")
    return int(value)


def parse_list(text: str, *, name: str = "value") -> list[int]:
    """Numbers and ranges, separated by commas: `1,8,32`, `4k:128k:x2` (times 2), `0.5k:4k:512` (plus 512)."""
    values: list[int] = []
    for part in text.split(","):
        values += _range(part, name) if ":" in part else [parse_tokens(part, name=name)]
    return values


def _range(text: str, name: str) -> list[int]:
    pieces = text.split(":")
    if len(pieces) != 3:
        raise UsageError(f"{name} '{text}' is not a range", hint="write first:last:step, such as 4k:128k:x2 or 1:8:1")
    first, last = parse_tokens(pieces[0], name=name), parse_tokens(pieces[1], name=name)
    multiply = pieces[2].strip().lower().startswith("x")
    step = parse_tokens(pieces[2].strip().lower().removeprefix("x"), name=f"{name} step")
    if multiply and step < 2:
        raise UsageError(f"{name} '{text}' never ends: the factor must be 2 or more")
    values = []
    while first <= last:
        values.append(first)
        first = first * step if multiply else first + step
        if len(values) > MAX_SWEEP:
            raise UsageError(f"{name} '{text}' has more than {MAX_SWEEP:,} values")
    if not values:
        raise UsageError(f"{name} '{text}' is empty: it starts above its end")
    return values


_BYTE_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_BYTE_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SECOND_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def parse_bytes(text: str, *, name: str = "size") -> int:
    """A number of bytes: `6GiB`, `512MiB`, `688.6GB`, `1000`. Raises UsageError for anything else."""
    number, unit = _split_unit(text)
    value = _positive(number, zero=True)
    if value is None or unit not in _BYTE_UNITS:
        raise UsageError(f"{name} '{text}' is not a number of bytes", hint="write 6GiB, 512MiB or 688.6GB")
    return round(value * _BYTE_UNITS[unit])


def parse_rate(text: str, *, name: str = "rate") -> float:
    """Bytes a second: `50GB/s`, `450GB`. Raises UsageError for anything else."""
    number, unit = _split_unit(text.strip().lower().removesuffix("/s"))
    value = _positive(number)
    if value is None or unit not in _BYTE_UNITS or not unit:
        raise UsageError(f"{name} '{text}' is not a rate", hint="write 50GB/s")
    return float(value * _BYTE_UNITS[unit])


def parse_seconds(text: str, *, name: str = "time") -> float:
    """Seconds: `50ms`, `0.05s`, `800us`. Raises UsageError for anything else."""
    number, unit = _split_unit(text)
    value = _positive(number)
    if value is None or unit not in _SECOND_UNITS:
        raise UsageError(f"{name} '{text}' is not a time", hint="write 50ms")
    return float(value) * _SECOND_UNITS[unit]


def _split_unit(text: str) -> tuple[str, str]:
    lowered = text.strip().lower().replace(" ", "").replace("_", "")
    digits = len(lowered) - len(lowered.lstrip("0123456789."))
    return lowered[:digits], lowered[digits:]


def _positive(text: str, *, zero: bool = False) -> Fraction | None:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
    return value if value > 0 or (zero and value == 0) else None


def exact(value: Fraction | int) -> int | float:
    """An integer where whole, else the decimal. Cache growth has powers of two as denominators, so that is exact."""
    fraction = Fraction(value)
    return fraction.numerator if fraction.denominator == 1 else float(fraction)


def number(value: Fraction | int | float) -> str:
    """With thousands separators, and all decimals where it is not whole: `70,272`, `3,850.25`."""
    if isinstance(value, Fraction):
        value = exact(value)
    return f"{value:,}"


def memory(value: int | float, *, as_bytes: bool = False) -> str:
    """`85.80 GiB`, smaller sizes in MiB, KiB or B; exact with `as_bytes`."""
    if as_bytes:
        return f"{value:,} B"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value:,} B"


def seconds(value: float) -> str:
    """`12.3 us`, `4.56 ms` or `1.23 s`, three significant digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size or unit == "us":
            return f"{_significant(value / size)} {unit}"
    raise AssertionError(value)


def flop(value: int | float) -> str:
    """`2.23 TFLOP`, `278.5 kFLOP`: three or four significant digits with a decimal prefix."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{_significant(value / size)} {prefix}FLOP"
    return f"{value:,} FLOP"


def _significant(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(value: float) -> str:
    """`8x`, `56.9x`, `0.0176x`."""
    text = f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
    return f"{text}x"

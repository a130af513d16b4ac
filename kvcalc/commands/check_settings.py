"""What counts as worse: from the command line, below it from `[tool.kvcalc.check]` of the nearest pyproject.toml."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvcalc.check.findings import Settings
from kvcalc.errors import UsageError
from kvcalc.names import nearest

KEYS = ("threshold", "strict", "allow-different-gpu", "max-regression")


def settings(
    *,
    threshold: str | None,
    max_regression: Sequence[str],
    strict: bool | None,
    allow_different_gpu: bool | None,
    locked: bool,
    folder: Path,
) -> Settings:
    """The settings; what is None on the command line is taken from the file, else it is the default."""
    table, source = _table(folder)
    limits = dict(_limit(text) for text in max_regression)
    stated = table.get("max-regression", {})
    if not isinstance(stated, Mapping):
        raise UsageError(f"{source}: max-regression is no table of metrics and shares")
    for metric, text in stated.items():
        limits.setdefault(metric, share(text, name=f"{source}: max-regression of {metric}"))
    if threshold is not None:
        limit = share(threshold, name="--threshold")
    else:
        limit = share(table.get("threshold", "3%"), name=f"{source}: threshold")
    return Settings(
        threshold=limit,
        max_regression=limits,
        strict=_flag(table, "strict", source) if strict is None else strict,
        allow_different_gpu=(
            _flag(table, "allow-different-gpu", source) if allow_different_gpu is None else allow_different_gpu
        ),
        locked=locked,
    )


def share(text: object, *, name: str) -> float:
    """`3%` as 0.03. Raises UsageError for what has no percent sign, since 3 could be 3 % or 300 %."""
    digits = text.strip().removesuffix("%").strip() if isinstance(text, str) and text.strip().endswith("%") else ""
    plain = digits.replace(".", "", 1)
    if not plain.isascii() or not plain.isdigit() or len(digits) > 12:
        raise UsageError(f"{name} {text!r:.60} is not a share", hint="write 3% or 0%")
    return float(digits) / 100


def _limit(text: str) -> tuple[str, float]:
    metric, sign, value = text.partition("=")
    if not sign or not metric.strip():
        raise UsageError(f"--max-regression can't read '{text}'", hint="write METRIC=SHARE: cache.bytes_per_token=0%")
    return metric.strip(), share(value, name=f"--max-regression of {metric.strip()}")


def _table(folder: Path) -> tuple[Mapping[str, Any], str]:
    """The table of the nearest pyproject.toml of the folder and those above it; empty where there is none."""
    import tomllib

    for each in (folder, *folder.parents):
        path = each / "pyproject.toml"
        if not path.is_file():
            continue
        try:
            table: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"can't read '{path}': {error}") from error
        for name in ("tool", "kvcalc", "check"):
            table = table.get(name, {}) if isinstance(table, Mapping) else {}
        source = f"[tool.kvcalc.check] in {path}"
        if not isinstance(table, Mapping):
            raise UsageError(f"{source} is no table")
        for key in table:
            if key not in KEYS:
                raise UsageError(f"{source}: unknown key '{key}'", hint=nearest(key, KEYS))
        return table, source
    return {}, ""


def _flag(table: Mapping[str, Any], key: str, source: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{source}: {key} is {value!r:.60} and not true or false")
    return value

"""`kvcalc list`: models, gpus, kinds, formats and engines that there are."""

from pathlib import Path
from typing import Any

from kvcalc import api
from kvcalc.commands.output import emit
from kvcalc.errors import UsageError
from kvcalc.names import nearest
from kvcalc.report.page import Page, Table
from kvcalc.units import exact

WHAT = ("models", "gpus", "kinds", "formats", "engines")


def run(what: str, *, format: str | None, json: bool, output: Path | None) -> int:
    """Print the list."""
    if what not in WHAT:
        raise UsageError(f"can't list '{what}'", hint=nearest(what, WHAT))
    rows = {"models": _models, "gpus": _gpus, "kinds": _kinds, "formats": _formats, "engines": _engines}[what]()
    emit(
        lambda: {"schema": "kvcalc.list/1", "what": what, "rows": rows},
        lambda: _page(what, rows),
        format=format,
        json=json,
        output=output,
    )
    return 0


def _page(what: str, rows: list[dict[str, Any]]) -> Page:
    columns = list(rows[0])
    numbers = frozenset(name for name in columns if isinstance(rows[0][name], int | float))
    cells = [
        [f"{row[name]:,}" if isinstance(row[name], int | float) else str(row[name]) for name in columns] for row in rows
    ]
    return Page(title=what, blocks=[Table(title="", columns=columns, rows=cells, right=numbers)])


def _models() -> list[dict[str, Any]]:
    from kvcalc.specs.sources import model_names

    rows = []
    for name in model_names():
        result = api.estimate(name)
        rows.append(
            {
                "name": name,
                "title": result.model.title,
                "attention": ", ".join(result.model.attention_labels),
                "parameters": result.model.parameters.total,
                "bytes_per_token": exact(result.cache.bytes_per_token),
                "constant_bytes_per_sequence": result.cache.constant_bytes_per_sequence,
                "max_context_tokens": result.model.max_context_tokens,
            }
        )
    return rows


def _gpus() -> list[dict[str, Any]]:
    from kvcalc.specs.hardware import load_gpus

    return [
        {
            "name": gpu.slug,
            "device": gpu.name,
            "memory_reported_bytes": gpu.memory_reported_bytes,
            "memory_bandwidth_bytes_per_s": gpu.memory_bandwidth_bytes_per_s,
            "bf16_flop_per_s": gpu.peak("bf16"),
            "ridge_flop_per_byte": round(gpu.ridge_flop_per_byte("bf16"), 1),
            "device_names": "; ".join(gpu.device_names),
        }
        for gpu in load_gpus()
    ]


def _kinds() -> list[dict[str, Any]]:
    from kvcalc.architecture.attention import KINDS
    from kvcalc.architecture.feed_forward import FEED_FORWARDS

    names = {"gqa": "gqa (mha, mqa)"}
    return [
        {
            "name": names.get(kind.kind, kind.kind),
            "what": (kind.__doc__ or "").splitlines()[0],
            "source": kind.source,
        }
        for kind in (*KINDS, *FEED_FORWARDS)
    ]


def _formats() -> list[dict[str, Any]]:
    from kvcalc.architecture.formats import ALIASES, CACHE_FORMATS

    rows = []
    for format in CACHE_FORMATS.values():
        aliases = [alias for alias, name in ALIASES.items() if name == format.name]
        rows.append(
            {
                "name": format.name,
                "aliases": ", ".join(aliases),
                "elements": format.packing.elements,
                "bytes": format.packing.bytes,
                "what": format.description,
                "source": format.source,
            }
        )
    return rows


def _engines() -> list[dict[str, Any]]:
    from kvcalc import engines

    rows = [
        {
            "name": engines.GENERIC,
            "versions": "",
            "rule": "all",
            "since": "",
            "what": "just what the attention keeps, in blocks",
            "source": "",
        }
    ]
    for name in engines.MODULES:
        engine = engines.load_engine(name)
        versions = ", ".join(first if first == last else f"{first} to {last}" for first, last in engine.covers)
        for rule in engine.rules:
            for known in rule.history:
                rows.append(
                    {
                        "name": name,
                        "versions": versions,
                        "rule": rule.name,
                        "since": known.since,
                        "what": known.says,
                        "source": known.source,
                    }
                )
        if engine.remark:
            rows.append(
                {
                    "name": name,
                    "versions": versions,
                    "rule": "remark",
                    "since": "",
                    "what": engine.remark,
                    "source": "",
                }
            )
    return rows

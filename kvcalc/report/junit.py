"""JUnit XML of a check: one test case a metric and row, in the form that the common schemas agree on.

That is one suite with its properties, cases and output streams, attributes in the older schema's full set, and no
attribute that only one reader knows. A regression is a failure, what can't be compared is an error, and what has no
verdict or stands on one side only is skipped.
"""

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

_ERROR = ("not comparable",)
_PASSED = ("improved", "same", "within noise")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(data: Mapping[str, Any], *, timestamp: str) -> str:
    """A `kvcalc.check/1` result as XML; timestamp is of the form 2026-01-31T12:00:00."""
    rows = data["rows"]
    failed = failures(data)
    kinds = [_kind(row["verdict"], failed) for row in rows]
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "name": "kvcalc check",
            "package": "kvcalc",
            "id": "0",
            "timestamp": timestamp,
            "hostname": "localhost",
            "tests": str(len(rows)),
            "failures": str(kinds.count("failure")),
            "errors": str(kinds.count("error")),
            "skipped": str(kinds.count("skipped")),
            "time": "0",
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name in ("verdict", "exit_code"):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _text(str(data[name]))})
    for row, kind in zip(rows, kinds, strict=True):
        _case(suite, row, kind)
    ElementTree.SubElement(suite, "system-out").text = _text(str(data["sentence"]))
    ElementTree.SubElement(suite, "system-err").text = ""
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def failures(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The verdicts that make a check fail: with --strict what is gone, in a lock also what it does not know yet."""
    settings = data["settings"]
    if not settings["strict"]:
        return ("regressed",)
    return ("regressed", "gone", "new") if settings["locked"] else ("regressed", "gone")


def _kind(verdict: str | None, failed: tuple[str, ...]) -> str:
    if verdict in failed:
        return "failure"
    if verdict in _ERROR:
        return "error"
    return "" if verdict in _PASSED else "skipped"


def _case(suite: ElementTree.Element, row: Mapping[str, Any], kind: str) -> None:
    name = "row" if row["metric"] == "*" else row["metric"]
    case = ElementTree.SubElement(suite, "testcase", {"classname": _text(row["id"]), "name": _text(name), "time": "0"})
    if not kind:
        return
    message = _text(message_of(row))
    if kind == "skipped":
        ElementTree.SubElement(case, "skipped", {"message": message})
    else:
        ElementTree.SubElement(case, kind, {"type": str(row["verdict"]), "message": message}).text = message


def message_of(row: Mapping[str, Any]) -> str:
    """One line: the verdict, both values, the ratio and the note."""
    parts = [row["verdict"] or "no verdict"]
    if row["baseline"] is not None or row["current"] is not None:
        parts.append(f"{row['baseline']} -> {row['current']}")
    if row["ratio"] is not None:
        parts.append(f"ratio {row['ratio']:.4f}")
    if row.get("fraction_ratio") is not None:
        parts.append(f"share of the ceiling x {row['fraction_ratio']:.4f}")
    if row["note"]:
        parts.append(row["note"])
    return ", ".join(parts)


def _text(text: str) -> str:
    """Without the characters that XML has no way to write."""
    return _NOT_XML.sub("\ufffd", text)

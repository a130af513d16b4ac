"""Reading result files strictly: a file is data from somewhere else, and what is not plainly a result is refused.

Refused: files above a size limit (before they are read), what is no JSON, keys that stand twice, NaN and infinity,
numbers of absurd length, nesting without end, and documents of another schema. Nothing in a file is ever executed.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcalc.errors import NotComparableError, UsageError

MAX_FILE_BYTES = 64 << 20
MAX_FILES = 10_000
LONGEST_INTEGER = 60
"""Digits: the largest totals have some thirty."""

VERSIONS = {"estimate": 1, "compare": 1, "predict": 1, "profile": 1, "baseline": 1, "check": 1}
"""The schema version of each kind of document that is read."""
COMPARED = ("estimate", "compare", "predict", "profile", "baseline")
PREDICT_COLUMNS = frozenset({"roofline_us", "expected_us", "low_us", "high_us"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One result: where it came from, the command that it is of, and its object."""

    source: str
    command: str
    data: Mapping[str, Any]


def load(path: Path, *, commands: Sequence[str] = COMPARED) -> list[Document]:
    """The results in a file, or in all .json and .csv files of a folder, in the order of their names.

    Raises UsageError for what is no result, NotComparableError for a result of another schema version.
    """
    try:
        files = _files(path) if path.is_dir() else [path]
    except OSError as error:
        raise UsageError(f"can't read '{path}': {error.strerror}") from error
    if not files:
        raise UsageError(f"no result in '{path}'", hint="a folder's results are its .json and .csv files")
    return [_document(each, commands) for each in files]


def _files(folder: Path) -> list[Path]:
    files = sorted(each for each in folder.rglob("*") if each.suffix.lower() in (".json", ".csv") and each.is_file())
    if len(files) > MAX_FILES:
        raise UsageError(f"'{folder}' has {len(files):,} results; at most {MAX_FILES:,} are read")
    return files


def _document(path: Path, commands: Sequence[str]) -> Document:
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        return _predictions(text, str(path), commands)
    return parse(text, source=str(path), commands=commands)


def read_text(path: Path) -> str:
    """A file's text. Raises UsageError where it is missing, too large (it is not read then) or not UTF-8."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            content = file.read(MAX_FILE_BYTES + 1) if size <= MAX_FILE_BYTES else b""
    except FileNotFoundError as error:
        raise UsageError(f"no such file: '{path}'") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"can't read '{path}': {getattr(error, 'strerror', None) or error}") from error
    if max(size, len(content)) > MAX_FILE_BYTES:
        raise UsageError(f"'{path}' is larger than {MAX_FILE_BYTES >> 20} MiB, which no result is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"'{path}' is not UTF-8 text (byte {error.start})") from error


def parse(text: str, *, source: str, commands: Sequence[str] = COMPARED) -> Document:
    """A result from its JSON text. Raises UsageError or NotComparableError, each naming the source."""
    data = parse_json(text, source=source)
    if not isinstance(data, dict):
        raise UsageError(f"{source}: a result is a JSON object, not {_kind(data)}")
    schema = data.get("schema")
    command, version = _schema(schema)
    if command not in VERSIONS or command not in commands:
        shown = f"schema {schema!r:.80}" if schema is not None else "it has no schema"
        raise UsageError(f"{source}: not a result that is read here: {shown}", hint=f"known: {', '.join(commands)}")
    if version != VERSIONS[command]:
        raise NotComparableError(
            f"{source}: schema version {version} of {command} is not comparable; this kvcalc reads {VERSIONS[command]}",
            hint="make both sides with the same version of kvcalc",
        )
    return Document(source=source, command=command, data=data)


def _schema(schema: object) -> tuple[str, int]:
    """`kvcalc.profile/1` as its command and version; ("", 0) for anything else."""
    if not isinstance(schema, str) or not schema.startswith("kvcalc."):
        return "", 0
    command, _, version = schema.removeprefix("kvcalc.").partition("/")
    return (command, int(version)) if version.isascii() and version.isdigit() and len(version) < 9 else ("", 0)


class _RefusedError(ValueError):
    """A value that JSON could write and a result must not have."""


def parse_json(text: str, *, source: str) -> Any:
    """Strict JSON: no key twice, no NaN, no infinity, no endless number. Raises UsageError with line and column."""
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        raise UsageError(f"{source}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
    except _RefusedError as error:
        raise UsageError(f"{source}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{source}: nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _RefusedError(f"the key {name!r:.80} stands twice in one object")
            seen.add(name)
    return found


def _constant(name: str) -> Any:
    raise _RefusedError(f"{name} is not a number that a result can have")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"the number {text:.40} is out of range")
    return value


def _integer(text: str) -> int:
    if len(text) > LONGEST_INTEGER:
        raise _RefusedError(f"a number of {len(text):,} digits is out of range")
    return int(text)


def _predictions(text: str, source: str, commands: Sequence[str]) -> Document:
    """The CSV that `kvcalc predict` writes, as a document of its rows."""
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        names = reader.fieldnames or []
        if not set(names) >= PREDICT_COLUMNS or "predict" not in commands:
            raise UsageError(f"{source}: not a CSV of kvcalc predict", hint="save other results with --format json")
        if len(set(names)) != len(names):
            raise UsageError(f"{source}: a column stands twice")
        rows = [{name: _cell(value) for name, value in row.items() if name is not None} for row in reader]
    except csv.Error as error:
        raise UsageError(f"{source}:{reader.line_num}: not CSV: {error}") from error
    return Document(source=source, command="predict", data={"schema": "kvcalc.predict/1", "rows": rows})


def _cell(text: str | None) -> Any:
    """A number where it is one; None where it is empty."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and text.lstrip("-").isdigit() else value


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a document with its place in it, so that what is wrong can be named."""

    source: str
    path: str
    value: Any

    @classmethod
    def of(cls, document: Document) -> "Part":
        return cls(source=document.source, path="", value=document.data)

    def get(self, key: str) -> "Part":
        """A key of an object; a part with None where there is none."""
        inner = self.value.get(key) if isinstance(self.value, Mapping) else None
        if self.value is not None and not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        return Part(source=self.source, path=f"{self.path}.{key}".lstrip("."), value=inner)

    def at(self, dotted: str) -> "Part":
        """A key of a key: `cache.per_rank.stored_bytes`."""
        part = self
        for key in dotted.split("."):
            part = part.get(key)
        return part

    def items(self) -> "Iterator[Part]":
        """The parts of a list, nothing for None."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        for index, each in enumerate(self.value):
            yield Part(source=self.source, path=f"{self.path}[{index}]", value=each)

    def number(self) -> int | float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.wrong("a number")
        return self.value

    def positive(self) -> float:
        value = float(self.number())
        if value <= 0:
            raise self.wrong("a number above 0")
        return value

    def optional_positive(self) -> float | None:
        return None if self.value is None else self.positive()

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        return self.value

    def shown(self, default: str = "") -> str:
        """A plain value as text, for a row's identity."""
        if self.value is None:
            return default
        if isinstance(self.value, Mapping | list):
            raise self.wrong("a text or a number")
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value)

    def wrong(self, wanted: str) -> UsageError:
        shown = f"{self.value!r:.60}" if not isinstance(self.value, Mapping | list) else _kind(self.value)
        where = f"{self.source}: {self.path}" if self.path else self.source
        return UsageError(f"{where} is {shown} and not {wanted}")

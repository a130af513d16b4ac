"""Reads YAML and JSON documents so that every value still knows its place in the text.

`read_document` gives plain dicts, lists and scalars, and a `Document` that finds the line and column of any path in
them. Duplicate keys, keys that are no strings, cyclic anchors and oversized documents are refused here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kvcalc.errors import Place, Problem, SpecError, UsageError

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

MAX_CHARACTERS = 4_000_000
MAX_NODES = 200_000
MAX_DEPTH = 100
"""Far above any spec; below what aliases of aliases of aliases expand to, and what parsers can nest."""

PathInDocument = Sequence[str | int]


@dataclass
class Document:
    """A document's data and where each part of it stands.

    One that a conversion made has no text of its own; its problems are told at the document that it was made from.
    """

    source: str
    text: str
    data: Any = None
    root: yaml.Node | None = field(default=None, repr=False)
    made_from: "Document | None" = field(default=None, repr=False)

    def place(self, path: PathInDocument = (), *, of_value: bool = False) -> Place:
        """Where the value at a path, or its nearest enclosing one, stands.

        Line and column of its key, or with `of_value` of the value itself: for an alias, where its anchor stands.
        """
        line, column = self._mark(path, of_value)
        place = _problem_at(self, line, column, "").place
        assert place is not None
        return place

    def _mark(self, path: PathInDocument, of_value: bool) -> tuple[int, int]:
        node = self.root
        if node is None:
            return 0, 0
        mark = node.start_mark
        for step in path:
            key_node, child = _child(node, step)
            if child is not None:
                mark, node = (key_node or child).start_mark, child
        if of_value:
            mark = node.start_mark
        return mark.line, mark.column

    def problem(
        self, path: PathInDocument, message: str, hint: str | None = None, *, of_value: bool = False
    ) -> Problem:
        if self.made_from is not None:
            where = ".".join(map(str, path))
            told = f"{where} of the spec that this makes: {message}" if where else message
            return Problem(message=told, place=self.made_from.place(), hint=hint)
        return Problem(message=message, place=self.place(path, of_value=of_value), hint=hint)


def read_file(path: Path) -> Document:
    """Read a YAML or JSON file. Raises UsageError where it can't be read, SpecError where it can't be parsed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read '{path}': {error.strerror}") from error
    return read_bytes(str(path), content)


def read_bytes(source: str, content: bytes) -> Document:
    """Parse the content of a file or stream. Raises UsageError where it is no text."""
    try:
        return read_document(source, content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"'{source}' is not a text file: byte {error.start} is not UTF-8") from None


def read_document(source: str, text: str) -> Document:
    """Parse text that came from `source` (a file name, `<stdin>`): JSON where it starts with a brace, else YAML."""
    document = Document(source, text)
    if len(text) > MAX_CHARACTERS:
        raise SpecError([Problem(message=f"'{source}' has {len(text):,} characters; a spec has a few thousand")])
    _check_depth(document)
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        _read_json(document)
        return document
    try:
        document.root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise SpecError([_syntax_problem(document, error)]) from None
    if document.root is None:
        raise SpecError([document.problem((), "the document is empty")])
    converter = _Converter(document)
    document.data = converter.convert(document.root)
    if converter.problems:
        raise SpecError(converter.problems)
    return document


def _check_depth(document: Document) -> None:
    """Refuse what is nested too deeply before a parser that recurses sees it."""
    depth, opens = 0, (yaml.MappingStartEvent, yaml.SequenceStartEvent)
    closes = (yaml.MappingEndEvent, yaml.SequenceEndEvent)
    try:
        for event in yaml.parse(document.text, Loader=_Loader):
            depth += isinstance(event, opens) - isinstance(event, closes)
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise SpecError([Problem(message=f"{document.source}:{line}: nested more than {MAX_DEPTH} deep")])
    except yaml.YAMLError:
        return  # the parser proper tells what is wrong


def _read_json(document: Document) -> None:
    """JSON by its own rules; it is YAML too, tabs aside, so that nodes give the places."""
    text = document.text
    try:
        document.data = json.loads(text.lstrip("\ufeff"))
    except json.JSONDecodeError as error:
        raise SpecError(
            [_problem_at(document, error.lineno - 1, error.colno - 1, f"not valid JSON: {error.msg}")]
        ) from None
    except ValueError:  # Python refuses to read an integer of thousands of digits
        position = next((match.start() for match in re.finditer(r"\d{4000}", text)), 0)
        line, column = _line_and_column(text, position)
        message = "not a value that a spec can hold: a number of thousands of digits"
        raise SpecError([_problem_at(document, line, column, message)]) from None
    try:
        document.root = yaml.compose(text.replace("\t", " "), Loader=_Loader)
    except yaml.YAMLError:
        return
    converter = _Converter(document)
    if document.root is not None:
        converter.convert(document.root)
    if converter.problems:
        raise SpecError(converter.problems)


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    return text.count("\n", 0, position), position - (text.rfind("\n", 0, position) + 1)


def _problem_at(document: Document, line: int, column: int, message: str, hint: str | None = None) -> Problem:
    """A problem at a line and column that count from 0."""
    lines = [*document.text.splitlines(), ""]
    line = min(line, len(lines) - 1)
    place = Place(source=document.source, line=line + 1, column=column + 1, source_line=lines[line])
    return Problem(message=message, place=place, hint=hint)


def _syntax_problem(document: Document, error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        line, column = _line_and_column(document.text, int(error.position))
        character = ord(document.text[int(error.position)])
        return _problem_at(document, line, column, f"not valid YAML: the character U+{character:04X} is not allowed")
    mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    if mark is None:
        return Problem(message=f"{document.source}: not valid YAML: {what}")
    lines = document.text.splitlines() or [""]
    tabs = "\t" in lines[min(mark.line, len(lines) - 1)]
    hint = "indent with spaces" if tabs else None
    return _problem_at(document, mark.line, mark.column, f"not valid YAML: {what}", hint)


def _child(node: yaml.Node, step: str | int) -> tuple[yaml.Node | None, yaml.Node | None]:
    """The key node and the value node that a step leads to."""
    if isinstance(node, yaml.SequenceNode):
        if isinstance(step, int) and 0 <= step < len(node.value):
            return None, node.value[step]
        return None, None
    if isinstance(node, yaml.MappingNode):
        merged = None
        for key, value in node.value:
            if key.value == step:
                return key, value
            if key.value == "<<":
                merged = value
        for source in merged.value if isinstance(merged, yaml.SequenceNode) else [merged] if merged else []:
            found = _child(source, step)
            if found[1] is not None:
                return found
    return None, None


class _Converter:
    """Nodes to plain data; collects what is wrong on the way."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self._done: dict[int, tuple[Any, int]] = {}
        self._open: set[int] = set()
        self._scalars = yaml.constructor.SafeConstructor()

    def convert(self, node: yaml.Node) -> Any:
        return self._convert(node)[0]

    def _convert(self, node: yaml.Node) -> tuple[Any, int]:
        """The value, and how many nodes it expands to."""
        if id(node) in self._done:
            return self._done[id(node)]
        if id(node) in self._open:
            raise SpecError([self._at(node, "an anchor contains itself")])
        self._open.add(id(node))
        result: tuple[Any, int]
        if isinstance(node, yaml.MappingNode):
            result = self._mapping(node)
        elif isinstance(node, yaml.SequenceNode):
            parts = [self._convert(child) for child in node.value]
            result = [value for value, _ in parts], 1 + sum(size for _, size in parts)
        else:
            result = self._scalar(node), 1
        self._open.discard(id(node))
        if result[1] > MAX_NODES:
            raise SpecError([self._at(node, f"aliases expand to more than {MAX_NODES:,} values")])
        self._done[id(node)] = result
        return result

    def _mapping(self, node: yaml.MappingNode) -> tuple[dict[str, Any], int]:
        mapping: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        size = 1
        for key_node, value_node in node.value:
            value, value_size = self._convert(value_node)
            size += value_size
            if key_node.tag == "tag:yaml.org,2002:merge":
                for source in value if isinstance(value, list) else [value]:
                    if isinstance(source, Mapping):
                        merged = {**source, **merged}
                    else:
                        self.problems.append(self._at(value_node, "'<<' merges mappings only"))
                continue
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                scalar = isinstance(key_node, yaml.ScalarNode)
                what = f"'{key_node.value}'" if scalar else {"sequence": "a list"}.get(key_node.id, "a mapping")
                self.problems.append(
                    self._at(key_node, f"a key must be a name, not {what}", "quote it" if scalar else None)
                )
            elif key in mapping:
                self.problems.append(self._at(key_node, f"duplicate key '{key}'"))
            else:
                mapping[key] = value
        return {**merged, **mapping}, size

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:  # `!!int abc`, month 13
            why = getattr(error, "problem", None) or error
            why = f"'{node.value[:40]}'" if isinstance(error, LookupError | AttributeError | TypeError) else why
            self.problems.append(self._at(node, f"not a value that a spec can hold: {why}"))
            return None

    def _at(self, node: yaml.Node, message: str, hint: str | None = None) -> Problem:
        return _problem_at(self.document, node.start_mark.line, node.start_mark.column, message, hint)

"""Checks a document against a pydantic model and says all that is wrong, in a spec author's words and at its place."""

from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from kvcalc.errors import Problem, SpecError
from kvcalc.names import nearest
from kvcalc.specs.reader import Document


class Spec(BaseModel):
    """Base of everything that a person writes: strict types, unknown keys refused."""

    # defer_build: only the document's class is compiled, which halves the time that importing the specs takes
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)


@cache
def field_docs(model: type[Spec]) -> dict[str, str]:
    """The docstring below each field of a spec class and its bases, read from the source when it is needed."""
    import ast
    import inspect
    import textwrap

    docs: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if issubclass(owner, Spec) and owner is not Spec:
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
            assert isinstance(body, ast.ClassDef)
            for field, below in pairwise(body.body):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(below, ast.Expr)
                ):
                    docs[field.target.id] = inspect.cleandoc(str(getattr(below.value, "value", "")))
    return docs


def json_schema(model: type[Spec], title: str) -> dict[str, Any]:
    """The JSON Schema of a spec class, each key described by the docstring below its field."""
    schema = model.model_json_schema()
    classes = {owner.__name__: owner for owner in _all_specs(Spec)}
    for name, definition in [(model.__name__, schema), *schema.get("$defs", {}).items()]:
        for key, text in field_docs(classes[name]).items() if name in classes else ():
            definition["properties"][key]["description"] = text
    return {**_tidy(schema), "$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}


def _tidy(schema: Any) -> Any:
    """Without machine-made titles, and without offering null for what may be left out."""
    if isinstance(schema, list):
        return [_tidy(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, type] = {"title": str, "default": type(None)}
    kept = {key: _tidy(part) for key, part in schema.items() if not (key in made and isinstance(part, made[key]))}
    given = [option for option in kept.pop("anyOf", []) if option != {"type": "null"}]
    return {**given[0], **kept} if len(given) == 1 else kept | ({"anyOf": given} if given else {})


def _all_specs(model: type[Spec]) -> Iterable[type[Spec]]:
    for subclass in model.__subclasses__():
        yield subclass
        yield from _all_specs(subclass)


SpecType = TypeVar("SpecType", bound=Spec)


def validate(document: Document, model: type[SpecType]) -> SpecType:
    """The document as `model`. Raises SpecError with every problem."""
    if not isinstance(document.data, dict):
        raise SpecError([document.problem((), f"a spec is a mapping of keys, not {_kind(document.data)}")])
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise SpecError(_distinct(_problem(document, model, detail) for detail in error.errors())) from None


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    """An alias is checked wherever it is used; its problem is told once."""
    return list(dict.fromkeys(problems))


def _problem(document: Document, model: type[Spec], detail: Any) -> Problem:
    path, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    at = document.problem
    if kind == "missing":
        return at(path[:-1], f"missing key '{path[-1]}'", _about(model, path), of_value=True)
    if kind == "extra_forbidden":
        return at(path, f"unknown key '{path[-1]}'", nearest(str(path[-1]), _fields(model, path[:-1])))
    name = _last_key(document, path)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = sorted({str(tag) for option in _options(model, path) for tag in _tags(option)})
        if kind == "union_tag_not_found":
            return at(path, "missing key 'kind'", "one of: " + ", ".join(kinds))
        tag = str(context.get("tag", ""))
        return at((*path, "kind"), f"unknown kind '{tag}'", nearest(tag, kinds))
    if kind in ("literal_error", "enum"):
        expected = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
        return at(path, f"'{name}' can't be {_show(detail['input'])}", nearest(str(detail["input"]), expected))
    wanted = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "bool_type": "true or false",
        "string_type": "text",
        "dict_type": "a mapping of keys",
        "model_type": "a mapping of keys",
        "model_attributes_type": "a mapping of keys",
        "list_type": "a list",
        "tuple_type": "a list",
        "date_type": "a date such as 2026-01-31",
        "date_parsing": "a date such as 2026-01-31",
        "date_from_datetime_parsing": "a date such as 2026-01-31",
        "date_from_datetime_inexact": "a date such as 2026-01-31",
    }.get(kind)
    if wanted:
        value = detail["input"]
        hint = _number_hint(value) if kind == "int_type" else None
        return at(path, f"'{name}' must be {wanted}, not {_kind(value)} {_show(value)}".rstrip(), hint)
    if kind in ("greater_than_equal", "less_than_equal", "greater_than"):
        bound = context.get("ge", context.get("le", context.get("gt")))
        relation = {"greater_than_equal": "at least", "less_than_equal": "at most", "greater_than": "more than"}[kind]
        return at(path, f"'{name}' is {detail['input']}; it must be {relation} {bound:,}")
    if kind in ("value_error", "assertion_error"):
        return at(path, str(context.get("error", detail["msg"])))
    return at(path, f"'{name}': {detail['msg']}")


def _number_hint(value: Any) -> str | None:
    if isinstance(value, str) and value.replace("_", "").replace(".", "").replace("e", "").replace("+", "").isdigit():
        return "write it as a plain number, without quotes or exponent: 128000"
    return None


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "the truth value"
    if isinstance(value, str):
        return "the text"
    if isinstance(value, int | float):
        return "the number"
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else f"a {type(value).__name__}"


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 60 else f"'{value[:57]}...'"
    return str(value) if isinstance(value, int | float) else ""


def _last_key(document: Document, path: Iterable[str | int]) -> str:
    """The last key of the document on a path; the steps that pydantic adds for unions are no keys."""
    value, name = document.data, "the spec"
    for step in path:
        if isinstance(value, dict) and step in value:
            value, name = value[step], str(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
    return name


def _owner(model: type[Spec], path: Iterable[str | int]) -> type[Spec]:
    """The model class that the mapping at a path is checked against."""
    return _options(model, path)[0]


def _options(model: type[Spec], path: Iterable[str | int]) -> list[type[Spec]]:
    """The model classes that the value at a path may be of: followed through fields, and through union tags."""
    options = [model]
    for step in path:
        fields = options[0].model_fields
        if isinstance(step, str) and step in fields:
            options = list(_spec_classes(fields[step].annotation)) + list(_spec_classes(fields[step].metadata))
        elif isinstance(step, str):
            options = [option for option in options if step in _tags(option)] or options
        if not options:
            return [model]
    return options


def _tags(option: type[Spec]) -> tuple[Any, ...]:
    """Union tags that a class answers to: the values of its `kind`, or the tag that it declares."""
    kind = option.model_fields.get("kind")
    return get_args(kind.annotation) if kind is not None else (getattr(option, "TAG", None),)


def _spec_classes(annotation: Any) -> Iterable[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    elif isinstance(annotation, list):
        for part in annotation:
            yield from _spec_classes(part)
    else:
        for part in get_args(annotation) or get_args(getattr(annotation, "__value__", None)):
            yield from _spec_classes(part)


def _fields(model: type[Spec], path: Iterable[str | int]) -> list[str]:
    return list(_owner(model, path).model_fields)


def _about(model: type[Spec], path: tuple[str | int, ...]) -> str | None:
    text = field_docs(_owner(model, path[:-1])).get(str(path[-1]))
    return f"{path[-1]}: {text.splitlines()[0]}" if text else None

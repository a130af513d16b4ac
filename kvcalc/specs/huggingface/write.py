"""A spec document as YAML in the house form: short mappings on one line, parts that recur written once and anchored."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

WIDTH = 120
HEADER = "# yaml-language-server: $schema=model.schema.json\n"
HEAD_KEYS = ("name", "title", "source", "notes", "published")
PART_KEYS = ("attention", "feed_forward", "other")


def spec_yaml(spec: Mapping[str, Any]) -> str:
    """The text of a spec file. Reading it again gives the same document."""
    writer = _Writer(spec)
    head = [writer.entry(key, spec[key]) for key in HEAD_KEYS if key in spec]
    body = [
        writer.entry(key, value) for key, value in spec.items() if key not in (*HEAD_KEYS, "layers", "mtp", "other")
    ]
    tail = ["\n" + writer.entry(key, spec[key]) for key in ("layers", "mtp", "other") if spec.get(key)]
    return HEADER + "".join([*head, "\n", *body, *tail])


class _Writer:
    def __init__(self, spec: Mapping[str, Any]) -> None:
        parts = [part for key in ("layers", "mtp") for entry in spec.get(key) or [] for part in _parts(entry)]
        self._recurring = [part for index, part in enumerate(parts) if part in parts[:index]]
        self._windowed = any(isinstance(p, Mapping) and p.get("window_tokens") for p in parts)
        self._anchors: list[tuple[Any, str]] = []

    def entry(self, key: str, value: Any, indent: int = 0, *, lead: str = "") -> str:
        """`key: value` with what belongs below it; `lead` is what stands before the key in its line."""
        start = " " * (indent - len(lead)) + lead + key + ":"
        anchor = self._anchor(key, value)
        if anchor.startswith("*"):
            return f"{start} {anchor}\n"
        start += f" {anchor}" if anchor else ""
        line = f"{start} {_flow(value)}\n"
        plain = not isinstance(value, (Mapping, list))
        if plain or (len(line) <= WIDTH and key not in ("layers", "mtp", "pattern", "source")):
            return line
        if isinstance(value, Mapping):
            return start + "\n" + "".join(self.entry(k, v, indent + 2) for k, v in value.items())
        return start + "\n" + "".join(self._item(item, indent + 4) for item in value)

    def _item(self, item: Any, indent: int) -> str:
        """One element of a list; `indent` is where its keys stand."""
        flow = " " * (indent - 2) + "- " + _flow(item) + "\n"
        is_layer = isinstance(item, Mapping) and {"attention", "feed_forward", "pattern"} & set(item)
        if not isinstance(item, Mapping) or (not is_layer and len(flow) <= WIDTH):
            return flow
        return "".join(
            self.entry(key, value, indent, lead="" if position else "- ")
            for position, (key, value) in enumerate(item.items())
        )

    def _anchor(self, key: str, value: Any) -> str:
        """`&name` where a part stands for the first time, `*name` where it stands again, else nothing."""
        if key not in PART_KEYS or value not in self._recurring:
            return ""
        for part, name in self._anchors:
            if part == value:
                return f"*{name}"
        name, taken = self._name(key, value), [name for _, name in self._anchors]
        unique = next(n for n in (name, *(f"{name}-{count}" for count in range(2, 1000))) if n not in taken)
        self._anchors.append((value, unique))
        return f"&{unique}"

    def _name(self, key: str, value: Any) -> str:
        if isinstance(value, list):
            return {"attention": "mixers", "feed_forward": "networks", "other": "extras"}[key]
        kind = value.get("kind", key)
        if kind in ("mha", "gqa", "mqa"):
            if value.get("window_tokens") or value.get("chunk_tokens"):
                return "local"
            return "global" if self._windowed else kind
        return {"dense": "mlp"}.get(kind, kind)


def _parts(entry: Mapping[str, Any]) -> Iterator[Any]:
    """Attentions, feed-forwards and other weights of a layer or of a pattern's layers, as they are written."""
    for layer in entry.get("pattern", [entry]):
        yield from (layer[key] for key in PART_KEYS if key in layer)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n")
    return text.removesuffix("\n...")

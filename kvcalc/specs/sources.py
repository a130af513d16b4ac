"""Finds the model that SPEC names: a packaged one, a YAML, a config.json, one on the hub, standard input."""

import json
import sys
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from kvcalc.architecture.model import Model
from kvcalc.errors import UsageError
from kvcalc.names import nearest
from kvcalc.specs.build import build_model
from kvcalc.specs.reader import Document, read_bytes, read_file

_PACKAGE = Path(__file__).resolve().parent.parent
CHECKED = "checked.json"
_FILE_ENDINGS = (".yaml", ".yml", ".json")


def model_specs_folder() -> Path:
    """Inside the package in an installed wheel, beside it in a checkout and an editable install."""
    installed = _PACKAGE / "model_specs"
    return installed if installed.is_dir() else _PACKAGE.parent / "model_specs"


@cache
def model_names() -> list[str]:
    """Names of the packaged models."""
    return sorted(path.stem for path in model_specs_folder().glob("*.yaml"))


@cache
def load_packaged(name: str) -> Model:
    """A packaged model by its exact name. A file that is as it was when it was last checked is not checked again."""
    path = model_specs_folder() / f"{name}.yaml"
    content = path.read_bytes()
    return build_model(read_bytes(str(path), content), checked=checked_sums().get(name) == checksum(content))


@cache
def checked_sums() -> Mapping[str, str]:
    """Checksums of the packaged specs that have passed the check, by name; `python tests/docs.py` writes them."""
    try:
        sums: Mapping[str, str] = json.loads((model_specs_folder() / CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return sums


def checksum(content: bytes) -> str:
    """CRC-32 in hexadecimal: it tells an edit, which is all that it is for."""
    return f"{zlib.crc32(content):08x}"


def load_model(spec: str) -> Model:
    """The model that `spec` names. Raises UsageError where there is none, SpecError where it can't be used."""
    if spec.lower() in model_names():
        return load_packaged(spec.lower())
    document = load_document(spec)
    return build_model(spec_document(document))


def load_document(spec: str) -> Document:
    """The document that `spec` names, not yet interpreted."""
    if spec == "-":
        return read_bytes("<stdin>", sys.stdin.buffer.read())
    if spec.startswith("hf:"):
        from kvcalc.specs.hub import fetch_config

        return fetch_config(spec.removeprefix("hf:"))
    if spec.lower() in model_names():
        return read_file(model_specs_folder() / f"{spec.lower()}.yaml")
    path = Path(spec)
    try:
        if path.is_dir() and (path / "config.json").is_file():
            path = path / "config.json"
        if path.is_file():
            return read_file(path)
    except (OSError, ValueError):  # a name that no file can have
        raise UsageError(f"unknown model '{spec[:60]}...'", hint=nearest(spec[:60], model_names())) from None
    if spec and path.is_dir():
        raise UsageError(f"'{spec}' is a folder without a config.json", hint="name a spec or a config.json in it")
    if spec.endswith(_FILE_ENDINGS) or "/" in spec:
        raise UsageError(f"no such file: '{spec}'", hint="a model on the hub is written hf:org/name")
    raise UsageError(f"unknown model '{spec}'", hint=nearest(spec, model_names()))


def spec_document(document: Document) -> Document:
    """The document as a kvcalc spec: converted where it is a Hugging Face config, itself otherwise."""
    data = document.data
    if isinstance(data, dict) and "layers" not in data and ("model_type" in data or "architectures" in data):
        from kvcalc.specs.huggingface.convert import spec_from_config

        spec = spec_from_config(data, source=document.source, document=document)
        return Document(document.source, "", spec, made_from=document)
    return document

"""hf:org/name with a hub that is faked: what is fetched, and what is said where it can't be."""

import json
import sys
from types import SimpleNamespace

import pytest

from kvcalc import load_model
from kvcalc.errors import KvcalcError, SpecError, UsageError
from kvcalc.specs.hub import fetch_config
from tests.command_line import call

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


class HubError(OSError):
    """As huggingface_hub's HfHubHTTPError, an OSError."""


class GatedError(HubError):
    """As GatedRepoError, a kind of the former."""


class NotThereError(FileNotFoundError, ValueError):
    """As LocalEntryNotFoundError."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A faked huggingface_hub; `hub.files` maps (repository, revision) to a file's bytes or to what is raised."""
    fake = SimpleNamespace(files={}, asked=[])

    def download(repository, filename, *, revision=None, **rest):
        fake.asked.append((repository, filename, revision))
        found = fake.files.get((repository, revision), HubError("404 Client Error\nhttps://huggingface.co/secret"))
        if isinstance(found, Exception):
            raise found
        path = tmp_path / "config.json"
        path.write_bytes(found)
        return str(path)

    errors = SimpleNamespace(
        GatedRepoError=GatedError,
        HfHubHTTPError=HubError,
        LocalEntryNotFoundError=NotThereError,
        RepositoryNotFoundError=HubError,
    )
    module = SimpleNamespace(hf_hub_download=download, errors=errors)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return fake


def test_only_config_json_is_fetched(hub):
    hub.files["meta/llama", None] = json.dumps(CONFIG).encode()
    model = load_model("hf:meta/llama")
    assert hub.asked == [("meta/llama", "config.json", None)]
    assert model.parameters.total == 8_030_261_248


def test_a_revision_is_passed_on(hub):
    hub.files["meta/llama", "abc123"] = json.dumps(CONFIG).encode()
    assert load_model("hf:meta/llama@abc123").name
    assert hub.asked == [("meta/llama", "config.json", "abc123")]


def test_the_document_says_where_it_is_from(hub):
    hub.files["meta/llama", None] = json.dumps(CONFIG).encode()
    document = fetch_config("meta/llama")
    assert document.source == "hf:meta/llama/config.json"
    assert document.data == CONFIG


def test_a_gated_model_says_what_to_do(hub):
    hub.files["meta/llama", None] = GatedError("401 Client Error")
    with pytest.raises(UsageError, match="hf:meta/llama is gated") as raised:
        fetch_config("meta/llama")
    assert "hf auth login" in raised.value.hint


@pytest.mark.parametrize(
    "error",
    [
        HubError("404 Client Error\nmore"),
        NotThereError("offline"),
        OSError("Connection refused"),
        ValueError("bad repo id"),
        HubError(""),
    ],
    ids=["not-there", "not-in-the-cache", "no-network", "bad-name", "no-text"],
)
def test_a_missing_config_says_what_to_do(hub, error):
    hub.files["meta/llama", None] = error
    with pytest.raises(UsageError, match=r"can't fetch config\.json of hf:meta/llama") as raised:
        fetch_config("meta/llama")
    assert "\n" not in raised.value.message
    assert "give its path" in raised.value.hint
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("reference", ["llama", "a/b/c", "", "@main", "/", "a/", "/b", "a/@main"])
def test_a_reference_that_names_no_model_asks_nobody(hub, reference):
    with pytest.raises(UsageError, match="names no model") as raised:
        fetch_config(reference)
    assert "hf:org/name" in raised.value.hint
    assert hub.asked == []


def test_without_the_package_the_hint_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="needs the package huggingface_hub") as raised:
        fetch_config("meta/llama")
    assert raised.value.hint == "pip install 'kvcalc[hf]'"


def test_a_config_of_an_unknown_architecture_is_refused_at_its_place(hub):
    hub.files["my/model", None] = b'{"model_type": "my_arch"}'
    with pytest.raises(SpecError) as raised:
        load_model("hf:my/model")
    assert raised.value.message.startswith("hf:my/model/config.json:1:16: error: model_type 'my_arch' is not known")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"<html>not found</html>"], ids=["binary", "empty", "html"])
def test_what_is_no_config_is_refused(hub, content):
    hub.files["my/model", None] = content
    with pytest.raises(KvcalcError) as raised:
        load_model("hf:my/model")
    assert raised.value.exit_code == 2


def test_on_the_command_line(hub, capsys):
    hub.files["meta/llama", None] = json.dumps(CONFIG).encode()
    assert call(capsys, "estimate", "hf:meta/llama", "--json").json()["cache"]["bytes_per_token"] == 131_072
    result = call(capsys, "estimate", "hf:meta/other")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: can't fetch config.json of hf:meta/other: 404 Client Error\nhint: ")

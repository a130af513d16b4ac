"""The specs lock: of kvcalc's own specs, and of a folder where something moves."""

import shutil

import pytest

from tests.command_line import ROOT, call

LOCK, SPECS = ROOT / "tests" / "data" / "specs.lock.json", ROOT / "model_specs"


def test_no_number_of_our_own_specs_moves_unseen(capsys):
    """Where this fails rightly: `kvcalc check --specs model_specs/ tests/data/specs.lock.json --update`, and look."""
    result = call(capsys, "check", "--specs", str(SPECS), str(LOCK), "--strict")
    assert result.code == 0, result.out


@pytest.fixture
def folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    for name in ("llama-3.1-8b", "deepseek-v3"):
        shutil.copy(SPECS / f"{name}.yaml", tmp_path / "specs")
    result = call(capsys, "check", "--specs", "specs", "lock.json", "--update")
    assert result.code == 0, result.err
    assert call(capsys, "check", "--specs", "specs", "lock.json", "--strict").code == 0
    return tmp_path / "specs"


@pytest.mark.parametrize(
    ("old", "new"), [("n_kv_heads: 8", "n_kv_heads: 16"), ("n_kv_heads: 8", "n_kv_heads: 4")], ids=["up", "down"]
)
def test_a_spec_that_moves_fails_in_either_direction(capsys, folder, old, new):
    path = folder / "llama-3.1-8b.yaml"
    text = path.read_text()
    assert old in text
    path.write_text("\n".join(line for line in text.replace(old, new).splitlines() if "parameters" not in line))
    result = call(capsys, "check", "--specs", "specs", "lock.json")
    assert result.code == 1, result.err
    assert "cache.bytes_per_token" in result.out
    assert "specs/deepseek-v3" not in result.out
    assert call(capsys, "check", "--specs", "specs", "lock.json", "--update").code == 0
    assert call(capsys, "check", "--specs", "specs", "lock.json").code == 0


def test_a_spec_that_goes_or_comes_is_named(capsys, folder):
    (folder / "llama-3.1-8b.yaml").rename(folder / "other.yaml")
    result = call(capsys, "check", "--specs", "specs", "lock.json")
    assert result.code == 0
    assert "specs/llama-3.1-8b" in result.out
    assert "specs/other" in result.out
    assert call(capsys, "check", "--specs", "specs", "lock.json", "--strict").code == 1


def test_a_spec_that_can_not_be_read_is_an_error_and_no_regression(capsys, folder):
    (folder / "llama-3.1-8b.yaml").write_text("name: [")
    result = call(capsys, "check", "--specs", "specs", "lock.json")
    assert result.code == 2
    assert "llama-3.1-8b.yaml:" in result.err

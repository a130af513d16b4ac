"""Broken specs and configs: each is refused at its place, with a caret, what is wrong and what to write instead."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvcalc import load_model
from kvcalc.errors import KvcalcError, SpecError, UsageError
from kvcalc.specs.build import build_model
from kvcalc.specs.reader import MAX_CHARACTERS, read_document
from kvcalc.specs.sources import load_document, spec_document
from tests.command_line import environment

GOOD = """\
name: my-model
title: My Model
source: {cite: "my/model config.json", date: 2026-11-24}
hidden_size: 4096
vocab_size: 32000
tied_embeddings: false
max_context_tokens: 8192
weight_formats: {default: bf16}
layers:
  - repeat: 2
    attention:
      kind: gqa
      n_heads: 32
      n_kv_heads: 8
      head_dim: 128
    feed_forward: {kind: moe, experts: 8, experts_per_token: 2, intermediate_size: 14336}
"""


def refused(text: str, source: str = "my.yaml") -> SpecError:
    with pytest.raises(SpecError) as raised:
        build_model(spec_document(read_document(source, text)))
    assert raised.value.exit_code == 2
    return raised.value


def edited(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def printed(line: str) -> str:
    """A line as a message shows it: control characters as their codes."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", line.replace("\t", " "))


def test_the_good_spec_is_good():
    assert build_model(read_document("my.yaml", GOOD)).parameters.total > 0


BROKEN = [
    # (id, what is replaced, by what, line:column, message, hint)
    ("unknown-key", "hidden_size:", "hiden_size:", "4:1", "unknown key 'hiden_size'", "did you mean 'hidden_size'?"),
    ("missing-key", "hidden_size: 4096\n", "", "1:1", "missing key 'hidden_size'", "Width of the hidden state"),
    ("key-of-another-kind", "n_kv_heads", "kv_lora_rank", "14:7", "unknown key 'kv_lora_rank'", "n_kv_heads"),
    ("unknown-kind", "kind: gqa", "kind: gpa", "12:7", "unknown kind 'gpa'", "did you mean 'gqa'"),
    ("no-kind", "      kind: gqa\n", "", "11:5", "missing key 'kind'", "gqa"),
    ("unknown-network", "kind: moe", "kind: mow", "16:20", "unknown kind 'mow'", "did you mean 'moe'"),
    (
        "quoted-number",
        "4096",
        "'4096'",
        "4:1",
        "'hidden_size' must be a whole number, not the text '4096'",
        "without quotes",
    ),
    ("underscored-text", "4096", "4k", "4:1", "must be a whole number, not the text '4k'", None),
    ("fraction", "4096", "4096.5", "4:1", "must be a whole number, not the number 4096.5", None),
    ("exponent", "4096", "4e3", "4:1", "must be a whole number, not the text '4e3'", "plain number"),
    ("whole-float", "4096", "4096.0", "4:1", "must be a whole number, not the number 4096.0", None),
    ("true-for-a-number", "4096", "true", "4:1", "must be a whole number, not the truth value true", None),
    (
        "number-for-true",
        "tied_embeddings: false",
        "tied_embeddings: 0",
        "6:1",
        "must be true or false, not the number 0",
        None,
    ),
    (
        "text-for-true",
        "tied_embeddings: false",
        "tied_embeddings: 'no'",
        "6:1",
        "must be true or false, not the text 'no'",
        None,
    ),
    ("nothing", "4096", "", "4:1", "must be a whole number, not nothing", None),
    ("nan", "4096", ".nan", "4:1", "must be a whole number, not the number nan", None),
    ("infinite", "4096", ".inf", "4:1", "must be a whole number, not the number inf", None),
    ("negative", "4096", "-4096", "4:1", "'hidden_size' is -4096; it must be at least 1", None),
    ("zero", "head_dim: 128", "head_dim: 0", "15:7", "'head_dim' is 0; it must be at least 1", None),
    ("absurd", "4096", "99999999999", "4:1", "'hidden_size' is 99999999999; it must be at most 16,777,216", None),
    ("more-digits-than-python-reads", "4096", "1" * 5000, "4:14", "not a value that a spec can hold", None),
    (
        "heads-do-not-divide",
        "n_kv_heads: 8",
        "n_kv_heads: 7",
        "12:7",
        "n_heads 32 is not a multiple of n_kv_heads 7",
        None,
    ),
    (
        "more-experts-than-there-are",
        "token: 2",
        "token: 9",
        "16:19",
        "experts_per_token 9 is more than experts 8",
        None,
    ),
    (
        "window-and-chunk",
        "head_dim: 128",
        "head_dim: 128\n      window_tokens: 128\n      chunk_tokens: 128",
        "12:7",
        "window_tokens and chunk_tokens exclude each other",
        None,
    ),
    (
        "sinks-without-a-window",
        "head_dim: 128",
        "head_dim: 128\n      sink_tokens: 4",
        "12:7",
        "sink_tokens means something beside window_tokens only",
        None,
    ),
    (
        "selection-with-a-window",
        "head_dim: 128",
        "head_dim: 128\n      window_tokens: 128\n      selection: {top_k: 64, indexer: shared}",
        "12:7",
        "selection needs a base that attends every token",
        None,
    ),
    (
        "indexer-is-neither",
        "head_dim: 128",
        "head_dim: 128\n      selection: {top_k: 64, indexer: shard}",
        "16:30",
        "'indexer'",
        None,
    ),
    ("unknown-format", "default: bf16", "default: bf61", "8:18", "'default' can't be 'bf61'", "did you mean 'bf16'"),
    ("date", "date: 2026-11-24", "date: tomorrow", "3:40", "'date' must be a date such as 2026-01-31", None),
    ("no-such-day", "date: 2026-11-24", "date: 2026-13-24", "3:46", "month must be in 1..12", None),
    ("name-with-a-slash", "my-model", "../my-model", "1:1", "'name'", None),
    (
        "duplicate-key",
        "vocab_size: 32000",
        "vocab_size: 32000\nvocab_size: 1",
        "6:1",
        "duplicate key 'vocab_size'",
        None,
    ),
    (
        "key-that-is-no-name",
        "vocab_size: 32000",
        "vocab_size: 32000\n12: 1",
        "6:1",
        "a key must be a name, not '12'",
        "quote it",
    ),
    (
        "key-that-is-true",
        "vocab_size: 32000",
        "vocab_size: 32000\nyes: 1",
        "6:1",
        "a key must be a name, not 'yes'",
        "quote it",
    ),
    (
        "key-that-is-a-list",
        "vocab_size: 32000",
        "vocab_size: 32000\n? [a, b]\n: 1",
        "6:3",
        "a key must be a name, not a list",
        None,
    ),
    (
        "tab",
        "  - repeat: 2",
        "\t- repeat: 2",
        "10:1",
        "not valid YAML: found character that cannot start",
        "indent with spaces",
    ),
    ("indentation", "vocab_size", " vocab_size", "5:", "not valid YAML", None),
    ("unclosed", "{default: bf16}", "{default: bf16", "9:", "not valid YAML", None),
    ("unknown-alias", "4096", "*there", "4:14", "not valid YAML: found undefined alias", None),
    ("anchor-in-itself", "4096", "&a [*a]", "4:14", "an anchor contains itself", None),
    ("merge-of-a-number", "vocab_size", "<<: 3\nvocab_size", "5:5", "'<<' merges mappings only", None),
    ("python-tag", "4096", "!!python/name:os.system", "4:14", "not a value that a spec can hold", None),
    ("bad-int-tag", "4096", '!!int ""', "4:14", "not a value that a spec can hold", None),
    ("bad-bool-tag", "4096", "!!bool maybe", "4:14", "not a value that a spec can hold", None),
    ("bad-date-tag", "4096", "!!timestamp noon", "4:14", "not a value that a spec can hold", None),
    ("second-document", "hidden_size: 4096", "hidden_size: 4096\n---\na: 1", "5:1", "not valid YAML", None),
    ("control-character", "4096", "4\x0796", "4:15", "not", None),
    ("nul-byte", "4096", "4\x0096", "4:15", "not", None),
    (
        "layers-is-a-mapping",
        GOOD[GOOD.index("layers:") :],
        "layers: {a: 1}\n",
        "9:1",
        "'layers' must be a list, not a mapping",
        None,
    ),
    ("no-layers", GOOD[GOOD.index("layers:") :], "layers: []\n", "9:1", "layers", None),
    (
        "layer-is-text",
        GOOD[GOOD.index("layers:") :],
        "layers: [abc]\n",
        "9:10",
        "must be a mapping of keys, not the text 'abc'",
        None,
    ),
    (
        "attention-is-text",
        GOOD[GOOD.index("layers:") :],
        "layers: [{attention: mla}]\n",
        "9:11",
        "'attention' must be a mapping",
        None,
    ),
    (
        "empty-layer",
        GOOD[GOOD.index("layers:") :],
        "layers: [{norms: 2}]\n",
        "9:10",
        "a layer without attention and feed_forward",
        "at least one",
    ),
    (
        "no-attention-at-all",
        "    attention:\n      kind: gqa\n      n_heads: 32\n      n_kv_heads: 8\n      head_dim: 128\n",
        "",
        "9:1",
        "no layer has an attention",
        None,
    ),
    (
        "pattern-in-a-pattern",
        GOOD[GOOD.index("layers:") :],
        "layers: [{pattern: [{pattern: []}]}]\n",
        "9:22",
        "unknown key 'pattern'",
        None,
    ),
    (
        "bytes-in-a-spec",
        "vocab_size: 32000",
        "vocab_size: 32000\nbytes_per_token: 1",
        "6:1",
        "unknown key 'bytes_per_token'",
        None,
    ),
    ("too-many-layers", "repeat: 2", "repeat: 1000000", "9:1", "more than 10,000", None),
]


@pytest.mark.parametrize(
    ("old", "new", "place", "message", "hint"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_a_broken_spec_is_told_where_and_what(old, new, place, message, hint):
    error = refused(edited(old, new))
    found = [problem for problem in error.problems if message in problem.message]
    assert found, error.message
    assert found[0].place is not None, error.message
    assert str(found[0].place).startswith(f"my.yaml:{place}"), error.message
    if hint is not None:
        assert hint in (found[0].hint or ""), error.message


@pytest.mark.parametrize(
    ("old", "new", "place", "message", "hint"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_its_source_line_and_caret_are_shown(old, new, place, message, hint):
    text = edited(old, new)
    for problem in refused(text).problems:
        assert problem.place is not None, problem.message
        lines = problem.render().split("\n")
        assert lines[0] == f"{problem.place}: error: {problem.message}"
        gutter = f"{problem.place.line} | "
        assert lines[1].startswith(gutter)
        shown = lines[1].removeprefix(gutter)
        assert any(printed(line).startswith(shown) for line in (*text.splitlines(), ""))
        assert lines[2] == " " * (len(gutter) + problem.place.column - 1) + "^"


MACHINE_WORDS = (
    "ScalarNode",
    "pydantic",
    "Input should",
    "unicode string",
    "'one'",
    "'several'",
    "'layer' must",
    "literal[",
    "Spec'",
)
"""Names that only kvcalc's own code knows."""


@pytest.mark.parametrize(("old", "new"), [row[1:3] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_message_is_a_line_in_a_spec_authors_words(old, new):
    for problem in refused(edited(old, new)).problems:
        assert "\n" not in problem.message
        assert not [word for word in MACHINE_WORDS if word in problem.message]


def test_the_caret_of_a_long_line_stands_under_what_is_shown():
    """A minified config is one line: the place is exact, and the part of the line around it is what is shown."""
    filler = ", ".join(f'"unused_token_{n}": {n}' for n in range(100))
    text = '{"model_type": "llama", ' + filler + ', "hidden_size": "4096"}'
    (problem,) = refused(text, "config.json").problems
    assert problem.place is not None
    assert problem.place.column == text.index('"hidden_size"') + 1
    _, shown, caret = problem.render().split("\n")[:3]
    assert len(shown) <= 300
    assert shown[caret.index("^") :].startswith('"hidden_size"')


def test_all_errors_are_told_at_once():
    text = (
        GOOD.replace("hidden_size: 4096", "hidden_size: '4096'")
        .replace("kind: gqa", "kind: gpa")
        .replace("tied_", "teid_")
    )
    told = {(problem.place.line, problem.message.split(",")[0]) for problem in refused(text).problems}
    assert told == {
        (4, "'hidden_size' must be a whole number"),
        (12, "unknown kind 'gpa'"),
        (6, "unknown key 'teid_embeddings'"),
        (1, "missing key 'tied_embeddings'"),
    }


def test_all_contradictions_are_told_at_once():
    text = GOOD.replace("n_kv_heads: 8", "n_kv_heads: 7").replace("experts_per_token: 2", "experts_per_token: 9")
    assert [str(problem.place) for problem in refused(text).problems] == ["my.yaml:12:7", "my.yaml:16:19"]


def test_all_duplicate_keys_are_told_at_once():
    text = GOOD + "name: a\ntitle: b\n"
    assert [str(problem.place) for problem in refused(text).problems] == ["my.yaml:17:1", "my.yaml:18:1"]


def test_a_problem_behind_an_alias_is_told_once_where_its_anchor_stands():
    text = edited("    attention:\n      kind: gqa", "    attention: &a\n      kind: gqa").replace(
        "n_kv_heads: 8", "n_kv_heads: 7"
    )
    text += "  - {attention: *a, feed_forward: {kind: dense, intermediate_size: 8}}\n"
    assert [str(problem.place) for problem in refused(text).problems] == ["my.yaml:11:16"]


def test_the_message_as_it_is_printed():
    assert refused(edited("hidden_size: 4096", "hiden_size: 4096")).message == (
        "my.yaml:1:1: error: missing key 'hidden_size'\n"
        "1 | name: my-model\n"
        "    ^\n"
        "hint: hidden_size: Width of the hidden state.\n"
        "my.yaml:4:1: error: unknown key 'hiden_size'\n"
        "4 | hiden_size: 4096\n"
        "    ^\n"
        "hint: did you mean 'hidden_size'?"
    )


# --- documents that are no specs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the document is empty"),
        ("# only a comment\n", "the document is empty"),
        ("[1, 2]\n", "a spec is a mapping of keys, not a list"),
        ("- a\n- b\n", "a spec is a mapping of keys, not a list"),
        ("hello\n", "a spec is a mapping of keys, not the text"),
        ("3\n", "a spec is a mapping of keys, not the number"),
        ("~\n", "a spec is a mapping of keys, not nothing"),
        ("{}", "missing key 'name'"),
    ],
    ids=["empty", "comment", "json-list", "yaml-list", "text", "number", "null", "empty-object"],
)
def test_a_document_of_another_shape(text, message):
    assert message in refused(text).message


def bomb(depth: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join(lines) + "\n"


def test_a_yaml_bomb_is_refused_before_it_expands():
    error = refused(bomb())
    assert "aliases expand to more than 200,000 values" in error.message
    assert error.problems[0].place is not None


def test_an_oversized_document_is_refused():
    assert "a spec has a few thousand" in refused("#" * (MAX_CHARACTERS + 1)).message


DEEP = {
    "yaml-flow-list": "a: " + "[" * 600 + "]" * 600,
    "yaml-flow-map": "a: " + "{a: " * 700 + "1" + "}" * 700,
    "yaml-block": "\n".join(" " * depth + "a:" for depth in range(900)),
    "yaml-100000": "a: " + "[" * 100_000,
    "json-900": '{"a":' * 900 + "1" + "}" * 900,
    "json-100000": '{"a":' * 100_000,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP.keys())
def test_deep_nesting_is_refused_and_does_not_kill_the_interpreter(text):
    """In a process of its own, since a parser in C may run out of stack."""
    done = subprocess.run(
        [sys.executable, "-m", "kvcalc", "estimate", "-"],
        input=text.encode(),
        capture_output=True,
        env=environment(),
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr
    assert b"error: " in done.stderr


def test_a_pattern_of_absurd_length_is_refused_before_it_is_built():
    layers = (
        "layers: [{repeat: 1048576, pattern: [{repeat: 1048576, attention: {kind: mha, n_heads: 1, head_dim: 1}}]}]\n"
    )
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from kvcalc.cli import main\n"
        "sys.argv = ['kvcalc', 'estimate', '-']\n"
        "main()\n"
    )
    text = GOOD[: GOOD.index("layers:")] + layers
    done = subprocess.run(
        [sys.executable, "-c", code], input=text.encode(), capture_output=True, env=environment(), timeout=60
    )
    assert done.returncode == 2, done.stderr.decode()[-500:]
    assert b"more than 10,000" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00\x01", "is not a text file: byte 0 is not UTF-8"),
        (GOOD.replace("My Model", "Modèle").encode("latin-1"), "is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "is not a text file"),
        (bytes(64), "not valid YAML"),
        (b"", "the document is empty"),
    ],
    ids=["binary", "latin-1", "png", "zeros", "empty"],
)
def test_files_that_are_no_text(tmp_path, content, message):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(KvcalcError) as raised:
        load_model(str(path))
    assert message in raised.value.message
    assert raised.value.exit_code == 2


def test_utf_8_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("My Model", "Modèle").encode())
    assert load_model(str(path)).title == "Modèle"


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("deepseek-v33", "unknown model 'deepseek-v33'", "did you mean 'deepseek-v3'"),
        ("DeepSeek_V3", "unknown model", "'deepseek-v3'"),
        ("./nowhere.yaml", "no such file: './nowhere.yaml'", "hf:org/name"),
        ("nowhere.json", "no such file: 'nowhere.json'", "hf:org/name"),
        ("deepseek-ai/DeepSeek-V3", "no such file", "hf:org/name"),
        ("", "unknown model ''", "known: "),
        ("a" * 300, "unknown model", "known: "),
        ("a" * 5000 + ".yaml", "unknown model", "known: "),
    ],
    ids=["typo", "underscore", "path", "json-path", "hub-name", "empty", "300-characters", "5000-characters"],
)
def test_a_spec_that_is_not_there(spec, message, hint):
    with pytest.raises(UsageError) as raised:
        load_model(spec)
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_a_folder_is_no_spec(tmp_path):
    with pytest.raises(UsageError) as raised:
        load_model(f"{tmp_path}/")
    assert "config.json" in raised.value.message + str(raised.value.hint)


def test_a_file_without_permission_says_so(tmp_path, monkeypatch):
    def denied(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "my.yaml"
    path.write_text(GOOD)
    monkeypatch.setattr(Path, "read_text", denied)
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UsageError, match="Permission denied"):
        load_document(str(path))


# --- config.json ------------------------------------------------------------------------------------------------------

LLAMA = """{
  "model_type": "llama",
  "hidden_size": 4096,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "intermediate_size": 14336,
  "vocab_size": 128256,
  "max_position_embeddings": 8192
}
"""


def test_the_good_config_is_good():
    assert build_model(spec_document(read_document("config.json", LLAMA))).parameters.total == 8_030_261_248


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ('"llama"', '"llamba"', "2:17", "model_type 'llamba' is not known"),
        ('"llama"', '"t5"', "2:17", "model_type 't5' is not modelled: an encoder-decoder"),
        ('"llama"', '"rwkv"', "2:17", "model_type 'rwkv' is not modelled"),
        ('"llama"', '["llama"]', "2:17", "model_type"),
        ('"llama"', "3", "2:17", "model_type"),
        ('"llama",', '"llama" "x"', "2:25", "not valid JSON: Expecting ',' delimiter"),
        ("4096,", "4096,,", "3:23", "not valid JSON"),
        ("8192\n}", "8192\n", "11:1", "not valid JSON"),
        ("4096", "'4096'", "3:18", "not valid JSON"),
        ("4096", '"4096"', "3:3", "'hidden_size' must be a whole number of at least 1, not '4096'"),
        ("4096", "true", "3:3", "'hidden_size' must be a whole number of at least 1"),
        ("4096", "-1", "3:3", "'hidden_size' must be a whole number of at least 1, not -1"),
        ("4096", "NaN", "3:3", "'hidden_size' must be a whole number of at least 1"),
        ("4096", "Infinity", "3:3", "'hidden_size' must be a whole number of at least 1"),
        ("4096", "1" * 5000, "3:", "not a value that a spec can hold"),
        ('"vocab_size"', '"hidden_size"', "8:3", "duplicate key 'hidden_size'"),
        ('"num_key_value_heads": 8', '"num_key_value_heads": 7', "", "n_heads 32 is not a multiple of n_kv_heads 7"),
        (
            '"vocab_size"',
            '"kv_latent_window": 4, "vocab_size"',
            "8:3",
            "'kv_latent_window' is not a field of llama that kvcalc models",
        ),
    ],
    ids=[
        "unknown-type",
        "encoder-decoder",
        "no-kind-for-it",
        "type-is-a-list",
        "type-is-a-number",
        "missing-comma",
        "two-commas",
        "unclosed",
        "single-quotes",
        "quoted-number",
        "true",
        "negative",
        "nan",
        "infinity",
        "more-digits-than-python-reads",
        "duplicate-key",
        "heads-do-not-divide",
        "unknown-telling-field",
    ],
)
def test_a_broken_config_is_told_where_and_what(old, new, place, message):
    assert LLAMA.count(old) == 1
    error = refused(LLAMA.replace(old, new), "config.json")
    found = [problem for problem in error.problems if message in problem.message]
    assert found, error.message
    assert found[0].place is not None, error.message
    assert str(found[0].place).startswith(f"config.json:{place}"), error.message


def test_an_unknown_architecture_is_never_a_silent_mha():
    error = refused(LLAMA.replace('"llama"', '"my_new_model"'), "config.json")
    assert "my_new_model" in error.message


def test_a_config_without_model_type_is_refused():
    error = refused('{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096}', "config.json")
    assert "model_type" in error.message


def test_a_wrapper_without_its_text_config_is_not_told_its_own_name():
    error = refused('{"model_type": "llava", "text_config": []}', "config.json")
    assert "text_config" in error.message
    assert "did you mean 'llava'" not in error.message


def test_control_characters_of_a_file_do_not_reach_the_terminal():
    """A title or a line of a file may hold escape sequences; an error shows them harmless."""
    for text in ('{"model_type": "a\\u001b[31mred"}', '{"model_type": "a\x1b[31mred"}', 'name: "a\\e[31mred"\n'):
        assert "\x1b" not in refused(text).message

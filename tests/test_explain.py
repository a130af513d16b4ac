"""What --explain prints can be computed by hand: every substituted formula evaluates to its value."""

import math
import re

import pytest

from kvcalc import estimate, load_gpu
from kvcalc.explain import explain, to_json

H200 = load_gpu("h200-sxm-141gb")
CASES = {
    "deepseek-v3": {},
    "deepseek-v3-tp8": {"model": "deepseek-v3", "tp": 8, "gpu": H200, "batch": 3},
    "deepseek-v3.2-fp8": {"model": "deepseek-v3.2", "kv_dtype": "fp8_ds_mla", "context_tokens": 131_072},
    "deepseek-v4-flash": {},
    "llama-3.1-8b-q8": {"model": "llama-3.1-8b", "kv_dtype": "q8_0"},
    "llama-3.1-8b-int4": {"model": "llama-3.1-8b", "kv_dtype": "int4_per_token_head", "query_tokens": 3},
    "gemma-3-27b": {"batch": 7},
    "qwen3-next-80b-a3b": {},
    "kimi-linear-48b-a3b": {},
    "gpt-oss-120b": {},
    "longcat-flash": {},
    "jamba-v0.1": {},
}
PREFIXES = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "m": 1e-3, "u": 1e-6}


@pytest.fixture(params=CASES, ids=str)
def result(request):
    options = {"model": request.param, **CASES[request.param]}
    return estimate(options.pop("model"), **options)


def number(text: str) -> float:
    """`123,456 B`, `4,800 GB/s` or `30.4 us` in base units."""
    found = re.fullmatch(r"(-?[\d,.]+)\s*([PTGMkmu]?)(B/s|FLOP/s|FLOP|B|s|copies|)( \w+)?", text.strip())
    assert found, text
    return float(found[1].replace(",", "")) * PREFIXES.get(found[2], 1)


def evaluate(formula: str) -> float:
    """A product of numbers, sums in brackets and words: `61 layers x (512 latent + 64 rope) x 2 B / 4 tokens`."""
    maximum = re.fullmatch(r"max\((.*), (.*)\)", formula)
    if maximum:
        return max(
            math.prod(number(part) ** sign for part, sign in zip(each.split(" / "), (1, -1), strict=True))
            for each in maximum.groups()
        )
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", re.sub(r" at [\d,]+ tokens$", "", formula))
    plain = re.sub(r" x ", " * ", plain)
    plain = re.sub(r"[A-Za-z(][A-Za-z,]*(?: [A-Za-z,]+)*", lambda word: "(" if word[0] == "(" else "", plain)
    assert re.fullmatch(r"[\d.+*/() ]+", plain), f"{formula!r} is no formula: {plain!r}"
    return eval(plain, {"__builtins__": {}})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("61 layers x (512 latent + 64 rope) x 2 B", 70_272),
        ("2 layers x (8 x 128 key + 8 x 128 value) x 2 B", 8192),
        ("21 layers x (448 kv + 128 rope + 1 padding) B / 4 tokens", 21 * 577 / 4),
        ("1 x 61 layers x 128 heads x 2,048 pairs x 2,048", 32_749_125_632),
        ("max(14,336 B / 4,800 GB/s, 0 FLOP / 989.4 TFLOP/s bf16)", 14_336 / 4.8e12),
    ],
)
def test_the_evaluator_itself(text, value):
    assert evaluate(text) == pytest.approx(value, rel=1e-12)


def test_every_term_is_a_formula_that_gives_its_value(result):
    wrong = []
    for term in explain(result):
        left, equals, right = term.substituted.rpartition(" = ")
        rough = term.unit == "s"  # times and peaks are shown with three digits or one decimal
        try:
            shown, computed = number(right), evaluate(left)
        except (AssertionError, SyntaxError):
            equals = ""
        if not equals:
            wrong.append(f"{term.name}: '{term.substituted}' is no equation")
        elif shown != pytest.approx(term.value, rel=5e-3 if rough else 0, abs=6e-9 if rough else 0):
            wrong.append(f"{term.name}: {right} is shown for {term.value}")
        elif computed != pytest.approx(term.value, rel=1e-3 if rough else 1e-12):
            wrong.append(f"{term.name}: {left} is {computed} and not {term.value}")
    assert wrong == []


def test_growth_terms_add_up_to_the_growth_of_the_cache(result):
    terms = [term for term in explain(result) if term.name.startswith("cache.bytes_per_token")]
    assert terms
    assert sum(term.value for term in terms) == result.cache.bytes_per_token


def test_constant_terms_add_up_to_the_constant(result):
    terms = [term for term in explain(result) if term.name.startswith("cache.constant_bytes_per_sequence")]
    assert sum(term.value for term in terms) == result.cache.constant_bytes_per_sequence


def test_attention_terms_add_up_to_the_steps_attention(result):
    flop = sum(term.value for term in explain(result) if term.name.startswith("decode.attention.flop"))
    index = sum(term.value for term in explain(result) if term.name.startswith("decode.indexer.flop"))
    read = sum(term.value for term in explain(result) if term.name.startswith("decode.attention.read_bytes"))
    attention = result.attention("decode")
    assert (flop, index, read) == (attention.flop, attention.index_flop, attention.read_bytes)


def test_step_terms_are_all_terms_of_the_step(result):
    step = result.to_json()["decode"]["step"]
    flop = [term for term in explain(result) if term.name.startswith("decode.step") and term.unit == "FLOP"]
    assert sum(term.value for term in flop) == step["flop"]


def test_time_terms_add_up_to_the_roofline():
    result = estimate("deepseek-v3", gpu=H200)
    times = [term.value for term in explain(result) if term.name.startswith("decode.time")]
    assert sum(times) == pytest.approx(result.to_json()["decode"]["time"]["roofline_s"])


def test_every_term_has_a_name_of_its_own_a_unit_and_a_source(result):
    terms = explain(result)
    assert len({(term.name, term.unit) for term in terms}) == len(terms)
    for term in terms:
        assert term.unit in ("B", "FLOP", "s", "copies")
        assert len(term.source) >= 8
        assert term.formula


def test_the_line_of_the_issue():
    (term,) = (term for term in explain(estimate("deepseek-v3")) if term.name.startswith("cache.bytes_per_token"))
    assert term.substituted == "61 layers x (512 latent + 64 rope) x 2 B = 70,272 B"
    assert term.value == 70_272


def test_the_json_is_the_terms(result):
    assert [term["value"] for term in to_json(explain(result))] == [term.value for term in explain(result)]

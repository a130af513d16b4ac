"""The same model with its attention replaced."""

from dataclasses import replace

import pytest

from kvcalc import compare, load_model
from kvcalc.architecture.attention import GroupedAttention, LatentAttention, SelectedAttention
from kvcalc.errors import UsageError
from kvcalc.what_if import alternatives


def elements(model) -> list[int]:
    """Elements that a token adds, layer by layer."""
    return [
        sum(
            int(component.elements_per_slot * component.slots.per_token)
            for attention in layer.attentions
            for component in attention.components()
            if component.role.is_cache_entry
        )
        for layer in model.layers
    ]


@pytest.mark.parametrize(
    ("what_if", "a_layer"),
    [
        # arXiv 2412.19437: K and V as wide as the value heads, 128 x 128 each
        ("mha", 32_768),
        ("gqa:8", 2 * 8 * 128),
        ("gqa:128", 32_768),
        ("gqa:1", 2 * 128),
        ("mqa", 2 * 128),
        ("mla", 512 + 64),
        ("mla:256+32", 256 + 32),
        ("mla:1024", 1024 + 64),
        ("mla:512+0", 512),
        (" MHA ", 32_768),
    ],
)
def test_deepseek_v3_with_other_attention(what_if, a_layer):
    (model,) = alternatives(load_model("deepseek-v3"), what_if)
    assert elements(model) == [a_layer] * 61
    assert model.name == f"deepseek-v3+{what_if.strip().lower()}"


def test_llama_as_mla_is_transmlas_conversion():
    (model,) = alternatives(load_model("llama-2-7b"), "mla")
    assert elements(model) == [576] * 32 == elements(load_model("transmla-llama-2-7b"))


def test_mla_replaced_by_mla_keeps_its_other_dimensions():
    base = load_model("deepseek-v3").layers[0].attentions[0]
    (model,) = alternatives(load_model("deepseek-v3"), "mla:256+32")
    assert model.layers[0].attentions == (replace(base, kv_lora_rank=256, qk_rope_head_dim=32),)


def test_everything_else_of_the_model_stays():
    original = load_model("deepseek-v3")
    (model,) = alternatives(original, "mha")
    assert [layer.feed_forwards for layer in model.layers] == [layer.feed_forwards for layer in original.layers]
    assert replace(model, name="", title="", layers=()) == replace(original, name="", title="", layers=())


def test_windows_and_recurrent_layers_stay_as_they_are():
    """Gemma-3: five windowed layers, then a full one; only the full ones are replaced."""
    original = load_model("gemma-3-27b")
    (model,) = alternatives(original, "mqa")
    replaced = [index for index, (a, b) in enumerate(zip(original.layers, model.layers, strict=True)) if a != b]
    windowed = [index for index, layer in enumerate(original.layers) if layer.attentions[0].window_tokens]
    assert replaced
    assert sorted(replaced + windowed) == list(range(len(original.layers)))


def test_only_kimi_linears_seven_mla_layers_are_replaced():
    original = load_model("kimi-linear-48b-a3b")
    (model,) = alternatives(original, "mha")
    changed = [(a, b) for a, b in zip(original.layers, model.layers, strict=True) if a != b]
    assert len(changed) == 7
    assert all(isinstance(a.attentions[0], LatentAttention) for a, _ in changed)
    assert all(isinstance(b.attentions[0], GroupedAttention) for _, b in changed)


def test_selection_is_replaced_together_with_its_base():
    original = load_model("deepseek-v3.2")
    assert isinstance(original.layers[0].attentions[0], SelectedAttention)
    (model,) = alternatives(original, "mla")
    assert isinstance(model.layers[0].attentions[0], LatentAttention)


def test_several_at_once_come_in_the_order_that_they_are_asked_in():
    rows = compare(["deepseek-v3"], what_if="mha,gqa:8,mqa,mla").rows
    assert [row.estimate.model.name.partition("+")[2] for row in rows] == ["", "mha", "gqa:8", "mqa", "mla"]
    assert [row.ratio for row in rows[::4]] == [1, 1]


def test_the_same_gqa_changes_nothing_but_the_name():
    original = load_model("llama-3.1-8b")
    (model,) = alternatives(original, "gqa:8")
    assert elements(model) == elements(original)
    assert model.parameters == original.parameters


@pytest.mark.parametrize(
    "what_if", ["gqa:7", "gqa:256", "gqa:", "gqa:8:8", "gqa:x", "mla:x", "mla:64+x", "mla:-1", "mhaa", "mha,"]
)
def test_what_can_not_be_read_is_refused(what_if):
    with pytest.raises(UsageError):
        alternatives(load_model("deepseek-v3"), what_if)


def test_a_comparison_is_at_one_context():
    rows = compare(["deepseek-v3", "llama-2-7b"]).rows
    assert [row.estimate.workload.context_tokens for row in rows] == [4096, 4096]


def test_flop_a_token_are_the_steps_over_all_its_tokens():
    """Two query tokens attend 1,000 and 999 tokens; three sequences do the same each."""
    one, two = (
        compare(["llama-2-7b"], context_tokens=1000, batch=batch, query_tokens=query).rows[0]
        for batch, query in ((1, 1), (3, 2))
    )
    a_pair = 32 * 32 * 4 * 128
    assert one.decode_attention_flop_per_token == 1000 * a_pair
    assert two.decode_attention_flop_per_token == (1000 + 999) * a_pair // 2


def test_nothing_to_compare_is_refused():
    with pytest.raises(UsageError, match="nothing to compare"):
        compare([])

"""Import of config.json: what the judge found right stays right, traps one by one, refusals that name their reason."""

import datetime
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from kvcalc.architecture.model import Model
from kvcalc.architecture.slots import Constant, Window
from kvcalc.errors import SpecError
from kvcalc.specs.build import build_model
from kvcalc.specs.huggingface.config import HARMLESS, class_defaults
from kvcalc.specs.huggingface.convert import spec_from_config, spec_name
from kvcalc.specs.huggingface.families import FAMILIES, hub_only
from kvcalc.specs.huggingface.layers import runs
from kvcalc.specs.huggingface.refused import REFUSED, WRAPPERS
from kvcalc.specs.huggingface.write import spec_yaml
from kvcalc.specs.reader import Document, read_document
from tests.command_line import call

JUDGEMENT = Path(__file__).parent.parent / "benchmarks" / "results" / "transformers_judge.json"
JUDGED = [
    pytest.param(variant, id=f"{record['type']}-{label}")
    for record in json.loads(JUDGEMENT.read_text(encoding="utf-8"))["types"]
    if record["verdict"] == "right"
    for label, variant in record["variants"].items()
]
DATE = datetime.date(2026, 11, 24)

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 512,
}


def imported(**config: object) -> Model:
    return build_model(Document("config.json", "", spec_from_config(config, source="config.json", date=DATE)))


def refusal(**config: object) -> str:
    with pytest.raises(SpecError) as caught:
        imported(**config)
    return str(caught.value)


def elements_per_token(model: Model) -> Fraction:
    return sum(
        (
            component.elements_per_slot * component.slots.per_token
            for layer in model.layers
            for attention in layer.attentions
            for component in attention.components()
        ),
        Fraction(0),
    )


def windows(model: Model) -> Counter[str]:
    found: Counter[str] = Counter()
    for layer in model.layers:
        for attention in layer.attentions:
            for component in attention.components():
                if isinstance(component.slots, Window):
                    found[str(component.slots.tokens)] += component.elements_per_slot
    return found


def constant_elements(model: Model) -> int:
    return sum(
        component.elements_per_slot * component.slots.entries
        for layer in model.layers
        for attention in layer.attentions
        for component in attention.components()
        if isinstance(component.slots, Constant)
    )


@pytest.mark.parametrize("variant", JUDGED)
def test_what_transformers_judged_right_stays_right(variant: dict) -> None:
    model = imported(**variant["config"])
    assert model.parameters.total == variant["parameters"]
    assert elements_per_token(model) == Fraction(variant["elements_per_token"])
    assert constant_elements(model) == variant["constant_elements"]
    assert windows(model) == variant["window_elements"]


def test_at_least_a_hundred_types_are_right_and_none_is_wrong() -> None:
    counts = json.loads(JUDGEMENT.read_text(encoding="utf-8"))["counts"]
    assert counts["causal_lm"]["right"] >= 100
    assert all(set(verdicts) <= {"right", "refused"} for verdicts in counts.values())


class TestTraps:
    def test_llama_by_hand(self) -> None:
        model = imported(**LLAMA)
        layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96 + 2 * 64
        assert model.parameters.total == 2 * 128 * 64 + 2 * layer + 64
        assert elements_per_token(model) == 2 * 2 * 2 * 16

    def test_falcon_old_architecture_ignores_num_kv_heads(self) -> None:
        old = imported(model_type="falcon", num_hidden_layers=2, num_attention_heads=8, hidden_size=64, num_kv_heads=4)
        assert elements_per_token(old) == 2 * 2 * 1 * 8
        new = imported(
            model_type="falcon",
            num_hidden_layers=2,
            num_attention_heads=8,
            hidden_size=64,
            num_kv_heads=4,
            new_decoder_architecture=True,
        )
        assert elements_per_token(new) == 2 * 2 * 4 * 8

    def test_falcon_without_multi_query_is_mha(self) -> None:
        model = imported(
            model_type="falcon", num_hidden_layers=2, num_attention_heads=8, hidden_size=64, multi_query=False
        )
        assert elements_per_token(model) == 2 * 2 * 64

    def test_falcon_rw_config_with_older_names(self) -> None:
        model = imported(
            model_type="falcon", n_layer=2, n_head=8, n_embed=64, n_head_kv=4, new_decoder_architecture=True
        )
        assert elements_per_token(model) == 2 * 2 * 4 * 8

    def test_gpt_bigcode_multi_query(self) -> None:
        assert elements_per_token(imported(model_type="gpt_bigcode", n_layer=2, n_head=4, n_embd=64)) == 2 * 2 * 16
        mha = imported(model_type="gpt_bigcode", n_layer=2, n_head=4, n_embd=64, multi_query=False)
        assert elements_per_token(mha) == 2 * 2 * 64

    def test_gpt_neo_local_layers_cache_everything(self) -> None:
        model = imported(
            model_type="gpt_neo", num_layers=4, num_heads=4, hidden_size=64, attention_types=[[["global", "local"], 2]]
        )
        assert elements_per_token(model) == 4 * 2 * 64
        assert not windows(model)

    def test_longcat_has_two_caches_a_layer(self) -> None:
        model = imported(model_type="longcat_flash", num_layers=3)
        assert elements_per_token(model) == 3 * 2 * 576

    def test_window_written_as_window_plus_one(self) -> None:
        published = imported(model_type="mimo_v2_flash", sliding_window_size=128, sliding_window=128)
        assert set(windows(published)) == {"129"}
        assert windows(published) == windows(imported(model_type="mimo_v2_flash"))

    def test_modernbert_counts_both_sides(self) -> None:
        model = imported(model_type="modernbert-decoder", local_attention=64)
        assert set(windows(model)) == {"32"}

    def test_values_narrower_than_keys(self) -> None:
        model = imported(model_type="mimo_v2_flash", num_hidden_layers=1, num_key_value_heads=4)
        assert elements_per_token(model) == 4 * (192 + 128)

    def test_layers_without_a_cache(self) -> None:
        model = imported(model_type="nemotron_h", hybrid_override_pattern="M-*-E")
        assert [len(layer.attentions) for layer in model.layers] == [1, 0, 1, 0, 0]

    def test_layers_that_borrow_a_cache(self) -> None:
        layer_types = ["sliding_attention", "full_attention"] * 2
        shared = imported(
            model_type="gemma4_text", num_hidden_layers=4, layer_types=layer_types, num_kv_shared_layers=2
        )
        assert elements_per_token(shared) == 2 * 4 * 512
        assert windows(shared) == {"512": 2 * 4 * 256}

    def test_two_head_shapes(self) -> None:
        model = imported(
            model_type="gemma4_text",
            num_hidden_layers=6,
            attention_k_eq_v=True,
            global_head_dim=512,
            num_global_key_value_heads=2,
        )
        assert elements_per_token(model) == 2 * 2 * 512
        assert windows(model) == {"512": 5 * 2 * 4 * 256}

    def test_explicit_null_is_no_window(self) -> None:
        assert windows(imported(model_type="mistral")) == {"4096": 32 * 2 * 8 * 128}
        assert not windows(imported(model_type="mistral", sliding_window=None))

    def test_explicit_null_is_no_query_lora(self) -> None:
        lite = imported(model_type="deepseek_v3", q_lora_rank=None, num_hidden_layers=1)
        full = imported(model_type="deepseek_v3", num_hidden_layers=1)
        h, heads, rank = 7168, 128, 1536
        difference = h * heads * 192 - (h * rank + rank + rank * heads * 192)
        assert lite.parameters.total - full.parameters.total == difference

    def test_qwen2_window_needs_its_flag(self) -> None:
        base = {"model_type": "qwen2", "num_hidden_layers": 4, "sliding_window": 64, "max_window_layers": 1}
        assert not windows(imported(**base))
        assert windows(imported(**base, use_sliding_window=True)) == {"64": 3 * 2 * 4096}

    def test_kimi_linear_counts_layers_from_one(self) -> None:
        model = imported(
            model_type="kimi_linear",
            num_hidden_layers=8,
            linear_attn_config={
                "full_attn_layers": [4, 8],
                "kda_layers": [1, 2, 3, 5, 6, 7],
                "head_dim": 128,
                "num_heads": 32,
            },
        )
        assert [layer.attentions[0].kind for layer in model.layers] == ["kda"] * 3 + ["mla"] + ["kda"] * 3 + ["mla"]

    def test_shared_indexers(self) -> None:
        model = imported(model_type="glm_moe_dsa", num_hidden_layers=6, indexer_types=["full", "shared", "shared"] * 2)
        assert elements_per_token(model) == 6 * 576 + 2 * 128

    def test_tied_embeddings_are_a_class_default(self) -> None:
        assert imported(model_type="gemma").tied_embeddings
        assert not imported(model_type="llama").tied_embeddings

    def test_learned_positions(self) -> None:
        assert imported(model_type="gpt2", n_layer=1, n_positions=64).position_rows == 64
        assert imported(model_type="opt", num_hidden_layers=1, max_position_embeddings=64).position_rows == 66

    def test_multi_token_prediction_layer(self) -> None:
        model = imported(model_type="deepseek_v3", num_nextn_predict_layers=1)
        assert model.parameters.total == 671_026_404_352
        assert round(model.parameters.mtp / 1e9, 2) == 11.61

    def test_text_config_and_where_embeddings_are_tied(self) -> None:
        text = {**LLAMA, "model_type": "llama"}
        inside = imported(model_type="llava", text_config=text)
        assert inside.parameters == imported(**LLAMA).parameters
        tied = imported(model_type="llava", tie_word_embeddings=True, text_config=text)
        assert tied.parameters.total == inside.parameters.total - 128 * 64

    def test_hub_only_type_with_the_layers_of_another(self) -> None:
        model = imported(model_type="kimi_k2", num_hidden_layers=2, num_attention_heads=64)
        assert elements_per_token(model) == 2 * 576


BAICHUAN = {"model_type": "baichuan", "num_attention_heads": 32, "num_hidden_layers": 32, "hidden_size": 4096}


class TestHubOnlyTypes:
    """Totals as the hub states them for the published weights."""

    @pytest.mark.parametrize(
        ("config", "parameters"),
        [
            ({**BAICHUAN, "intermediate_size": 11008, "vocab_size": 125696}, 7_505_973_248),
            (
                {
                    "model_type": "chatglm",
                    "num_layers": 28,
                    "hidden_size": 4096,
                    "ffn_hidden_size": 13696,
                    "kv_channels": 128,
                    "num_attention_heads": 32,
                    "multi_query_attention": True,
                    "multi_query_group_num": 2,
                    "add_qkv_bias": True,
                    "add_bias_linear": False,
                    "padded_vocab_size": 65024,
                    "seq_length": 32768,
                },
                6_243_584_000,
            ),
            (
                {
                    "model_type": "internlm2",
                    "num_hidden_layers": 32,
                    "hidden_size": 4096,
                    "intermediate_size": 14336,
                    "num_attention_heads": 32,
                    "num_key_value_heads": 8,
                    "vocab_size": 92544,
                    "bias": False,
                },
                7_737_708_544,
            ),
        ],
    )
    def test_published_totals(self, config: dict, parameters: int) -> None:
        assert imported(**config).parameters.total == parameters

    def test_the_first_chatglm_is_another_architecture(self) -> None:
        message = refusal(
            model_type="chatglm", num_layers=28, hidden_size=4096, num_attention_heads=32, inner_hidden_size=16384
        )
        assert "'intermediate_size'" in message


class TestRefusals:
    @pytest.mark.parametrize("name", sorted(REFUSED))
    def test_refused_types_give_their_reason(self, name: str) -> None:
        assert f"model_type '{name}' is not modelled: " in refusal(model_type=name)

    def test_unknown_type_names_the_nearest(self) -> None:
        message = refusal(model_type="lama")
        assert "model_type 'lama' is not known" in message
        assert "'llama'" in message

    def test_no_type(self) -> None:
        assert "no 'model_type'" in refusal(hidden_size=64)

    def test_encoder_decoder_flag(self) -> None:
        assert "is_encoder_decoder" in refusal(model_type="my_t5", is_encoder_decoder=True)

    def test_unknown_text_decoder(self) -> None:
        assert "'mllama_text_model'" in refusal(model_type="llava", text_config={"model_type": "mllama_text_model"})
        assert "no text_config" in refusal(model_type="llava")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("kv_sharing", True),
            ("cross_layer_cache", 2),
            ("compress_ratio", 4),
            ("num_memory_heads", 2),
            ("conv_kernel", 4),
            ("latent_size", 32),
            ("n_routed_experts", 8),
            ("qk_rope_head_dim", 64),
            ("attention_type", "linear"),
            ("layer_types", ["sliding_attention"] * 2),
        ],
    )
    def test_an_unknown_field_that_may_matter(self, field: str, value: object) -> None:
        assert f"'{field}' is not a field of llama" in refusal(**LLAMA, **{field: value})

    def test_all_unknown_fields_at_once(self) -> None:
        with pytest.raises(SpecError) as caught:
            imported(**LLAMA, kv_sharing=True, my_comment="x", conv_kernel=4, latent_size=32)
        assert [problem.message.partition("' is")[0] for problem in caught.value.problems] == [
            "config.json: 'kv_sharing",
            "config.json: 'conv_kernel",
            "config.json: 'latent_size",
        ]
        assert [bool(problem.hint) for problem in caught.value.problems] == [False, False, True]

    def test_unmodelled_values_and_unknown_fields_at_once(self) -> None:
        name, family = next((name, each) for name, each in FAMILIES.items() if len(each.modelled) > 1)
        config = {"model_type": name, **dict.fromkeys(family.modelled, "nothing like it"), "cross_layer_cache": 2}
        message = refusal(**config)
        for field in family.modelled:
            assert f"'{field}' of {name} is 'nothing like it'" in message

    def test_places_of_all_unknown_fields(self) -> None:
        text = json.dumps({**LLAMA, "kv_sharing": True, "cross_layer_cache": 2}, indent=1)
        document = read_document("config.json", text)
        with pytest.raises(SpecError) as caught:
            spec_from_config(document.data, source="config.json", document=document)
        places = [str(problem.place) for problem in caught.value.problems]
        assert places == [f"config.json:{len(LLAMA) + line}:2" for line in (2, 3)]

    @pytest.mark.parametrize("field", ["unsloth_version", "torch_dtype_note", "auto_map", "my_comment", "rope_theta"])
    def test_an_unknown_field_that_does_not(self, field: str) -> None:
        assert imported(**LLAMA, **{field: "x"}).parameters == imported(**LLAMA).parameters

    @pytest.mark.parametrize(
        ("config", "field"),
        [
            ({"model_type": "gemma2", "layer_types": ["sliding_attention", "linear_attention"] * 13}, "layer_types"),
            ({"model_type": "gemma2", "layer_types": "full_attention"}, "layer_types"),
            ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types"),
            ({"model_type": "axk1", "mlp_layer_types": ["dense"]}, "mlp_layer_types"),
            ({"model_type": "glm4_moe_lite", "mlp_layer_types": ["dense", "hash"] * 23 + ["dense"]}, "mlp_layer_types"),
            ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
            ({"model_type": "doge", "is_moe": True}, "is_moe"),
            ({"model_type": "mpt", "attn_config": {"attn_type": "multiquery_attention"}}, "attn_type"),
            ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention"),
            ({"model_type": "deepseek_v3", "moe_layer_freq": 2}, "moe_layer_freq"),
            ({"model_type": "deepseek_v4", "n_shared_experts": 2}, "num_shared_experts"),
            ({"model_type": "falcon_h1", "projectors_bias": True}, "projectors_bias"),
            ({"model_type": "minimax_m2", "attn_type_list": [0] + [1] * 61}, "layer_types"),
            ({"model_type": "mimo_v2_flash", "swa_head_dim": 64}, "swa_head_dim"),
            ({"model_type": "laguna", "gating": "elementwise"}, "gating"),
            ({**LLAMA, "hidden_size": "64"}, "hidden_size"),
            ({**LLAMA, "hidden_size": -64}, "hidden_size"),
            ({**LLAMA, "vocab_size": None}, "vocab_size"),
            ({**LLAMA, "num_hidden_layers": 2.5}, "num_hidden_layers"),
            ({**LLAMA, "torch_dtype": "float7"}, "dtype"),
            ({**LLAMA, "quantization_config": {"quant_method": "magic"}}, "magic"),
        ],
    )
    def test_what_is_not_modelled_names_the_field(self, config: dict, field: str) -> None:
        assert field in refusal(**config)

    def test_the_place_in_the_file(self) -> None:
        document = read_document("config.json", json.dumps({**LLAMA, "kv_sharing": True}, indent=2))
        with pytest.raises(SpecError) as caught:
            spec_from_config(document.data, source="config.json", document=document)
        place = caught.value.problems[0].place
        assert place is not None
        assert place.source_line.strip() == '"kv_sharing": true'


class TestWriting:
    @pytest.mark.parametrize("name", ["llama", "gemma3_text", "deepseek_v32", "nemotron_h", "gemma4_text", "falcon_h1"])
    def test_the_text_reads_back_as_the_same_document(self, name: str) -> None:
        spec = spec_from_config({"model_type": name}, source="a 'quoted': source # with marks", date=DATE)
        assert read_document("spec.yaml", spec_yaml(spec)).data == spec

    def test_recurring_parts_are_anchored(self) -> None:
        spec = spec_from_config({"model_type": "gemma3_text", "num_hidden_layers": 8}, source="x", date=DATE)
        text = spec_yaml(spec)
        assert text.count("kind: dense") == 1
        assert "feed_forward: &mlp" in text
        assert "feed_forward: *mlp" in text

    def test_runs_and_patterns(self) -> None:
        a, b = {"attention": {"kind": "a"}}, {"attention": {"kind": "b"}}
        assert runs([a] * 3) == [{"repeat": 3, **a}]
        assert runs([a, b] * 3) == [{"repeat": 3, "pattern": [a, b]}]
        assert runs([a, a, b] * 2 + [a]) == [{"repeat": 2, "pattern": [{"repeat": 2, **a}, b]}, a]

    def test_names(self) -> None:
        assert spec_name("deepseek-ai/DeepSeek-V3") == "deepseek-v3"
        assert spec_name("Qwen3 (base)") == "qwen3-base"
        spec = spec_from_config(LLAMA, source="hf:org/My-Model/config.json", date=DATE)
        assert (spec["name"], spec["title"]) == ("my-model", "My-Model")

    @pytest.mark.parametrize(
        ("source", "title"),
        [
            ("models/My Model/config.json", "My Model"),
            ("my-model.json", "my-model"),
            ("config.json", "llama"),
            ("<stdin>", "llama"),
            ("hf:org/name@main/config.json", "name"),
        ],
    )
    def test_titles_from_sources(self, source: str, title: str) -> None:
        assert spec_from_config(LLAMA, source=source, date=DATE)["title"] == title


class TestFormats:
    @pytest.mark.parametrize(
        ("quantization", "default"),
        [
            (None, "fp16"),
            ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
            ({"quant_method": "gptq", "bits": 4}, "int4"),
            ({"quant_method": "awq", "bits": 4}, "int4"),
            ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
            ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        ],
    )
    def test_weight_formats(self, quantization: dict | None, default: str) -> None:
        config = {**LLAMA, "torch_dtype": "float16", "quantization_config": quantization}
        formats = spec_from_config(config, source="x", date=DATE)["weight_formats"]
        assert formats["default"] == default
        assert quantization is None or formats["embedding"] == "fp16"

    def test_mxfp4_is_of_the_experts_only(self) -> None:
        config = {"model_type": "gpt_oss", "dtype": "bfloat16", "quantization_config": {"quant_method": "mxfp4"}}
        assert spec_from_config(config, source="x", date=DATE)["weight_formats"] == {
            "default": "bf16",
            "experts": "mxfp4",
        }


def test_tables_are_consistent() -> None:
    assert not set(FAMILIES) & set(REFUSED)
    assert not set(FAMILIES) & set(WRAPPERS)
    assert set(WRAPPERS.values()) <= set(FAMILIES)
    assert set(FAMILIES) - set(hub_only.FAMILIES) <= set(class_defaults())
    for defaults in class_defaults().values():
        assert not [
            name for name in defaults if HARMLESS.search(name) and name in ("sliding_window", "attention_chunk_size")
        ]


def test_sizes_that_a_config_leaves_out_are_told():
    with pytest.warns(UserWarning, match="num_key_value_heads as many as query heads, .*vocab_size 32000"):
        spec_from_config({"model_type": "llama", "hidden_size": 4096}, source="config.json")


class TestImportCommand:
    CONFIG = json.dumps(LLAMA)

    def test_a_file_that_is_there_is_not_overwritten(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        config, output = tmp_path / "config.json", tmp_path / "model.yaml"
        config.write_text(self.CONFIG)
        output.write_text("mine")
        done = call(capsys, "import", str(config), "-o", str(output))
        assert done.code == 2
        assert "is there already" in done.err
        assert "--force" in done.err
        assert output.read_text() == "mine"
        assert call(capsys, "import", str(config), "-o", str(output), "--force").code == 0
        assert "kind: gqa" in output.read_text()

    def test_a_new_file_and_a_device(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        config, output = tmp_path / "config.json", tmp_path / "model.yaml"
        config.write_text(self.CONFIG)
        assert call(capsys, "import", str(config), "-o", str(output)).code == 0
        assert output.is_file()
        assert call(capsys, "import", str(config), "-o", "/dev/null").code == 0

    def test_all_that_is_not_modelled_in_one_error(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        config = tmp_path / "config.json"
        config.write_text(json.dumps({**LLAMA, "kv_sharing": True, "cross_layer_cache": 2}, indent=1))
        done = call(capsys, "import", str(config))
        assert done.code == 2
        for field in ("kv_sharing", "cross_layer_cache"):
            assert f"'{field}' is not a field of llama" in done.err

"""Hardware: every number has its source, names lead to one GPU or to an error, and wrong files are told where."""

import datetime
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from kvcalc.errors import MissingPeakError, NoDeviceError, SpecError, UsageError
from kvcalc.hardware import COMPUTE_DTYPES, Gpu, find_gpu
from kvcalc.specs.hardware import DATA, build_gpu, gpu_names, hardware_schema, load_gpu, load_gpus
from kvcalc.specs.reader import read_document

FILES = sorted(DATA.glob("*.yaml"))
MIB = 1 << 20

# Dense bf16 FLOP a clock and SM (CU) with FP32 accumulation: architecture whitepapers; AMD's CDNA ISA tables.
BF16_FLOP_PER_SM_CLOCK = {
    "8.0": 2048,
    "8.6": 1024,
    "8.9": 1024,
    "9.0": 4096,
    "10.0": 8192,
    "10.3": 8192,
    "12.0": 1024,
    "12.1": 1024,
    "gfx90a": 1024,
    "gfx942": 2048,
    "gfx950": 4096,
}
HALF_RATE = {"l40", "rtx-3090", "rtx-4090", "rtx-5090"}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
each_gpu = pytest.mark.parametrize("gpu", gpu_names(), indirect=True)


@pytest.fixture
def gpu(request) -> Gpu:
    return load_gpu(request.param)


def raw(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def quantities(value: object, path: str = "") -> list[tuple[str, object]]:
    """Every number, and every mapping that has a `value`, of a raw file."""
    if isinstance(value, dict) and "value" in value:
        return [(path, value)]
    if isinstance(value, dict):
        return [found for key, part in value.items() for found in quantities(part, f"{path}.{key}".lstrip("."))]
    return [(path, value)] if isinstance(value, int | float) else []


@each_file
def test_every_number_of_a_file_has_a_source_with_a_date(path):
    document = raw(path)
    stated = quantities({key: value for key, value in document.items() if key != "sources"})
    assert len(stated) >= 8
    for where, quantity in stated:
        assert isinstance(quantity, dict), f"{where} is a bare number"
        assert type(quantity["value"]) is int and quantity["value"] > 0, where
        assert quantity["source"] in document["sources"], where
    for key, source in document["sources"].items():
        assert source["cite"].strip() and type(source["date"]) is datetime.date, key
    assert set(document["sources"]) == {quantity["source"] for _, quantity in stated}, "a source that no number uses"


@each_gpu
def test_a_loaded_gpu_cites_all_its_numbers(gpu):
    document = raw(DATA / f"{gpu.slug}.yaml")
    for where, quantity in quantities({key: value for key, value in document.items() if key != "sources"}):
        ground = gpu.citation(where)
        assert ground.value == quantity["value"]
        assert ground.source == document["sources"][quantity["source"]]["cite"]
        assert datetime.date.fromisoformat(ground.date)
        owner, _, key = where.rpartition(".")
        holder = {"": gpu, "link": gpu.link, "peak_flop_per_s": SimpleNamespace(**gpu.peak_flop_per_s)}[owner]
        assert getattr(holder, key) == quantity["value"]


@each_file
def test_comments_say_the_same_as_the_numbers(path):
    units = {"MiB": MIB, "KiB": 1024, "GB/s": 1e9, "GB": 1e9, "TFLOP/s": 1e12, "MHz": 1e6}
    comments = re.findall(r"value: (\d+),.*\}  # ([\d.]+) (\S+)$", path.read_text(), re.MULTILINE)
    assert len(comments) >= 6
    for value, shown, unit in comments:
        assert float(shown) * units[unit] == pytest.approx(int(value), rel=5e-6), f"{value} is not {shown} {unit}"


def test_slugs_are_the_file_names_and_core_numbers_are_stated():
    assert len(FILES) >= 33
    for path, gpu in zip(FILES, load_gpus(), strict=True):
        assert gpu.slug == path.stem
        assert gpu.vendor in ("nvidia", "amd")
        assert gpu.device_names
        assert bool(gpu.compute_capability) is (gpu.vendor == "nvidia") is not bool(gpu.gfx_arch)
        assert gpu.peak("bf16")
        assert set(gpu.peak_flop_per_s) <= set(COMPUTE_DTYPES)


def test_no_name_leads_to_two_gpus():
    owner: dict[str, str] = {}
    for gpu in load_gpus():
        for name in gpu.names:
            key = name.casefold()
            assert key not in owner, f"'{name}' of {gpu.slug} is taken by {owner[key]}"
            owner[key] = gpu.slug


@each_gpu
def test_peaks_are_dense_and_stand_in_the_hardwares_ratios(gpu):
    bf16 = gpu.peak("bf16")
    assert gpu.peak("fp16") == pytest.approx(bf16, rel=0.02)
    if "tf32" in gpu.peak_flop_per_s:
        assert gpu.peak("tf32") * 2 == pytest.approx(bf16, rel=0.05)
    if "fp8" in gpu.peak_flop_per_s:
        assert gpu.peak("fp8") == pytest.approx(2 * bf16, rel=0.03)
    if "fp4" in gpu.peak_flop_per_s:
        assert gpu.peak("fp4") >= 1.99 * gpu.peak("fp8")
    assert gpu.peak("fp32") <= bf16 / 1.9
    if gpu.num_sms and gpu.boost_clock_hz:
        rate = BF16_FLOP_PER_SM_CLOCK[gpu.compute_capability or gpu.gfx_arch] / (2 if gpu.slug in HALF_RATE else 1)
        assert 0.84 * rate < bf16 / (gpu.num_sms * gpu.boost_clock_hz) < 1.06 * rate


@each_gpu
def test_magnitudes_are_those_of_the_units(gpu):
    assert 16 * 1024 * MIB <= gpu.memory_reported_bytes <= 300 * 1024 * MIB
    assert 2e11 <= gpu.memory_bandwidth_bytes_per_s <= 2e13
    assert 10 <= gpu.ridge_flop_per_byte("bf16") <= 1000
    assert 1 * MIB <= (gpu.l2_cache_bytes or MIB) <= 256 * MIB
    assert 5e8 <= (gpu.boost_clock_hz or 1e9) <= 4e9
    if gpu.link:
        assert gpu.pcie_bytes_per_s_per_direction < gpu.link.bytes_per_s_per_direction < 2e12


ANCHORS = [
    # NVIDIA H100 datasheet: 989.4 dense TFLOP/s (132 SMs x 4096 x 1.83 GHz), 3.35 TB/s; modal-labs/modal-client#2797:
    # nvidia-smi 81559 MiB
    ("h100-sxm5-80gb", 81559 * MIB, 3_352_000_000_000, 989_400_000_000_000, 132),
    # NVIDIA A100 datasheet: 312 dense TFLOP/s, 2039 GB/s; modal-labs/modal-client#2797: nvidia-smi 81920 MiB
    ("a100-sxm4-80gb", 81920 * MIB, 2_039_000_000_000, 312_000_000_000_000, 108),
    # NVIDIA aiconfigurator h200_sxm.yaml: 4.8 TB/s, compute as H100; nvidia-smi 143771 MiB
    ("h200-sxm-141gb", 143771 * MIB, 4_800_000_000_000, 989_400_000_000_000, 132),
    # NVIDIA Blackwell datasheet: HGX B200 4.5 sparse PFLOP/s, 7.7 TB/s; pytorch/ao#4002: 148 SMs;
    # NVIDIA/TensorRT-LLM#10278: nvidia-smi 183359 MiB
    ("b200-sxm-180gb", 183359 * MIB, 7_700_000_000_000, 2_250_000_000_000_000, 148),
    # AMD CDNA 3 tables (ROCm docs, mi300.md): 1307.4 TFLOP/s, 5.3 TB/s, 304 CUs;
    # ROCm/legacy-rocm-build#4203: 196592 MiB
    ("mi300x", 196592 * MIB, 5_300_000_000_000, 1_307_400_000_000_000, 304),
    # NVIDIA Ada whitepaper, through karpathy/llm.c mfu.h: 165.2 TFLOP/s with FP32 accumulation; 21 Gbit/s x 384 bit;
    # RLinf/RLinf#255: nvidia-smi 24564 MiB
    ("rtx-4090", 24564 * MIB, 1_008_000_000_000, 165_200_000_000_000, 128),
]


@pytest.mark.parametrize(("slug", "memory", "bandwidth", "bf16", "sms"), ANCHORS, ids=[row[0] for row in ANCHORS])
def test_published_numbers(slug, memory, bandwidth, bf16, sms):
    gpu = load_gpu(slug)
    assert gpu.memory_reported_bytes == memory
    assert gpu.memory_bandwidth_bytes_per_s == bandwidth
    assert gpu.peak("bf16") == bf16
    assert gpu.num_sms == sms
    assert gpu.ridge_flop_per_byte("bf16") == bf16 / bandwidth


def test_b200_l2_is_what_the_driver_says():
    # pytorch/ao#4002: 126.50 MB, a binary unit
    assert load_gpu("b200-sxm-180gb").l2_cache_bytes == 126 * MIB + MIB // 2


def test_blackwell_ultra_fp4_is_not_half_of_the_sparse_figure():
    # NVIDIA: 18 sparse and 14 dense PFLOP/s on B300, 20 and 15 on GB300
    assert load_gpu("b300-sxm-270gb").peak("fp4") == 14_000_000_000_000_000
    assert load_gpu("gb300-279gb").peak("fp4") == 15_000_000_000_000_000


def test_a_missing_peak_is_an_error_that_says_which_there_are():
    with pytest.raises(MissingPeakError, match="a100-sxm4-80gb has no stated fp8 peak") as raised:
        load_gpu("a100-sxm4-80gb").peak("fp8")
    assert "fp32, tf32, bf16, fp16, int8" in raised.value.hint
    assert raised.value.exit_code == 2


def test_a_number_that_nobody_states_has_no_citation():
    assert load_gpu("h20-96gb").boost_clock_hz is None
    with pytest.raises(KeyError, match="h20-96gb states no boost_clock_hz"):
        load_gpu("h20-96gb").citation("boost_clock_hz")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("H100-SXM5-80GB", "h100-sxm5-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm5-80gb"),
        ("nvidia h100 pcie", "h100-pcie-80gb"),
        ("NVIDIA H200", "h200-sxm-141gb"),
        ("NVIDIA H20", "h20-96gb"),
        ("NVIDIA L4", "l4"),
        ("h100-nvl", "h100-nvl-94gb"),
        ("AMD Instinct MI300X", "mi300x"),
        ("AMD_Instinct_MI300X", "mi300x"),
    ],
)
def test_exact_names_in_any_case(name, slug):
    assert load_gpu(name).slug == slug


@pytest.mark.parametrize(
    ("name", "slugs"),
    [
        ("h100", "h100-nvl-94gb, h100-pcie-80gb, h100-sxm5-80gb"),
        ("NVIDIA H100", "h100-nvl-94gb, h100-pcie-80gb, h100-sxm5-80gb"),
        ("H200", "h200-nvl-141gb, h200-sxm-141gb"),
        ("a100", "a100-pcie-40gb, a100-pcie-80gb, a100-sxm4-40gb, a100-sxm4-80gb"),
        ("rtx-pro-6000", "rtx-pro-6000-blackwell-server, rtx-pro-6000-blackwell-workstation"),
    ],
)
def test_a_product_name_of_several_skus_lists_them(name, slugs):
    with pytest.raises(UsageError) as raised:
        load_gpu(name)
    assert raised.value.message == f"GPU {name!r} is ambiguous: it may be {slugs}"


@pytest.mark.parametrize(
    ("name", "meant"), [("mi300", "mi300x"), ("rtx 4090", "rtx-4090"), ("h100-smx5-80gb", "h100-sxm5-80gb")]
)
def test_an_unknown_name_is_an_error_with_the_nearest(name, meant):
    with pytest.raises(UsageError, match=f"unknown GPU '{name}'") as raised:
        load_gpu(name)
    assert f"'{meant}'" in raised.value.hint


@pytest.mark.parametrize("name", ["", "zzz", "-", "../h100-sxm5-80gb"])
def test_nothing_is_matched_by_accident(name):
    with pytest.raises(UsageError):
        load_gpu(name)


def test_two_gpus_of_one_name_are_ambiguous():
    def gpu(slug: str) -> Gpu:
        return Gpu(
            slug=slug,
            name=slug,
            vendor="other",
            architecture="none",
            device_names=("Card",),
            memory_reported_bytes=1,
            memory_bandwidth_bytes_per_s=1,
            peak_flop_per_s={"bf16": 1},
        )

    with pytest.raises(UsageError, match="'card' is ambiguous: it may be one, two"):
        find_gpu("card", [gpu("two"), gpu("one")])


def test_gpu_names_are_the_slugs():
    assert gpu_names() == tuple(gpu.slug for gpu in load_gpus())


MY_GPU = """\
slug: my-gpu
name: My GPU
vendor: other
architecture: Mine
sources:
  me: {cite: "nvidia-smi, read here", date: 2026-01-31}
memory_reported_bytes: {value: 1000, source: me}
memory_bandwidth_bytes_per_s: {value: 100, source: me}
peak_flop_per_s:
  bf16: {value: 5000, source: me, note: "a guess"}
"""


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "my-gpu.yaml"
    path.write_text(MY_GPU)
    gpu = load_gpu(str(path))
    assert (gpu.slug, gpu.memory_reported_bytes, gpu.link) == ("my-gpu", 1000, None)
    assert gpu.ridge_flop_per_byte("bf16") == 50.0
    assert str(gpu.citation("peak_flop_per_s.bf16")) == "nvidia-smi, read here (2026-01-31); a guess"


def test_a_file_that_is_not_there():
    with pytest.raises(UsageError, match=r"no-such-gpu\.yaml"):
        load_gpu("./no-such-gpu.yaml")


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("value: 100, source: me", "value: 100, source: mee", "my.yaml:8:44", "unknown source 'mee'"),
        ("value: 100,", "value: 100.5,", "my.yaml:8:32", "'value' must be a whole number"),
        ("value: 100,", "value: '100',", "my.yaml:8:32", "'value' must be a whole number"),
        ("value: 100,", "value: -100,", "my.yaml:8:32", "at least 1"),
        ("{value: 100, source: me}", "{value: 100}", "my.yaml:8:", "missing key 'source'"),
        ("{value: 100, source: me}", "100", "my.yaml:8:1", "must be a mapping of keys"),
        ("  bf16:", "  bf15:", "my.yaml:10:3", "unknown key 'bf15'"),
        ("date: 2026-01-31", "date: soon", "my.yaml:6:39", "must be a date"),
        ("vendor: other", "vendor: nvidea", "my.yaml:3:1", "'vendor' can't be 'nvidea'"),
        ("name: My GPU\n", "", "my.yaml:1:1", "missing key 'name'"),
        ("name: My GPU\n", "name: My GPU\nname: Other\n", "my.yaml:3:1", "duplicate key 'name'"),
        ('  bf16: {value: 5000, source: me, note: "a guess"}\n', "  {}\n", "my.yaml:9:1", "no peak is stated"),
    ],
)
def test_a_wrong_file_is_told_where_and_what(old, new, place, message):
    text = MY_GPU.replace(old, new, 1)
    assert text != MY_GPU
    with pytest.raises(SpecError) as raised:
        build_gpu(read_document("my.yaml", text))
    told = [(str(problem.place), problem.message) for problem in raised.value.problems]
    assert any(where.startswith(place) and message in what for where, what in told), told


def test_all_unknown_sources_are_told_at_once():
    with pytest.raises(SpecError) as raised:
        build_gpu(read_document("my.yaml", MY_GPU.replace("source: me}", "source: you}")))
    assert [problem.message for problem in raised.value.problems] == ["unknown source 'you'"] * 2


class FakeNvmlError(Exception):
    pass


def fake_nvml(*names: str | bytes, error: str | None = None) -> SimpleNamespace:
    def init() -> None:
        if error:
            raise FakeNvmlError(error)

    return SimpleNamespace(
        NVMLError=FakeNvmlError,
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: names[handle],
    )


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", b"NVIDIA H100 80GB HBM3"])
def test_auto_asks_the_machine(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(name, name))
    assert load_gpu("auto").slug == "h100-sxm5-80gb"


@pytest.mark.parametrize(
    ("nvml", "error", "message", "hint"),
    [
        (None, NoDeviceError, "not installed", "pip install 'kvcalc[profile]'"),
        (fake_nvml(error="Driver Not Loaded"), NoDeviceError, "Driver Not Loaded", "install NVIDIA's driver"),
        (fake_nvml(), NoDeviceError, "finds no NVIDIA GPU", "name the GPU"),
        (fake_nvml("Quadro X"), UsageError, "'Quadro X', which kvcalc has no data on", "./my-gpu.yaml"),
        (fake_nvml("NVIDIA L4", "NVIDIA A10"), UsageError, "different GPUs: NVIDIA L4, NVIDIA A10", "name one"),
    ],
    ids=["no-pynvml", "no-driver", "no-gpu", "unknown-gpu", "several"],
)
def test_auto_without_a_known_gpu_names_the_fix(monkeypatch, nvml, error, message, hint):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with pytest.raises(error) as raised:
        load_gpu("auto")
    assert message in raised.value.message
    assert hint in raised.value.hint
    assert raised.value.exit_code == (3 if error is NoDeviceError else 2)


def test_the_committed_schema_is_the_generated_one():
    committed = (DATA.parent / "hardware.schema.json").read_text()
    assert committed == json.dumps(hardware_schema(), indent=2, ensure_ascii=False) + "\n"


def test_the_schema_explains_every_key():
    schema = hardware_schema()
    parts = [schema["properties"], *(part["properties"] for part in schema["$defs"].values())]
    for key, about in [item for part in parts for item in part.items()]:
        assert about["description"], key
        assert "title" not in about and "anyOf" not in about, key

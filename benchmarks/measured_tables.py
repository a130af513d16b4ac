"""Public measurements of decode attention: aiconfigurator-core's tables, as cases of kvcalc, and what is left out.

The package (PyPI aiconfigurator-core 0.12.0, Apache-2.0) carries NVIDIA's measured latencies as parquet. Nothing of it
is shipped with kvcalc. A table here is one engine version's kernel on one GPU, at one width of cache elements. Rows
and tables are left out by the rules of `ROW_RULES` and `TABLE_RULES`, each of which looks at the row and the stated
hardware alone, never at how well kvcalc fits it; reports give the figures with them included as well.
"""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kvcalc.api import load_gpu
from kvcalc.hardware import Gpu
from kvcalc.timing.attention_time import AttentionCase, machine, roofline_s
from kvcalc.timing.calibration.arrays import NUMPY, take
from kvcalc.timing.families import FAMILIES

PACKAGE = "aiconfigurator-core 0.12.0"
GPUS = {
    "a100_sxm": "a100-sxm4-80gb",
    "h100_sxm": "h100-sxm5-80gb",
    "h200_sxm": "h200-sxm-141gb",
    "b200_sxm": "b200-sxm-180gb",
    "b300_sxm": "b300-sxm-270gb",
    "gb200": "gb200-186gb",
    "gb300": "gb300-279gb",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000-blackwell-server",
}
SOURCES = {
    "fa3": "fa3",
    "flash_attention": "fa3",
    "vllm_flash_attn_fa3": "fa3-vllm",
    "trtllm_mha": "trtllm-gen",
    "trtllm_mla": "trtllm-gen",
    "vllm_flashinfer_trtllmdecode": "trtllm-gen",
    "triton": "triton",
    "vllm_triton_attn": "triton",
    "flashinfer": "flashinfer",
    "vllm_flashinfer_fidecode": "flashinfer",
    "vllm_flash_attn_fa2": "flashinfer",
    "vllm_flash_attn": "flashinfer",
}
"""The family of a kernel source; TensorRT-LLM's depends on the GPU and the kind, and one with no family is no table."""

ROW_RULES = {
    "window": "window_size above 0: kernels of windows are reported as a kind of their own",
    "head_dim 192": "head_dim 192: the table does not state v_head_dim, which is 128 in the models that have it",
    "group": "more query heads a KV head than the engine has a fused kernel for (TensorRT-LLM: 32)",
    "spike": "latency more than 1.8 times both neighbours in context, all else equal: a disturbed measurement",
    "too fast": "cache above four times L2 read at more than 1.05 times the stated bandwidth",
}
TABLE_RULES = {
    "beats HBM": "median read rate of caches above four times L2 over 1.02 times the stated bandwidth",
    "eager": "median latency of caches below 1 MB above 60 us: the harness timed launches, not the kernel",
    "untuned": "median of roofline over measured below 0.25 on caches above 200 MB: not the engine's tuned path",
    "listed": "TensorRT-LLM 1.0.0, and its MLA on GPUs without a kernel tuned for it (A100, L40S, RTX PRO 6000)",
    "small": "fewer than 200 rows",
}


@dataclass(frozen=True, kw_only=True)
class Windowed:
    """Rows of a kernel with a window that no other rule leaves out; `beyond`: the context is longer than the window."""

    case: AttentionCase
    seconds: np.ndarray
    window_tokens: np.ndarray
    beyond: np.ndarray


@dataclass(frozen=True, kw_only=True)
class MeasuredTable:
    """One kernel's measurements. `left_out` counts rows by rule; `table_rule` is why the whole table is left out."""

    gpu: Gpu
    engine: str
    source: str
    family: str
    kernel: str
    eight_bit: bool
    case: AttentionCase
    seconds: np.ndarray
    left_out: dict[str, int] = field(default_factory=dict)
    table_rule: str | None = None
    rows_left_out: "MeasuredTable | None" = None
    windowed: "Windowed | None" = None

    @property
    def name(self) -> str:
        width = "fp8" if self.eight_bit else "bf16"
        return f"{self.gpu.slug} {self.engine} {self.source} {self.kernel} {width}"


def package_root() -> Path:
    """The package's folder of systems. Ends the program where it is not installed."""
    found = importlib.util.find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("this needs the public measurements: pip install 'kvcalc[validate]'")
    return Path(found.submodule_search_locations[0]) / "systems"


def load_tables() -> list[MeasuredTable]:
    """All decode attention tables, in order of GPU, engine and kernel."""
    root = package_root() / "data"
    tables: list[MeasuredTable] = []
    for system, slug in GPUS.items():
        for name in ("generation_mla_perf.parquet", "generation_attention_perf.parquet"):
            for path in sorted((root / system).rglob(name)):
                tables += _read(path, load_gpu(slug))
    return tables


def _read(path: Path, gpu: Gpu) -> list[MeasuredTable]:
    import pyarrow.parquet as parquet

    data = parquet.read_table(path).to_pandas()
    engine = f"{path.parts[-3]} {path.parts[-2]}"
    is_mla = path.name.startswith("generation_mla")
    data = data[data.latency > 0].copy()
    data["context"] = data.isl + data.step
    if is_mla:
        data["num_key_value_heads"], data["head_dim"], data["window_size"] = 1, 512, 0
    data["window_size"] = data.window_size.fillna(0) if "window_size" in data else 0
    keys = ["num_heads", "num_key_value_heads", "head_dim", "window_size", "batch_size", "context"]
    tables = []
    for (source, width), rows in data.groupby(["kernel_source", "kv_cache_dtype"]):
        family = _family(str(source), engine, gpu, is_mla)
        if family is None:
            continue
        rows = rows.groupby(keys, as_index=False).latency.median().sort_values(keys)
        kinds = np.full(len(rows), "mla" if is_mla else "gqa", dtype=object)
        if "mha" in FAMILIES[family].kernels:
            kinds[(rows.num_heads == rows.num_key_value_heads).to_numpy()] = "mha"
        for kernel in sorted(set(kinds)):
            table = _table(rows[kinds == kernel], gpu, engine, str(source), family, kernel, width == "fp8")
            tables += [table] if len(table.seconds) else []
    return tables


def _family(source: str, engine: str, gpu: Gpu, is_mla: bool) -> str | None:
    if source in ("default", "torch_flow"):  # TensorRT-LLM
        if gpu.architecture.startswith("Blackwell") and not gpu.slug.startswith("rtx"):
            return "trtllm-gen"
        return "flashmla" if is_mla else "trtllm-xqa"
    if source == "flash_attention" and gpu.architecture != "Hopper":
        return "flashinfer"
    return SOURCES.get(source)


def _table(rows, gpu: Gpu, engine: str, source: str, family: str, kernel: str, eight_bit: bool) -> MeasuredTable:
    heads, kv_heads = rows.num_heads.to_numpy(float), rows.num_key_value_heads.to_numpy(float)
    width, window = rows.head_dim.to_numpy(float), rows.window_size.to_numpy(float)
    context, seconds = rows.context.to_numpy(float), rows.latency.to_numpy(float) * 1e-3
    element = 1 if eight_bit else 2
    mla = kernel == "mla"
    case = AttentionCase(
        batch=rows.batch_size.to_numpy(float),
        n_heads=heads,
        n_kv_heads=kv_heads,
        context_tokens=np.where(window > 0, np.minimum(context, window), context),
        query_tokens=1,
        entry_bytes=576 * element * np.ones(len(rows)) if mla else 2 * width * element,
        flop_per_pair=2 * (576 + 512) * np.ones(len(rows)) if mla else 4 * width,
        value_elements=width,
        query_output_elements=1088 * np.ones(len(rows)) if mla else 2 * width,
        eight_bit=np.full(len(rows), eight_bit),
        history_tokens=np.where(window > 0, context, 0),
    )
    limit = FAMILIES[family].max_group
    large = case.cache_bytes > 4 * machine(gpu).l2_bytes
    rate = case.cache_bytes / seconds / gpu.memory_bandwidth_bytes_per_s
    rules = {
        "window": window > 0,
        "head_dim 192": width == 192,
        "group": heads / kv_heads > limit if limit and not mla else np.zeros(len(rows), bool),
        "spike": _spikes(np.stack([heads, kv_heads, width, window, case.batch]), seconds),
        "too fast": large & (rate > 1.05),
    }
    out = np.logical_or.reduce(list(rules.values()))
    windowed = (window > 0) & ~np.logical_or.reduce([mask for name, mask in rules.items() if name != "window"])
    make = {"gpu": gpu, "engine": engine, "source": source, "family": family, "kernel": kernel, "eight_bit": eight_bit}
    table = MeasuredTable(
        **make,
        case=take(case, ~out),
        seconds=seconds[~out],
        left_out={name: int(np.sum(mask)) for name, mask in rules.items() if np.any(mask)},
        rows_left_out=MeasuredTable(**make, case=take(case, out), seconds=seconds[out]) if np.any(out) else None,
        windowed=Windowed(
            case=take(case, windowed),
            seconds=seconds[windowed],
            window_tokens=window[windowed],
            beyond=(context > window)[windowed],
        )
        if np.any(windowed)
        else None,
    )
    return MeasuredTable(**{**table.__dict__, "table_rule": _table_rule(table)})


def workstation(gpu: Gpu) -> bool:
    """Whether it is not one of the GPUs that inference engines tune MLA for."""
    return gpu.slug.startswith(("a100", "l40", "rtx"))


def _spikes(groups: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Rows are sorted by context within a group."""
    same = np.all(groups[:, 1:] == groups[:, :-1], axis=0)
    before, after = np.full(len(seconds), np.nan), np.full(len(seconds), np.nan)
    before[1:][same] = seconds[:-1][same]
    after[:-1][same] = seconds[1:][same]
    return seconds > 1.8 * np.fmax(np.nan_to_num(before, nan=np.inf), np.nan_to_num(after, nan=np.inf))


def _table_rule(table: MeasuredTable) -> str | None:
    case, seconds, gpu = table.case, table.seconds, table.gpu
    if len(seconds) < 200:
        return "small"
    if table.engine == "trtllm 1.0.0" or (
        table.engine.startswith("trtllm") and table.kernel == "mla" and workstation(gpu)
    ):
        return "listed"
    large = case.cache_bytes > 4 * machine(gpu).l2_bytes
    rate = case.cache_bytes / seconds / gpu.memory_bandwidth_bytes_per_s
    if np.any(large) and np.median(rate[large]) > 1.02:
        return "beats HBM"
    if np.median(seconds[case.cache_bytes < 1e6]) > 60e-6:
        return "eager"
    big = case.cache_bytes > 200e6
    bound = roofline_s(case, machine(gpu), NUMPY)
    if np.any(big) and np.median(bound[big] / seconds[big]) < 0.25:
        return "untuned"
    return None

"""What no fit is made on, judged with the model as it is: windows, several query tokens, DeepSeek Sparse Attention.

    windows        decode rows with a window: the values of the same kernel's fit on 24 points without any, and its
                   interval as `predict` widens it
    query tokens   FlashAttention runs decode and prefill with one kernel, so its shortest prefills are calls of 16 to
                   128 query tokens. Nothing is cached before them; the model counts every pair, causal or not
    index scores   one layer's indexer call alone (SGLang, DeepSeek-V4's: 64 heads of 128, an fp8 key for four tokens),
                   for 1 and for several query tokens, as `estimate` times it: with the GPU's packaged MLA calibration
    modules        a whole attention layer: `estimate`'s attention, index scores, top k and projections of
                   DeepSeek-V3.2; and DeepSeek-V3's dense MLA beside it, which tells what the selection adds. Of each
                   table MODULE_ROWS rows, drawn by a fixed seed

Errors of modules hold what surrounds attention as well: norms, rotary embedding and cache writes are in the
measurement and not in the sum.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from accuracy_judge import Judged, interval_of, relative
from measured_tables import GPUS, package_root

from kvcalc.api import estimate, load_calibrations, load_gpu
from kvcalc.timing.attention_time import AttentionCase, Machine, machine
from kvcalc.timing.calibrated import BOUNDARIES_BYTES, UNSEEN_SCALE, Interval, choose
from kvcalc.timing.calibration.fit import predict_s
from kvcalc.timing.families import FAMILIES

FLASH_ATTENTION = ("fa3", "vllm_flash_attn_fa3", "vllm_flash_attn_fa2", "vllm_flash_attn", "flash_attention")
MAX_QUERY_TOKENS = 128
INDEX_QUERY_TOKENS = 16
INDEX_HEADS, INDEX_WIDTH, INDEX_KEY_BYTES, INDEX_RATIO = 64, 128, 132, 4
SELECTED_TOKENS = 2048
MODULE_ROWS = 300
MODULE_PARTS = ("attention", "index scores", "top k", "projections")
MODULES = {
    "DSA module": ("deepseek-v3.2", "dsa_generation_module_perf.parquet", "deepseek-ai/DeepSeek-V3.2"),
    "MLA module": ("deepseek-v3", "mla_generation_module_perf.parquet", "deepseek-ai/DeepSeek-V3"),
}
FORMATS = {"bfloat16": "bf16", "fp8": "fp8"}
PRODUCTS = {"bfloat16": "bf16", "fp8_block": "fp8_block"}
NOT_JUDGED = {
    "several query tokens on a cache": "every decode table has one query token, every context table no cached prefix",
    "several query tokens of MLA": "context tables of MLA are of the expanded form, which decode does not run",
    "attention over a selection alone": "glm5_dsa_attn_module and glm5_mqa_logits_module time the prefill kernels "
    "(flash_mla_sparse_fwd, fp8_mqa_logits on keys end to end), not those of a decode step",
    "top k alone": "glm5_topk_module is of the prefill path and 0 where nothing is selected",
    "MiniMax-M3, DeepSeek-V4, GLM-5.2's shared index": "tables of whole modules of models with other parts around "
    "attention; DeepSeek-V4's compressed attention has no time model",
    "modules with nvfp4 products": "left out: their error would be the products'",
}


def kinds(judged: list[tuple[Judged, Interval]]) -> list[dict]:
    """A row for each kind and group: tables, rows, errors and how many the interval holds."""
    found: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for each in (_windows(judged), _queries(judged), _index_scores(), _modules()):
        for kind, group, errors, inside in each:
            if len(errors):
                found.setdefault((kind, group), []).append((errors, inside))
    return [_row(kind, group, tables) for (kind, group), tables in found.items()]


Errors = tuple[str, str, np.ndarray, np.ndarray]
"""Kind, group, log errors (measured over expected) and whether each row is in the interval."""


def _row(kind: str, group: str, tables: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    errors, inside = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    return {
        "kind": kind,
        "group": group,
        "tables": len(tables),
        "rows": len(errors),
        "mean": float(np.mean(relative(errors))),
        "median": float(np.median(relative(errors))),
        "p90": float(np.quantile(relative(errors), 0.9)),
        "bias": float(np.expm1(-np.median(errors))),
        "coverage": float(np.mean(inside)),
    }


def _inside(errors: np.ndarray, cache_bytes: np.ndarray, interval: Interval) -> np.ndarray:
    regime = np.searchsorted(BOUNDARIES_BYTES, cache_bytes, side="right")
    wide = interval.scaled(UNSEEN_SCALE)
    return (np.array(wide.low)[regime] <= np.exp(errors)) & (np.exp(errors) <= np.array(wide.high)[regime])


def _windows(judged: list[tuple[Judged, Interval]]) -> Iterator[Errors]:
    for each, shape in judged:
        table, rows = each.table, each.table.windowed
        if rows is None:
            continue
        expected = predict_s(rows.case, machine(table.gpu), each.kernel, each.fits[0].values)
        errors = np.log(rows.seconds) - np.log(expected)
        inside = _inside(errors, np.asarray(rows.case.cache_bytes), interval_of(each, 0, shape))
        for name, member in (("context within it", ~rows.beyond), ("context beyond it", rows.beyond)):
            yield f"window, {name}", table.family, errors[member], inside[member]


def _queries(judged: list[tuple[Judged, Interval]]) -> Iterator[Errors]:
    for each, shape in judged:
        table = each.table
        if table.source not in FLASH_ATTENTION or table.kernel == "mla":
            continue
        case, seconds = _prefills(each)
        errors = np.log(seconds) - np.log(predict_s(case, machine(table.gpu), each.kernel, each.fits[0].values))
        inside = _inside(errors, np.asarray(case.cache_bytes), interval_of(each, 0, shape))
        for tokens in sorted({int(value) for value in case.query_tokens}):
            member = case.query_tokens == tokens
            yield f"{tokens} query tokens, none cached", table.family, errors[member], inside[member]


def _prefills(judged: Judged) -> tuple[AttentionCase, np.ndarray]:
    """Short prefills of the kernel that decodes, with the head widths and groups that its decode table has."""
    table = judged.table
    engine, version = table.engine.split()
    path = _system(table.gpu.slug) / "attention" / engine / version / "context_attention_perf.parquet"
    rows = _read(path)
    width = "fp8" if table.eight_bit else "bfloat16"
    rows = rows[(rows.kernel_source == table.source) & (rows.kv_cache_dtype == width)]
    rows = rows[(rows.isl > 1) & (rows.isl <= MAX_QUERY_TOKENS) & (rows.head_dim != 192) & (rows.latency > 0)]
    if "window_size" in rows:
        rows = rows[rows.window_size.fillna(0) == 0]
    head_dim = rows.head_dim.to_numpy(float)
    case = AttentionCase(
        batch=rows.batch_size.to_numpy(float),
        n_heads=rows.num_heads.to_numpy(float),
        n_kv_heads=rows.num_key_value_heads.to_numpy(float),
        context_tokens=rows.isl.to_numpy(float),
        query_tokens=rows.isl.to_numpy(float),
        entry_bytes=2 * head_dim * (1 if table.eight_bit else 2),
        flop_per_pair=4 * head_dim,
        value_elements=head_dim,
        query_output_elements=2 * head_dim,
        eight_bit=np.full(len(rows), table.eight_bit),
    )
    return case, rows.latency.to_numpy(float) * 1e-3


def _index_scores() -> Iterator[Errors]:
    for slug in GPUS.values():
        path = _system(slug) / "sparse_attention" / "sglang" / "0.5.14" / "dsv4_paged_mqa_logits_module_perf.parquet"
        calibrated = _packaged(slug) if path.exists() else None
        if calibrated is None:
            continue
        rows = _read(path)
        rows = rows[(rows.isl <= INDEX_QUERY_TOKENS) & (rows.isl + rows.step >= INDEX_RATIO) & (rows.latency > 0)]
        case = AttentionCase(
            batch=rows.batch_size.to_numpy(float),
            n_heads=INDEX_HEADS,
            n_kv_heads=1,
            context_tokens=(rows.isl + rows.step).to_numpy() // INDEX_RATIO,
            query_tokens=rows.isl.to_numpy(float),
            entry_bytes=INDEX_KEY_BYTES,
            flop_per_pair=2 * INDEX_WIDTH,
            value_elements=1,
            query_output_elements=INDEX_WIDTH,
            eight_bit=True,
        )
        predict, interval = calibrated
        errors = np.log(rows.latency.to_numpy(float) * 1e-3) - np.log(predict(case))
        inside = _inside(errors, np.asarray(case.cache_bytes, float), interval)
        large = np.asarray(case.cache_bytes, float) > BOUNDARIES_BYTES[1]
        one = case.query_tokens == 1
        for name, member in (
            ("1 query token, keys up to 20 MB", one & ~large),
            ("1 query token, keys above 20 MB", one & large),
            (f"4 to {INDEX_QUERY_TOKENS} query tokens, keys up to 20 MB", ~one & ~large),
            (f"4 to {INDEX_QUERY_TOKENS} query tokens, keys above 20 MB", ~one & large),
        ):
            yield "index scores", name, errors[member], inside[member]


def _packaged(slug: str) -> tuple[Callable[[AttentionCase], np.ndarray], Interval] | None:
    """How `estimate` times index scores on a GPU beside an 8-bit cache, where it is calibrated."""
    gpu = load_gpu(slug)
    kernel = choose("mla", shared_heads=True, eight_bit=True, gpu=gpu, calibrations=load_calibrations(gpu))
    if not kernel.fitted:
        return None
    device: Machine = kernel.machine
    family = FAMILIES[kernel.family.name].kernels["mla"]
    return lambda case: predict_s(case, device, family, kernel.values), kernel.interval


def _modules() -> Iterator[Errors]:
    for kind, (model, name, stated) in MODULES.items():
        for slug in GPUS.values():
            for path in sorted(_system(slug).rglob(name)):
                rows = _read(path)
                rows = rows[(rows.model == stated) & (rows.latency > 0)]
                for (width, products), some in rows.groupby(["kv_cache_dtype", "gemm_type"]):
                    if products in PRODUCTS:
                        some = some.sample(min(len(some), MODULE_ROWS), random_state=0)
                        yield from _module(kind, model, slug, path.parts[-3], some, FORMATS[width], PRODUCTS[products])


def _module(kind: str, model: str, slug: str, engine: str, rows, kv_dtype: str, weights_dtype: str) -> Iterator[Errors]:
    expected, low, high = [], [], []
    for row in rows.itertuples():
        found = estimate(
            model,
            gpu=slug,
            tp=128 // row.num_heads,
            batch=row.batch_size,
            context_tokens=row.isl + row.step,
            kv_dtype=kv_dtype,
            weights_dtype=weights_dtype,
        )
        time = found.predictions["decode"]
        if time.unknown:
            return
        layers = len(found.model.layers)
        parts = [part for part in time.parts if part.name in MODULE_PARTS]
        if not {"attention", "projections"} <= {part.name for part in parts}:
            raise SystemExit(f"the step's parts have other names now: {', '.join(part.name for part in time.parts)}")
        expected.append(sum(part.seconds for part in parts) / layers)
        low.append(sum(part.seconds * part.low for part in parts) / layers)
        high.append(sum(part.seconds * part.high for part in parts) / layers)
    measured = rows.latency.to_numpy(float) * 1e-3
    errors = np.log(measured) - np.log(np.array(expected))
    inside = (np.array(low) <= measured) & (measured <= np.array(high))
    beyond = (rows.isl + rows.step).to_numpy() > SELECTED_TOKENS
    for name, member in (("context up to 2,048", ~beyond), ("context above 2,048", beyond)):
        yield f"{kind}, {name}", f"{engine}, {weights_dtype} products", errors[member], inside[member]


def _system(slug: str) -> Path:
    return package_root() / "data" / next(system for system, name in GPUS.items() if name == slug)


def _read(path: Path):
    import pyarrow.parquet as parquet

    return parquet.read_table(path).to_pandas()

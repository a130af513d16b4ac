"""What no fit is made on, judged with the model as it is: windows, several query tokens, DeepSeek Sparse Attention.

    windows        decode rows with a window: the values of the same kernel's fit on 24 points without any, and its
                   interval as `predict` widens it
    query tokens   FlashAttention runs decode and prefill with one kernel, so its shortest prefills are calls of 16 to
                   128 query tokens. Nothing is cached before them; the model counts every pair, causal or not
    index scores   one layer's indexer call alone (SGLang and vLLM, DeepSeek-V4's: 64 heads of 128, an fp8 key for four
                   tokens), for 1 and for several query tokens, as `estimate` times it
    top k          one layer's choice of 2,048 tokens (SGLang, GLM-5's), of scores that are nearly equal and of scores
                   that are well parted
    modules        a whole attention layer: `estimate`'s attention, index scores, top k, indexer and projections of
                   DeepSeek-V3.2; and DeepSeek-V3's dense MLA beside it, which tells what the selection adds. Of each
                   table MODULE_ROWS rows, drawn by a fixed seed, with the kernels of the table's engine

Errors of modules hold what surrounds attention as well: norms, rotary embedding and cache writes are in the
measurement and not in the sum.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from accuracy_judge import Judged, interval_of, relative
from measured_tables import GPUS, package_root

from kvcalc.api import estimate, load_gpu
from kvcalc.timing.attention_time import AttentionCase, machine
from kvcalc.timing.calibrated import BOUNDARIES_BYTES, UNSEEN_SCALE, Interval
from kvcalc.timing.calibration.arrays import NUMPY
from kvcalc.timing.calibration.fit import predict_s
from kvcalc.timing.parts import LAUNCH_S
from kvcalc.timing.selection import TOP_K_ENDS, index_kernel, index_time, top_k_s

FLASH_ATTENTION = ("fa3", "vllm_flash_attn_fa3", "vllm_flash_attn_fa2", "vllm_flash_attn", "flash_attention")
MAX_QUERY_TOKENS = 128
FEW_QUERY_TOKENS = 16
SET_ON, SET_SHARE = ("h100-sxm5-80gb", "b200-sxm-180gb"), 5
"""GPUs on whose rows the form of kvcalc.timing.selection was worked out, and of which every fifth row of index scores
and top k set its values: those rows are not judged, and no DSA module of these GPUs."""
WINDOWS_SET_ON, WINDOWS_SHARE, WINDOW_FAMILIES = "h100-sxm5-80gb", 4, ("fa3-vllm", "trtllm-xqa")
"""Every fourth row with a window, of the tables that the shares in kvcalc.timing.schedule were set on: not judged."""
INDEX_HEADS, INDEX_WIDTH, INDEX_KEY_BYTES, INDEX_RATIO = 64, 128, 132, 4
SELECTED_TOKENS = 2048
MODULE_ROWS = 300
MODULE_PARTS = ("attention", "index scores", "top k", "indexer", "projections")
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
    "top k of nothing": "glm5_topk_module states 0 where nothing is selected",
    "MiniMax-M3, DeepSeek-V4, GLM-5.2's shared index": "tables of whole modules of models with other parts around "
    "attention; DeepSeek-V4's compressed attention has no time model",
    "modules with nvfp4 products": "left out: their error would be the products'",
}


def kinds(judged: list[tuple[Judged, Interval]]) -> list[dict]:
    """A row for each kind and group: tables, rows, errors and how many the interval holds."""
    found: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for each in (_windows(judged), _queries(judged), _index_scores(), _top_k(), _modules()):
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
        judged_rows = np.ones(len(errors), bool)
        if table.gpu.slug == WINDOWS_SET_ON and table.family in WINDOW_FAMILIES:
            judged_rows[::WINDOWS_SHARE] = False
        for name, member in (("context within it", ~rows.beyond), ("context beyond it", rows.beyond & judged_rows)):
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
    for slug, engine, path in _selection_tables("dsv4_paged_mqa_logits_module_perf.parquet"):
        rows = _read(path)
        rows = rows[(rows.isl <= FEW_QUERY_TOKENS) & (rows.isl + rows.step >= INDEX_RATIO) & (rows.latency > 0)]
        if engine == "sglang" and slug in SET_ON:
            rows = rows[np.arange(len(rows)) % SET_SHARE != 0]
        gpu = load_gpu(slug)
        kernel = index_kernel(gpu)
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
        expected = index_time(case, machine(gpu), kernel, NUMPY).total_s
        large = np.asarray(case.cache_bytes, float) > BOUNDARIES_BYTES[1]
        yield from _by_queries("index scores", engine, rows, expected, kernel.ends, large, "keys")


def _top_k() -> Iterator[Errors]:
    for slug, engine, path in _selection_tables("glm5_topk_module_perf.parquet"):
        rows = _read(path)
        tokens = rows.isl + rows.step
        rows = rows[(rows.isl <= FEW_QUERY_TOKENS) & (tokens > SELECTED_TOKENS) & (rows.latency > 0)]
        if slug in SET_ON:
            rows = rows[np.arange(len(rows)) % SET_SHARE != 0]
        tokens = (rows.isl + rows.step).to_numpy(float)
        queries = (rows.batch_size * rows.isl).to_numpy(float)
        expected = LAUNCH_S + top_k_s(queries, tokens, SELECTED_TOKENS, machine(load_gpu(slug)).sms, NUMPY)
        large = 4 * queries * tokens > BOUNDARIES_BYTES[1]
        yield from _by_queries("top k", engine, rows, expected, TOP_K_ENDS, large, "scores")


def _selection_tables(name: str) -> Iterator[tuple[str, str, Path]]:
    for slug in GPUS.values():
        for path in sorted((_system(slug) / "sparse_attention").rglob(name)):
            yield slug, path.parts[-3], path


def _by_queries(
    kind: str, engine: str, rows, expected: np.ndarray, ends: tuple[float, float], large: np.ndarray, what: str
) -> Iterator[Errors]:
    ratio = rows.latency.to_numpy(float) * 1e-3 / expected
    errors, inside = np.log(ratio), (ends[0] <= ratio) & (ratio <= ends[1])
    one = rows.isl.to_numpy() == 1
    for name, member in (
        (f"1 query token, {what} up to 20 MB", one & ~large),
        (f"1 query token, {what} above 20 MB", one & large),
        (f"4 to {FEW_QUERY_TOKENS} query tokens, {what} up to 20 MB", ~one & ~large),
        (f"4 to {FEW_QUERY_TOKENS} query tokens, {what} above 20 MB", ~one & large),
    ):
        yield kind, f"{engine}, {name}", errors[member], inside[member]


def _modules() -> Iterator[Errors]:
    for kind, (model, name, stated) in MODULES.items():
        for slug in GPUS.values():
            if kind == "DSA module" and slug in SET_ON:
                continue
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
            engine=engine,
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

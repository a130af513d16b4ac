"""The anchor of the accuracy report: aiconfigurator-core itself, called on the rows that kvcalc is judged on.

Its engine is compiled, but evaluates a single operation of a list (`EngineHandle.evaluate_ops_json`), in one of the
modes of `DatabaseMode`. Two say what it knows without a table of the kernel:

    SOL     its bound from the system file's bandwidth and peak; reads no table
    HYBRID  the table between its rows, and where there are none its bound over the utilisation of the nearest ones

EMPIRICAL and HYBRID need a table. Without any they refuse (PerfDataNotAvailableError), and with the packaged one they
read the very rows that are judged. So HYBRID is given what a fit of kvcalc is given: a systems folder whose table holds
the same 24 points and nothing else. Of the two it is the nearer one, and neither is made for so few.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measured_tables import GPUS, MeasuredTable, package_root

from kvcalc.timing.attention_time import machine

BANDWIDTH_SHARE, LATENCY_S = 0.8, 3e-6
"""mem_bw_empirical_scaling_factor and mem_empirical_constant_latency of aiconfigurator-core's systems/*.yaml."""
SYSTEMS = {slug: system for system, slug in GPUS.items()}


def constants_errors(table: MeasuredTable) -> np.ndarray:
    """Log errors of the constants that its system files state for what it has no table of: copies, norms.

    bytes / (0.8 bandwidth) + 3 us, or FLOPs / peak where that is more; none of its modes applies them to attention.
    """
    device, case = machine(table.gpu), table.case
    moved = (case.cache_bytes + case.query_output_bytes) / (BANDWIDTH_SHARE * device.bandwidth_bytes_per_s)
    bound = np.maximum(moved + LATENCY_S, case.flop / device.matrix_flop_per_s)
    return np.log(table.seconds) - np.log(bound)


def bound_errors(table: MeasuredTable) -> np.ndarray:
    """Log errors of the SOL mode on all rows."""
    with tempfile.TemporaryDirectory() as folder:
        return _errors(table, "SOL", _systems(folder, table, None))


def points_errors(table: MeasuredTable, points: np.ndarray) -> np.ndarray:
    """Log errors of the HYBRID mode that has the points as its table; NaN where it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        return _errors(table, "HYBRID", _systems(folder, table, points))


def _systems(folder: str, table: MeasuredTable, points: np.ndarray | None) -> str:
    """A systems folder of this GPU alone, with a table of these points if there are any."""
    system = SYSTEMS[table.gpu.slug]
    shutil.copy(package_root() / f"{system}.yaml", folder)
    if points is not None:
        mla = table.kernel == "mla"
        engine, version = table.engine.split()
        home = Path(folder) / "data" / system / ("mla" if mla else "attention") / engine / version
        home.mkdir(parents=True)
        name = "generation_mla_perf.parquet" if mla else "generation_attention_perf.parquet"
        _frame(table, points, mla).to_parquet(home / name)
    return folder


def _frame(table: MeasuredTable, points: np.ndarray, mla: bool):
    """The points in the columns of its own tables."""
    import pandas

    case, engine = table.case, table.engine.split()
    width = "fp8" if table.eight_bit else "bfloat16"
    columns = {
        "framework": engine[0],
        "version": engine[1],
        "device": table.gpu.slug,
        "op_name": "mla_generation" if mla else "generation_attention",
        "kernel_source": table.source,
        "mla_dtype" if mla else "attn_dtype": "bfloat16",
        "kv_cache_dtype": width,
        "num_heads": case.n_heads[points].astype(int),
        "batch_size": case.batch[points].astype(int),
        "isl": 1,
        "step": case.context_tokens[points].astype(int) - 1,
        "latency": table.seconds[points] * 1e3,
    }
    if mla:
        columns["tp_size"] = 1
    else:
        columns |= {
            "num_key_value_heads": case.n_kv_heads[points].astype(int),
            "head_dim": case.value_elements[points].astype(int),
            "beam_width": 1,
            "window_size": 0,
        }
    return pandas.DataFrame(columns)


def _errors(table: MeasuredTable, mode: str, folder: str) -> np.ndarray:
    evaluate = _evaluator(table, mode, folder)
    case = table.case
    rows = zip(
        case.n_heads.astype(int).tolist(),
        case.n_kv_heads.astype(int).tolist() if np.ndim(case.n_kv_heads) else [1] * len(table.seconds),
        case.value_elements.astype(int).tolist(),
        case.batch.astype(int).tolist(),
        case.context_tokens.astype(int).tolist(),
        strict=True,
    )
    expected_ms = np.array([evaluate(*row) for row in rows])
    return np.log(table.seconds) - np.log(expected_ms * 1e-3)


def _evaluator(table: MeasuredTable, mode: str, folder: str) -> Callable[[int, int, int, int, int], float]:
    """Milliseconds of a call from heads, KV heads, head width, batch and context."""
    from aiconfigurator_core.sdk import common, engine, operations, perf_database

    logging.getLogger("aiconfigurator_core").setLevel(logging.CRITICAL)
    backend, version = table.engine.split()
    database = perf_database.get_database_view(
        SYSTEMS[table.gpu.slug], backend, version, systems_paths=[folder], allow_missing_data=True, database_mode=mode
    )
    handle = engine.EngineHandle.for_database(database, systems_path=folder)
    width = common.KVCacheQuantMode["fp8" if table.eight_bit else "bfloat16"]
    spelled: dict[tuple[int, int, int], str] = {}

    def operation(heads: int, kv_heads: int, head_dim: int) -> str:
        if table.kernel == "mla":
            made = operations.GenerationMLA("attention", 1.0, heads, width)
        else:
            made = operations.GenerationAttention(
                "attention", 1.0, heads, kv_heads, width, 0, head_dim, lane_order=[table.source]
            )
        return engine.build_ops_json([made])

    def evaluate(heads: int, kv_heads: int, head_dim: int, batch: int, context: int) -> float:
        key = (heads, kv_heads, head_dim)
        if key not in spelled:
            spelled[key] = operation(*key)
        try:
            found = handle.evaluate_ops_json(spelled[key], is_context=False, batch_size=batch, s=context)
        except RuntimeError:
            return float("nan")
        return float(found[0][1])

    return evaluate

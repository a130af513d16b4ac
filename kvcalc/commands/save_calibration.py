"""`kvcalc profile --save-calibration`: a calibration from the cases that profile has just timed."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from kvcalc.architecture.attention import LatentAttention
from kvcalc.commands.output import warn, write_file
from kvcalc.commands.predict import require_numpy
from kvcalc.errors import UsageError

if TYPE_CHECKING:
    from kvcalc.profiling.results import Measured, Results

FAMILY_OF_KERNEL = {
    "flashmla": "flashmla",
    "flashinfer": "flashinfer",
    "triton-mla": "kvcalc",
    "triton-gqa": "kvcalc",
}
"""Kernels of `profile` and the family whose form they have; torch's kernels split no requests and have none."""
HEADER = (
    "attention,n_heads,n_kv_heads,head_dim,kv_lora_rank,qk_rope_head_dim,batch,context_tokens,query_tokens,kv_dtype,"
    "window_tokens,latency_us"
)


def save_calibration(results: "Results", path: Path, *, date: str) -> None:
    """Fit the family with most timed decode cases and write its calibration. Raises UsageError where there is none."""
    require_numpy(fitting=True)
    from kvcalc.timing.calibration.own import calibrate
    from kvcalc.timing.calibration.store import to_yaml
    from kvcalc.timing.calibration.table import read_table

    if results.gpu is None:
        raise UsageError("a calibration is of a GPU that kvcalc has data on, and this device is none")
    family, text = points_csv(results)
    table = read_table(text, source="the profiled cases", points=True)
    made, notes = calibrate(
        table, results.gpu, family=family, source=f"kvcalc profile, {len(table)} cases, cold L2", date=date
    )
    warn(notes)
    write_file(path, to_yaml(made))


def points_csv(results: "Results") -> tuple[str, str]:
    """The family with most usable cases, and its cases as a table of points."""
    usable = [each for each in results.timed if _usable(each)]
    if not usable:
        raise UsageError(
            "no timed decode case to calibrate from",
            hint=f"profile one of the kernels {', '.join(FAMILY_OF_KERNEL)} on a GPU",
        )
    families = Counter(FAMILY_OF_KERNEL[each.kernel] for each in usable)
    family = families.most_common(1)[0][0]
    rows = [_row(each) for each in usable if FAMILY_OF_KERNEL[each.kernel] == family]
    return family, "\n".join([HEADER, *rows])


def _usable(measured: "Measured") -> bool:
    case = measured.planned.case
    ragged = any(length != case.context_tokens for length in case.seq_lens)
    return measured.kernel in FAMILY_OF_KERNEL and case.phase == "decode" and not ragged


def _row(measured: "Measured") -> str:
    case = measured.planned.case
    attention = case.attention
    assert measured.timing is not None
    if isinstance(attention, LatentAttention):
        dims = f"mla,{attention.n_heads},,,{attention.kv_lora_rank},{attention.qk_rope_head_dim}"
    else:
        dims = f"gqa,{attention.n_heads},{attention.n_kv_heads},{attention.head_dim},,"
    window = "" if isinstance(attention, LatentAttention) else attention.window_tokens or ""
    size = f"{case.batch},{case.context_tokens},{case.query_tokens},{case.kv_dtype},{window}"
    return f"{dims},{size},{measured.timing.median_s * 1e6:.4f}"

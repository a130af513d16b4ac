"""What issue 5 aimed at and what came out: the accuracy report's tables by group, coverage, and transfer."""

import numpy as np

TRANSFERS = {"h200-sxm-141gb": "h100-sxm5-80gb", "b300-sxm-270gb": "b200-sxm-180gb"}
"""GPUs that are predicted from another's calibration."""
GROUPS = {
    "MLA, bf16 cache, Hopper": (0.05, 0.02, lambda row: is_mla(row) and bf16(row) and hopper(row)),
    "MLA, bf16 cache, Blackwell": (0.06, 0.04, lambda row: is_mla(row) and bf16(row) and blackwell(row)),
    "MLA, fp8 cache, Hopper": (0.08, 0.04, lambda row: is_mla(row) and not bf16(row) and hopper(row)),
    "MLA, fp8 cache, Blackwell": (0.08, 0.04, lambda row: is_mla(row) and not bf16(row) and blackwell(row)),
    "GQA, MHA, MQA, bf16 cache, Hopper": (0.06, 0.04, lambda row: not is_mla(row) and bf16(row) and hopper(row)),
    "GQA, MHA, MQA, bf16 cache, Blackwell": (0.06, 0.04, lambda row: not is_mla(row) and bf16(row) and blackwell(row)),
    "GQA, MHA, MQA, fp8 cache, Hopper": (0.06, 0.04, lambda row: not is_mla(row) and not bf16(row) and hopper(row)),
    "GQA, MHA, MQA, fp8 cache, Blackwell": (
        0.06,
        0.04,
        lambda row: not is_mla(row) and not bf16(row) and blackwell(row),
    ),
    "other GPUs, all": (None, None, lambda row: not hopper(row) and not blackwell(row)),
}
"""Groups of tables with the errors that are aimed at: all rows, rows above 200 MB. Families of tuned kernels only."""
TUNED = ("flashmla", "fa3", "fa3-vllm", "trtllm-gen", "trtllm-xqa")


def is_mla(row: dict) -> bool:
    return row["kernel"] == "mla"


def bf16(row: dict) -> bool:
    return row["cache"] == "bf16"


def hopper(row: dict) -> bool:
    return row["gpu"].startswith(("h100", "h200")) and row["family"] in TUNED


def blackwell(row: dict) -> bool:
    return row["gpu"].startswith(("b200", "b300", "gb200", "gb300")) and row["family"] in TUNED


def targets(rows: list[dict]) -> dict:
    """What was aimed at, and what came out: over the tables of a group the median and the worst."""
    found: dict = {"errors": []}
    for name, (aim, aim_large, member) in GROUPS.items():
        tables = [row["fitted"] for row in rows if member(row)]
        if tables:
            means = [table["mean"] for table in tables]
            large = [table["mean_above_200_mb"] for table in tables if table["mean_above_200_mb"] is not None]
            found["errors"].append(
                {
                    "group": name,
                    "tables": len(tables),
                    "aim": aim,
                    "median": float(np.median(means)),
                    "worst": max(means),
                    "aim_above_200_mb": aim_large,
                    "median_above_200_mb": float(np.median(large)),
                    "worst_above_200_mb": max(large),
                }
            )
    coverage = np.array([row["interval"]["coverage"] for row in rows])
    weights = np.array([row["rows"] for row in rows], float)
    found["coverage"] = {
        "claimed": 0.90,
        "mean_of_tables": float(np.mean(coverage)),
        "pooled_rows": float(np.average(coverage, weights=weights)),
        "lowest": float(np.min(coverage)),
        "highest": float(np.max(coverage)),
        "tables_within_80_and_97": int(np.sum((coverage >= 0.80) & (coverage <= 0.97))),
        "tables": len(rows),
        "median_half_width_above_200_mb": median([row["interval"]["half_width_above_200_mb"] for row in rows]),
        "tuned_median_half_width_above_200_mb": median(
            [row["interval"]["half_width_above_200_mb"] for row in rows if hopper(row) or blackwell(row)]
        ),
    }
    moved = [row for row in rows if row["transfer"] and row["family"] in TUNED]
    found["transfer"] = [
        {
            "to": gpu,
            "from": source,
            "kernel": "mla" if mla else "gqa and mha",
            "tables": len(those),
            "median_above_200_mb": median([row["transfer"]["mean_above_200_mb"] for row in those]),
            "worst_above_200_mb": max(row["transfer"]["mean_above_200_mb"] for row in those),
        }
        for gpu, source in TRANSFERS.items()
        for mla in (True, False)
        if (those := [row for row in moved if row["gpu"] == gpu and is_mla(row) is mla])
    ]
    return found


def median(values: list) -> float | None:
    """The median of those that are known."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None

"""The accuracy report as Markdown, from the JSON of `accuracy.py`."""

import numpy as np

HEAD = (
    "GPU | engine | kernel | cache | rows | roofline | anchor: bound | anchor: constants | anchor: 24 points, median | "
    "family alone | **24 points** | shipped | transfer | covered | half-width"
)


def page(result: dict) -> str:
    """All tables, what is left out, and the targets' figures."""
    lines = [
        "# Accuracy of the decode attention model",
        "",
        f"Made by `python benchmarks/accuracy.py` on {result['date']} from {result['measurements']}. Mean absolute",
        "error relative to the measurement, all rows / rows above 200 MB of cache, on rows that the fit has not seen;",
        f"median of {result['seeds']} draws of {result['points']} points. Covered: share of unseen rows in the 90 %",
        "interval; half-width: of the interval above 200 MB, median. Pictures: docs/accuracy.",
        "",
        *_targets(result["targets"]),
        "## Tables",
        "",
        *_anchor(result["tables"]),
        f"| {HEAD} |",
        "|" + "---|" * (HEAD.count("|") + 1),
    ]
    lines += [_row(row) for row in result["tables"]]
    lines += ["", *_kinds(result), "## By cache size, 24 points, median of the draws", ""]
    lines += [_regime_head(result), _rule(result)]
    lines += [_regimes(row) for row in result["tables"]]
    lines += ["", "## Every draw: all rows / above 200 MB", ""]
    for row in result["tables"]:
        draws = ", ".join(
            f"{_percent(draw['mean'])}/{_percent(draw['mean_above_200_mb'])}" for draw in row["fitted_by_seed"]
        )
        lines.append(f"- {_name(row)}: {draws}")
    lines += ["", "## Rows left out", ""]
    lines += [f"- **{name}**: {text}" for name, text in result["row_rules"].items()]
    lines += ["", "| table | left out | 24 points | with them included |", "|---|---|---|---|"]
    for row in result["tables"]:
        if row["with_rows_left_out"]:
            counts = ", ".join(f"{name} {count:,}" for name, count in row["left_out"].items())
            lines.append(f"| {_name(row)} | {counts} | {_two(row['fitted'])} | {_two(row['with_rows_left_out'])} |")
    lines += ["", "## Tables left out", ""]
    lines += [f"- **{name}**: {text}" for name, text in result["table_rules"].items()]
    lines += ["", "| table | rows | rule | 24 points all the same |", "|---|---|---|---|"]
    for row in result["tables_left_out"]:
        fitted = row.get("refused") or (_two(row["fitted"]) if row.get("fitted") else "-")
        lines.append(f"| {_name(row)} | {row['rows']:,} | {row['rule']} | {fitted} |")
    for row in result["refused"]:
        lines.append(f"| {_name(row)} | | refused by the fit | {row['why']} |")
    return "\n".join(lines) + "\n"


def _targets(targets: dict) -> list[str]:
    lines = [
        "## Aimed at, and reached",
        "",
        "| tuned kernels, 24 points | tables | all rows: aim | median | worst | above 200 MB: aim | median | worst |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in targets["errors"]:
        cells = [
            row["group"],
            str(row["tables"]),
            *(_percent(row[key]) for key in ("aim", "median", "worst")),
            *(_percent(row[f"{key}_above_200_mb"]) for key in ("aim", "median", "worst")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| transferred, above 200 MB | tables | median | worst |", "|---|---|---|---|"]
    for row in targets["transfer"]:
        lines.append(
            f"| {row['kernel']}: {row['from']} to {row['to']} | {row['tables']} | "
            f"{_percent(row['median_above_200_mb'])} | {_percent(row['worst_above_200_mb'])} |"
        )
    cover = targets["coverage"]
    lines += [
        "",
        f"Interval, {_percent(cover['claimed'])} claimed: {_percent(cover['pooled_rows'])} of all unseen rows,"
        f" {_percent(cover['mean_of_tables'])} in the mean of tables ({_percent(cover['lowest'])} to"
        f" {_percent(cover['highest'])}; {cover['tables_within_80_and_97']} of {cover['tables']} tables between 80 and"
        f" 97 %); half-width above 200 MB {_percent(cover['median_half_width_above_200_mb'])} in the median of tables,"
        f" {_percent(cover['tuned_median_half_width_above_200_mb'])} of the tuned kernels'.",
        "",
    ]
    return lines


def _anchor(tables: list[dict]) -> list[str]:
    """What the anchor's columns are, and how it does over all tables."""
    found = {
        name: [
            float(np.median([row["anchor"][name][key] for row in tables if row["anchor"][name]]))
            for key in ("mean", "median")
        ]
        for name in ("bound", "constants", "points")
    }
    refused = sum(row["anchor"]["points_refused"] for row in tables)
    middle = {name: f"{_percent(mean)} (median error {_percent(median)})" for name, (mean, median) in found.items()}
    return [
        "Anchor: aiconfigurator-core itself on the same rows, called through its compiled engine. *Bound* is its SOL",
        "mode, the only one that answers without a table: EMPIRICAL and HYBRID refuse. *Constants* are the 0.8 of the",
        "bandwidth and 3 us of its system files, for what it has no table of. *24 points* is its HYBRID mode with a",
        "table of the first draw's 24 points and no other row, as a fit sees them: the median error, since a table of",
        "so few rows is extrapolated to thousands of times the measurement here and there. It is made for dense ones,",
        "and with its own it reads the rows that are judged.",
        "",
        f"Middle table, mean error: bound {middle['bound']}, constants {middle['constants']}, 24 points"
        f" {middle['points']}, with {refused:,} rows that it refuses.",
        "",
    ]


def _kinds(result: dict) -> list[str]:
    """What no fit is made on."""
    lines = [
        "## Windows, several query tokens, sparse attention",
        "",
        "Windows and query tokens: the values that 24 points of the same kernel's plain decode give, and its interval",
        "half as wide again. How a call with a window or more rows is cut is from the sources where they say it, and",
        "was worked out with rows of H100 and L40S in view and the errors of all; what an idle block and a further",
        "warp group cost was set on every fourth row with a window of H100, left out here. Index scores, top k and",
        "modules: as `estimate` times them. Their form was worked out on the tables of H100 and B200 with all rows in",
        "view, and their values were set on every fifth, left out here, as are the DSA modules of both; of the other",
        "GPUs the errors were seen, no rows. The intervals of index scores and top k were chosen with the errors of",
        "all tables in view: that they hold says little. Bias: median of predicted over measured, less 1.",
        "",
        "A module's measurement holds norms, rotary embedding, cache writes and what the engine adds around them; its",
        "prediction does not. At one request, of TensorRT-LLM's dense MLA modules that is 4 to 12 us, of vLLM's 40 us;",
        "of vLLM's DSA modules 40 to 130 us, of TensorRT-LLM's 10 to 40 us on B200 and 150 us on Hopper. With small",
        "batches it hardly grows, as launches do, not bytes or FLOPs. At 2,049 tokens TensorRT-LLM's DSA modules take",
        "longer than at 4,097. SGLang's take nearly as long at 257 tokens as at 2,049 with many requests, presumably",
        "since FlashMLA's index list has a fixed length; the prediction counts the tokens that there are.",
        "",
        "| kind | of | tables | rows | mean | median | p90 | bias | covered |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["kinds"], key=lambda row: (row["kind"].split(",")[0].lstrip("0123456789"), row["group"])):
        shares = " | ".join(_percent(row[key]) for key in ("mean", "median", "p90", "bias", "coverage"))
        lines.append(f"| {row['kind']} | {row['group']} | {row['tables']} | {row['rows']:,} | {shares} |")
    lines += ["", "Not judged:", ""]
    lines += [f"- **{name}**: {why}" for name, why in result["kinds_not_judged"].items()]
    return [*lines, ""]


def _name(row: dict) -> str:
    return f"{row['gpu']} {row['engine']} {row['kernel_source']} {row['kernel']} {row['cache']}"


def _row(row: dict) -> str:
    cells = [
        row["gpu"],
        f"{row['engine']} ({row['kernel_source']})",
        row["kernel"],
        row["cache"],
        f"{row['rows']:,}",
        _two(row["roofline"]),
        _two(row["anchor"]["bound"]),
        _two(row["anchor"]["constants"]),
        _two(row["anchor"]["points"], "median") if row["anchor"]["points"] else "refused",
        _two(row["family_alone"]),
        f"**{_two(row['fitted'])}**",
        _two(row["shipped"]) if row["shipped"] else "-",
        _two(row["transfer"]) if row["transfer"] else "-",
        _percent(row["interval"]["coverage"]),
        _percent(row["interval"]["half_width_above_200_mb"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _regime_head(result: dict) -> str:
    return "| table | " + " | ".join(result["tables"][0]["fitted"]["by_regime"]) + " |"


def _rule(result: dict) -> str:
    return "|---" * (1 + len(result["tables"][0]["fitted"]["by_regime"])) + "|"


def _regimes(row: dict) -> str:
    return f"| {_name(row)} | " + " | ".join(_percent(value) for value in row["fitted"]["by_regime"].values()) + " |"


def _two(numbers: dict, which: str = "mean") -> str:
    return f"{_percent(numbers[which])} / {_percent(numbers[f'{which}_above_200_mb'])}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"

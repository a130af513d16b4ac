"""The README's figures, told from the results in benchmarks/results/: nobody types a measured number there."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
README_WIDTH = 140


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def prose(text: str) -> str:
    """A paragraph, however it is broken into lines here."""
    unbroken = " ".join(text.split()).replace(" %", "\0%")
    return fill(unbroken, README_WIDTH, break_long_words=False, break_on_hyphens=False).replace("\0", " ") + "\n"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def table(head: Iterable[str], align: str, rows: Iterable[Iterable[str]]) -> str:
    """`align`: l or r for each column."""
    lines = [head, ("---:" if each == "r" else "---" for each in align), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


# --- time models ------------------------------------------------------------------------------------------------------


def claim() -> str:
    """The headline."""
    groups = read("accuracy.json")["targets"]["errors"]
    mla = next(each for each in groups if each["group"] == "MLA, bf16 cache, Hopper")
    return prose(f"""
        [Bytes and parameters are exact](#how-exact); [expected times](#how-accurate-is-it) of MLA decoding with a bf16
        cache on Hopper are {percent(mla["median_above_200_mb"])} off above 200 MB of cache and {percent(mla["median"])}
        over all sizes (mean error of the median table over unseen public measurements;
        {percent(mla["worst_above_200_mb"])} and {percent(mla["worst"])} of the worst), and every one carries an
        interval.
    """)


def accuracy() -> str:
    """Decode attention: errors by group, transfer, interval, and what is missed."""
    result = read("accuracy.json")
    targets, tables = result["targets"], result["tables"]
    judged = prose(f"""
        Judged on {sum(each["rows"] for each in tables):,} public measurements ({result["measurements"]}, {len(tables)}
        tables: GPU x engine x kernel x cache width) that its fits had not seen; mean absolute error, the median of 10
        draws of 24 points:
    """)
    parts = (judged, _groups(targets["errors"]), _others(tables), _transfer(targets["transfer"]))
    return "\n".join((*parts, _interval(targets["coverage"]), _missed(targets["errors"])))


def _groups(groups: list[Any]) -> str:
    head = ("24 points, tuned kernels", "tables", "all sizes: aim", "median table", "worst")
    head += ("cache above 200 MB: aim", "median table", "worst")
    keys = [key + size for size in ("", "_above_200_mb") for key in ("aim", "median", "worst")]
    rows = (
        (each["group"], str(each["tables"]), *("-" if each[key] is None else percent(each[key]) for key in keys))
        for each in groups
    )
    return table(head, "lrrrrrrr", rows)


def _others(tables: list[Any]) -> str:
    """Other ways to know the time, without a measurement, over the same rows."""

    def middle(of: Iterable[Any]) -> str:
        found = list(of)
        all_sizes, large = (median(each[name] for each in found) for name in ("mean", "mean_above_200_mb"))
        return f"{percent(all_sizes)} (above 200 MB {percent(large)})"

    return prose(f"""
        In the middle one of all tables kvcalc is {middle(each["fitted"] for each in tables)} off, the datasheet's
        roofline {middle(each["roofline"] for each in tables)}, and aiconfigurator without its tables
        {middle(each["anchor"]["bound"] for each in tables)}, or
        {middle(each["anchor"]["constants"] for each in tables)}
        with its constants for what it has no table of.
    """)


def _transfer(transfers: list[Any]) -> str:
    each = (
        f"{one['kernel'].upper().replace('AND', 'and')} from {one['from']} to {one['to']} "
        f"{percent(one['median_above_200_mb'])} (worst {percent(one['worst_above_200_mb'])})"
        for one in transfers
    )
    return prose(f"Without a measurement of the GPU, above 200 MB: {'; '.join(each)}.")


def _interval(coverage: Any) -> str:
    return prose(f"""
        The 90 % interval holds {percent(coverage["pooled_rows"])} of unseen rows ({percent(coverage["lowest"])} to
        {percent(coverage["highest"])} by table, {coverage["tables_within_80_and_97"]} of {coverage["tables"]} tables
        between 80 and 97 %); above 200 MB it is +-{percent(coverage["median_half_width_above_200_mb"])} wide in the
        median of tables, +-{percent(coverage["tuned_median_half_width_above_200_mb"])} of the tuned kernels'.
    """)


def _missed(groups: list[Any]) -> str:
    missed = [
        f"{each['group']} {where} {percent(each['median' + size], 2)} ({percent(each['aim' + size], 0)})"
        for each in groups
        for size, where in (("", "over all sizes"), ("_above_200_mb", "above 200 MB"))
        if each["aim" + size] is not None and each["median" + size] > each["aim" + size]
    ]
    return prose(f"""
        What the median table misses (aim): {"; ".join(missed) or "nothing"}. Single tables miss more, as the
        worst show.
    """)


def served() -> str:
    """The whole step, and the parts of it that are not attention."""
    groups = read("served.json")["groups"]
    stated, all_rows, experts = (groups[name] for name in ("weights' format stated", "all", "experts"))
    new_prompts = groups["stated, without Llama-3.1-8B on vLLM"]
    gemm, sent = read("gemm.json")["groups"]["all"], read("exchange.json")["groups"]
    reduce, exchange = (sent[f"{name}, GPUs with NVLink"]["mean"] for name in ("all-reduce", "all-to-all"))
    step = prose(f"""
        A whole served decode step (`--serving aggregated`; {stated["rows"]:,} served TPOT points of
        Llama-3.1-8B/70B and
        Qwen3-32B on B200, H100 and H200; [report](benchmarks/results/served.md)): mean error {percent(stated["mean"])},
        median {percent(stated["median"])} (roofline {percent(stated["roofline_mean"])}); with the points whose weight
        format is not stated, {percent(all_rows["mean"])} over {all_rows["rows"]:,}; without Llama-3.1-8B on vLLM, whose
        prompts look cached, {percent(new_prompts["mean"])}. {experts["rows"]:,} points of mixtures of experts: mean
        {percent(experts["mean"])}, median {percent(experts["median"])}.
    """)
    around = prose(f"""
        Around attention, products are timed by shape ({percent(gemm["large_mean"])} off on
        {gemm["large_rows"]:,} unseen
        large ones, roofline {percent(gemm["large_roofline_mean"])}: [report](benchmarks/results/gemm.md)) and exchanges
        by message size and link (all-reduce {percent(reduce)}, all-to-all {percent(exchange)} on GPUs with NVLink:
        [report](benchmarks/results/exchange.md)).
    """)
    return f"{step}\n{around}"


# --- measured here ----------------------------------------------------------------------------------------------------


def cpu() -> str:
    """The fastest MLA kernel in fp32 by heads, of the measured roofline."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS / "cpu").glob("deepseek-v3-h*-fp32.json")]
    runs.sort(key=lambda run: run["cases"][0]["n_heads"])
    head = ("heads a rank", "ceilings of the run", "kernel", "median", "p20 to p80", "measured over predicted")
    names, threads = ({str(run["environment"]["device"][key]) for run in runs} for key in ("name", "threads"))
    columns = (*head, "of the roofline", "the best of torch")
    return f"{', '.join(names)}, {', '.join(threads)} threads:\n\n{table(columns, 'rrlrrrrr', map(_fastest, runs))}"


def _fastest(run: Any) -> tuple[str, ...]:
    right = sorted((each for each in run["cases"] if each["correctness"]["passed"]), key=lambda each: each["median_s"])
    case, torch = right[0], next(each for each in right if each["kernel"].startswith("torch"))
    roofline_s = case["predicted"]["roofline_s"]
    read, product = (run["ceilings"][key] for key in ("read_bandwidth_bytes_per_s", "matmul_flop_per_s"))
    return (
        str(case["n_heads"]),
        f"{read / 1e9:.0f} GB/s, {product['fp32'] / 1e9:.0f} GFLOP/s",
        f"`{case['kernel']}`",
        f"{case['median_s'] * 1e3:.2f} ms",
        f"{percent((case['p80_s'] - case['p20_s']) / case['median_s'])} of it",
        f"{case['median_s'] / roofline_s:.2f}",
        percent(roofline_s / case["median_s"], 0),
        percent(roofline_s / torch["median_s"], 0),
    )


# --- judged by engines ------------------------------------------------------------------------------------------------


def judges() -> str:
    """How often engines' own code agrees."""
    rows = []
    for name, what in (
        ("vllm", "vLLM's planning code: groups, blocks, concurrency and the number for the log"),
        ("sglang", "SGLang's pool code: tokens, rows of windows, bytes of every tensor"),
        ("llama_cpp", "llama.cpp's log through llama-cpp-python: cells, layers and sizes of tiny models"),
        ("transformers", "tensors in the cache of transformers, for two lengths"),
    ):
        result = read(f"engine_judge_{name}.json")
        verdicts = result["verdicts"]
        versions = len({row["version"] for row in result["rows"]})
        others = sum(count for verdict, count in verdicts.items() if verdict not in ("equal", "different"))
        rows.append((what, str(versions), f"{verdicts['equal']:,}", str(verdicts.get("different", 0)), f"{others:,}"))
    return table(("engines' own code", "versions", "equal", "different", "refused or not there"), "lrrrr", rows)


BLOCKS = {"claim": claim, "accuracy": accuracy, "served": served, "cpu": cpu, "judges": judges}
"""What stands between `<!-- name -->` and `<!-- end -->`."""

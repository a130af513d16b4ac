"""How accurate is the time of an all-reduce, an all-to-all and an all-gather? aiconfigurator-core's tables.

    python benchmarks/exchange.py          report into benchmarks/results/exchange.json and .md
    python benchmarks/exchange.py --fit    print the constants anew, from a fifth of the rows

Needs the extras `[predict,validate]`. All-reduce: custom_allreduce tables of TensorRT-LLM, vLLM and SGLang, 2 to 8
GPUs, rows of CUDA graphs (eager rows time launches). All-to-all, all-gather and reduce-scatter: the NCCL tables. Their
message_size counts elements (2 bytes; NCCL's int8 rows 1): counted in bytes, 8 H200s would reduce at half of the rate
that NVIDIA's own nccl-tests reach. DeepEP's dispatch and combine are fitted to nothing.
"""

import argparse

import numpy as np
from measured_tables import GPUS, package_root
from pages import errors, publish, table

from kvcalc.api import load_gpu
from kvcalc.timing.exchange import all_gather_s, all_reduce_s, all_to_all_s, link_bytes_per_s, ranks_reached
from kvcalc.timing.gemm import machine_family

SAME_AS_SGLANG = {"sglang 0.5.6.post2"}
"""A copy of TensorRT-LLM's table under another name."""

LEAST_BYTES = 512
NCCL = {"alltoall": "all-to-all", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter"}
TIMES = {
    "all-reduce": all_reduce_s,
    "all-to-all": all_to_all_s,
    "all-gather": all_gather_s,
    "reduce-scatter": all_gather_s,
}


def load_rows():
    """All rows: what, on how many ranks, of how many bytes, in what time. A fifth is `fitted`."""
    import pandas

    root = package_root() / "data"
    frames = []
    for system, slug in GPUS.items():
        gpu = load_gpu(slug)
        for path in sorted((root / system / "comm").rglob("*_perf.parquet")):
            engine = f"{path.parts[-3]} {path.parts[-2]}"
            rows = pandas.read_parquet(path)
            if path.name == "custom_allreduce_perf.parquet" and engine not in SAME_AS_SGLANG:
                rows = rows[~rows.kernel_source.str.contains("eager")]
                rows = rows.assign(what="all-reduce", bytes=2 * rows.message_size)
            elif path.name == "nccl_perf.parquet":
                rows = rows[rows.op_name.isin(NCCL)]
                size = rows.nccl_dtype.map({"half": 2, "int8": 1})
                rows = rows.assign(what=rows.op_name.map(NCCL), bytes=size * rows.message_size)
            else:
                continue
            rows = rows[(rows.num_gpus <= 8) & (rows.bytes >= LEAST_BYTES) & (rows.latency > 0)]
            rows = rows.groupby(["what", "num_gpus", "bytes"], as_index=False).latency.median()
            frames.append(rows.assign(gpu=slug, family=machine_family(gpu), engine=engine, seconds=rows.latency * 1e-3))
    rows = pandas.concat(frames, ignore_index=True)
    fitted = rows.groupby(["what", "family"]).sample(frac=0.2, random_state=1).index
    return rows.assign(fitted=rows.index.isin(fitted))


def load_experts():
    """DeepEP's dispatch and combine among the GPUs of a node, as the tables have them: nothing is fitted to these.

    low latency: a copy for each expert of a token; normal: one for each rank that it has an expert on, 20 SMs.
    """
    import pandas

    root = package_root() / "data"
    found = []
    for system, slug in GPUS.items():
        gpu = load_gpu(slug)
        ranks = gpu.link.gpus_per_node if gpu.link is not None else None
        for path in sorted((root / system / "comm").rglob("wideep_deepep_*_perf.parquet")):
            engine, low = f"{path.parts[-3]} {path.parts[-2]}", "deepep_ll" in path.name
            rows = pandas.read_parquet(path)
            rows = rows[rows.node_num == 1]
            if not low:
                rows = rows[(rows.dispatch_sms == 20) & (rows.combine_sms == 20)]
            for row in rows.itertuples():
                copies = row.num_topk if low else ranks_reached(ranks, row.num_topk)
                for name, size in (("dispatch", 1), ("combine", 2)):
                    us = getattr(row, f"{name}_avg_t_us" if low else f"{name}_transmit_us")
                    found.append(
                        {
                            "what": f"DeepEP {'low latency' if low else 'normal'} {name}",
                            "gpu": slug,
                            "engine": engine,
                            "tokens": row.num_token,
                            "seconds": us * 1e-6,
                            "expected": all_to_all_s(row.num_token * copies * row.hidden_size * size, ranks, gpu),
                        }
                    )
    rows = pandas.DataFrame(found)
    return rows[rows.seconds > 0]


def wire(rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    link = [link_bytes_per_s(load_gpu(gpu), int(n)) for gpu, n in zip(rows.gpu, rows.num_gpus, strict=True)]
    return rows.num_gpus.to_numpy(float), rows.bytes.to_numpy(float), np.array(link, float)


def fit(rows) -> None:
    from scipy.optimize import minimize

    for name, whats in (
        ("REDUCE", ["all-reduce"]),
        ("ALL_TO_ALL", ["all-to-all"]),
        ("ALL_GATHER", ["all-gather", "reduce-scatter"]),
    ):
        for family, chosen in rows[rows.fitted & rows.what.isin(whats)].groupby("family"):
            n, size, link = wire(chosen)
            measured = chosen.seconds.to_numpy() * 1e6

            def expected(numbers, n=n, size=size, link=link, name=name):
                if name == "REDUCE":
                    a, b, one, two = numbers
                    return a + 1e6 * np.minimum(
                        (n - 1) * size / (one * link), b * 1e-6 + 2 * (n - 1) / n * size / (two * link)
                    )
                a, b, share = numbers
                each = 1e6 * (n - 1) / n * size / (share * link)
                return a + np.minimum(3 * each, b + each)

            def error(logs, measured=measured, expected=expected, shares=2 if name == "REDUCE" else 1):
                numbers = np.exp(logs)
                rough = np.any(numbers > 200) or np.any(numbers[-shares:] < 0.05)
                return 9.0 if rough else float(np.mean(np.abs(np.log(expected(numbers) / measured))))

            found = np.log([5.0, 10.0, 0.6, 0.7] if name == "REDUCE" else [8.0, 8.0, 0.7])
            for _ in range(5):
                found = minimize(error, found, method="Nelder-Mead", options={"maxiter": 600, "adaptive": True}).x
            print(name, f'"{family}": _rates({", ".join(f"{each:.3g}" for each in np.exp(found))}),', error(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true")
    rows = load_rows()
    if parser.parse_args().fit:
        fit(rows)
        return
    rows = rows[~rows.fitted]
    expected = [TIMES[row.what](row.bytes, row.num_gpus, load_gpu(row.gpu)) for row in rows.itertuples()]
    rows = rows.assign(expected=expected)
    groups = {}
    for what, chosen in rows.groupby("what", sort=False):
        nvlink = chosen[~chosen.gpu.str.startswith(("l40", "rtx"))]
        groups[f"{what}, GPUs with NVLink"] = errors(nvlink)
        groups |= {f"{what}, {gpu}": errors(each) for gpu, each in chosen.groupby("gpu")}
    moved = load_experts()
    for what, chosen in moved.groupby("what"):
        groups |= {f"{what}, {gpu}": errors(each) for gpu, each in chosen.groupby("gpu")}
        for low, high in ((1, 64), (65, 1024), (1025, 1 << 30)):
            each = chosen[(chosen.tokens >= low) & (chosen.tokens <= high)]
            groups[f"{what}, {low:,} {f'to {high:,}' if high < 1 << 30 else 'and more'} tokens a rank"] = errors(each)
    tables = {" ".join(key): errors(each) for key, each in rows.groupby(["what", "gpu", "engine"])}
    publish("exchange", {"groups": groups, "tables": tables}, page)


def page(result: dict) -> str:
    lines = [
        "# Accuracy of the times of all-reduce, all-to-all and all-gather",
        "",
        f"Made by `python benchmarks/exchange.py` on {result['date']} from {result['measurements']}: absolute error",
        "relative to the measurement, 2 to 8 GPUs of a node, messages of 512 B to 1 GB, on rows that no constant was",
        "fitted to (a fifth was). DeepEP's dispatch and combine are set against the all-to-all that was fitted to",
        "NCCL's rows; nothing is fitted to them.",
    ]
    columns = {"number": "rows", "mean": "mean", "median": "median", "bias": "bias"}
    for title, chosen in (("Together", "groups"), ("By table", "tables")):
        lines += table(title, result[chosen], columns)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""How accurate is the time of a layer's experts? aiconfigurator-core's MoE tables against kvcalc.timing.gemm.

    python benchmarks/experts.py          report into benchmarks/results/experts.json and .md
    python benchmarks/experts.py --fit    print the two constants of each architecture anew, from a fifth of the rows

Needs the extras `[predict,validate]`. A row is one layer's experts on one rank: two grouped products and what routes
tokens to them, 1 to 8 expert parallel ranks. With `balanced` routing all experts that can be are met, each by as many
tokens; with the tables' power laws as many are expected as by even routing, which is what kvcalc assumes of a router.
`ROWS` rows of each table are drawn.
"""

import argparse

import numpy as np
from gemm import BYTES, FORMATS, PEAKS
from measured_tables import GPUS, package_root
from pages import bound_error, errors, publish, table

from kvcalc.api import load_gpu
from kvcalc.timing.gemm import GROUPED, Product, gemm_rates, gemm_s, grouped_s, machine_family

ROWS, RANKS = 1_500, 8


def load_rows():
    """Drawn rows: measured, expected, the roofline, and the time of the products alone. A fifth is `fitted`."""
    import pandas

    root = package_root() / "data"
    rows = []
    for system, slug in GPUS.items():
        gpu = load_gpu(slug)
        for path in sorted((root / system).rglob("moe_perf.parquet")):
            data = pandas.read_parquet(path)
            data = data[data.moe_dtype.isin(FORMATS) & (data.latency > 0) & (data.moe_ep_size <= RANKS)]
            for row in data.sample(min(ROWS, len(data)), random_state=1).itertuples():
                form = FORMATS[row.moe_dtype]
                products = experts(row, BYTES[form])
                rates, peak = gemm_rates(gpu, form), gpu.peak(PEAKS[form])
                moved, flop = sum(each.moved_bytes for each in products), sum(each.flop for each in products)
                rows.append(
                    {
                        "gpu": slug,
                        "family": machine_family(gpu),
                        "table": f"{slug} {path.parts[-3]} {path.parts[-2]} {form}",
                        "routing": row.distribution,
                        "ep": row.moe_ep_size,
                        "tokens": row.num_tokens,
                        "seconds": row.latency * 1e-3,
                        "expected": grouped_s(products, gpu, rates, peak),
                        "passes": grouped_s(products, gpu, rates, peak)
                        - grouped_s([], gpu, rates, peak)
                        - GROUPED[machine_family(gpu)][1]
                        * sum(gemm_s(each, gpu, rates, peak) - rates.launch_s for each in products),
                        "products": sum(gemm_s(each, gpu, rates, peak) - rates.launch_s for each in products),
                        "roofline": max(moved / gpu.memory_bandwidth_bytes_per_s, flop / peak),
                    }
                )
    rows = pandas.DataFrame(rows)
    fitted = rows.groupby("family").sample(frac=0.2, random_state=1).index
    return rows.assign(fitted=rows.index.isin(fitted))


def experts(row, size: float) -> list[Product]:
    even = row.num_experts * (1 - (1 - row.topk / row.num_experts) ** row.num_tokens)
    met = min(row.num_experts, row.num_tokens * row.topk) if row.distribution == "balanced" else even
    width = row.inter_size // row.moe_tp_size
    shapes = ((row.hidden_size, 2 * width), (width, row.hidden_size))
    return [
        Product(
            name="",
            rows=row.num_tokens * row.topk / met,
            inner=int(inner),
            columns=int(columns),
            weight_bytes=size,
            input_bytes=size,
            groups=met / row.moe_ep_size,
        )
        for inner, columns in shapes
    ]


def fit(rows) -> None:
    from scipy.optimize import minimize

    for family, chosen in rows[rows.fitted].groupby("family"):
        measured, products, passes = (chosen[name].to_numpy() for name in ("seconds", "products", "passes"))

        def error(logs, measured=measured, products=products, passes=passes):
            around, share = np.exp(logs)
            return float(np.mean(np.abs(np.log((around * 1e-6 + passes + share * products) / measured))))

        found = minimize(error, np.log([20.0, 1.2]), method="Nelder-Mead").x
        around, share = np.exp(found)
        print(f'    "{family}": ({around:.0f}e-6, {share:.3g}),  # {len(chosen)} rows, {error(found):.3f}')


def summary(rows) -> dict:
    return errors(rows) | {"roofline_mean": bound_error(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true")
    rows = load_rows()
    if parser.parse_args().fit:
        fit(rows)
        return
    rows = rows[~rows.fitted]
    groups = {"all": summary(rows)}
    for key in ("gpu", "routing", "ep"):
        groups |= {f"{key} {name}": summary(chosen) for name, chosen in rows.groupby(key)}
    for low, high in ((1, 16), (17, 128), (129, 1024), (1025, 1 << 30)):
        chosen = rows[(rows.tokens >= low) & (rows.tokens <= high)]
        groups[f"tokens {low:,} to {high:,}" if high < 1 << 30 else f"tokens from {low:,}"] = summary(chosen)
    tables = {name: summary(chosen) for name, chosen in rows.groupby("table")}
    publish("experts", {"constants": GROUPED, "groups": groups, "tables": tables}, page)


def page(result: dict) -> str:
    lines = [
        "# Accuracy of the time of a layer's experts",
        "",
        f"Made by `python benchmarks/experts.py` on {result['date']} from the MoE tables of {result['measurements']}:",
        "absolute error relative to the measurement, on rows that no constant was fitted to (a fifth was, for two",
        "constants of an architecture; the products' own come of the GEMM tables). Engines' kernels differ by a factor",
        "of two and more on the same GPU; one estimate for all of them can be no closer.",
    ]
    columns = {"number": "rows", "mean": "mean", "median": "median", "bias": "bias", "roofline": "roofline_mean"}
    for title, chosen in (("Together", "groups"), ("By table", "tables")):
        lines += table(title, result[chosen], columns)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

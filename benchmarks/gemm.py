"""How accurate is a product's time by shape? aiconfigurator-core's GEMM tables against kvcalc.timing.gemm.

    python benchmarks/gemm.py          report into benchmarks/results/gemm.json and .md
    python benchmarks/gemm.py --fit    first print the lines of `RATES`, fitted anew

Needs the extras `[predict,validate]`. The tables (PyPI aiconfigurator-core 0.12.0, Apache-2.0) are NVIDIA's measured
latencies of single products: rows 1 to 32,768, columns and inner widths 32 to 65,536. Products of 8-bit and narrower
numbers include there the pass that quantises the rows, so they do here. The fit takes `FIT_ROWS` rows of each
architecture and format, as large as a model's are, and minimises the mean |log(expected / measured)|; the report is of
all others. Tables whose
harness timed more than the product (`EAGER_S`) are in no fit and in no total, and are shown all the same.
"""

import argparse

import numpy as np
from measured_tables import GPUS, package_root
from pages import bound_error, errors, publish, table

from kvcalc.api import load_gpu
from kvcalc.timing.gemm import NORM, SPLITS, TILES, GemmRates, Product, gemm_rates, gemm_s, machine_family, quantise_s

FORMATS = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
PEAKS = {"bf16": "bf16", "fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4"}
BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625}
EAGER_S = 10e-6
"""Most that the median product of up to a million weights and 64 rows may take; more is a launch from Python."""
LEFT_OUT = {"trtllm 1.0.0": "plug-in kernels that no later version has"}
FIT_ROWS = 2_500
LARGE = 1024
"""Columns and inner width from which a product is as large as a model's."""


def load_rows():
    """All rows, as a frame with what a GPU states of them; `eager` marks tables that timed launches."""
    import pandas

    root = package_root() / "data"
    keys, frames = ["m", "n", "k"], []
    for system, slug in GPUS.items():
        gpu = load_gpu(slug)
        for path in sorted((root / system / "gemm").rglob("gemm_perf.parquet")):
            engine = f"{path.parts[-3]} {path.parts[-2]}"
            data = pandas.read_parquet(path)
            data = data[data.gemm_dtype.isin(FORMATS) & (data.latency > 0)]
            for dtype, rows in data.groupby("gemm_dtype"):
                rows = rows.groupby(keys, as_index=False).latency.median()
                form = FORMATS[str(dtype)]
                small = rows[(rows.n * rows.k <= 1e6) & (rows.m <= 64)].latency.median() * 1e-3
                frames.append(
                    rows.assign(
                        gpu=slug,
                        engine=engine,
                        format=form,
                        family=machine_family(gpu),
                        seconds=rows.latency * 1e-3,
                        bandwidth=gpu.memory_bandwidth_bytes_per_s,
                        sms=gpu.num_sms,
                        peak=gpu.peak(PEAKS[form]),
                        bytes=BYTES[form],
                        eager=bool(small > EAGER_S) or engine in LEFT_OUT,
                    )
                )
    rows = pandas.concat(frames, ignore_index=True)
    likely = rows[~rows.eager & (rows.n >= LARGE) & (rows.k >= LARGE)]
    fitted = likely.groupby(["family", "format"]).sample(FIT_ROWS, random_state=1).index
    return rows.assign(fitted=rows.index.isin(fitted))


def expected_s(rows, numbers) -> np.ndarray:
    """`gemm_s` of many rows at once; `numbers` as in `RATES`."""
    launch, split, bandwidth, sm, matrix, *quantise = numbers
    m, n, k, size = (rows[name].to_numpy(float) for name in ("m", "n", "k", "bytes"))
    sms, stated = rows.sms.to_numpy(float), rows.bandwidth.to_numpy(float)
    memory = (n * k * size + m * (k * size + n * 2)) / (bandwidth * stated)
    per_sm = matrix * rows.peak.to_numpy(float) / sms
    best = np.full(len(rows), np.inf)
    for tile_m, tile_n in TILES:
        tiles = np.ceil(m / tile_m) * np.ceil(n / tile_n)
        load = (np.minimum(m, tile_m) + np.minimum(n, tile_n)) * size / (sm * 1e9)
        deep = np.maximum(load, 2 * tile_m * tile_n / per_sm)
        for splits in SPLITS:
            seconds = np.ceil(tiles * splits / sms) * np.ceil(k / splits) * deep
            best = np.minimum(best, seconds + (split * 1e-6 if splits > 1 else 0))
    total = launch * 1e-6 + (memory**NORM + best**NORM) ** (1 / NORM)
    if quantise:
        total += quantise[0] * 1e-6 + m * k * (2 + size) / (quantise[1] * stated)
    return total


def fit(rows) -> None:
    """Print `RATES`, family by family. A narrow format's launch is bf16's; what is more is the quantising pass."""
    from scipy.optimize import minimize

    for family, of_family in rows[rows.fitted].groupby("family"):
        launch = None
        print(f'    "{family}": {{')
        for form in [each for each in BYTES if (of_family.format == each).any()]:
            chosen = of_family[of_family.format == form]
            measured = chosen.seconds.to_numpy()
            start = [3.0, 2.0, 0.85, 150.0, 0.75] if launch is None else [2.0, 0.85, 150.0, 0.75, 2.5, 0.5]
            most = [20, 30, 1, 600, 1.05] if launch is None else [30, 1, 600, 1.05, 20, 1]
            least = [1.5, 0.5, 0.3, 5, 0.2] if launch is None else [0.5, 0.3, 5, 0.2, 0.5, 0.1]

            def error(logs, chosen=chosen, measured=measured, launch=launch, most=most, least=least):
                numbers = np.exp(logs)
                if np.any(numbers > most) or np.any(numbers < least):
                    return 9.0
                full = numbers if launch is None else [launch, *numbers]
                return float(np.mean(np.abs(np.log(expected_s(chosen, full) / measured))))

            found = np.log(start)
            for _ in range(5):
                options = {"maxiter": 700, "adaptive": True, "xatol": 1e-3, "fatol": 1e-5}
                found = minimize(error, found, method="Nelder-Mead", options=options).x
            numbers = [float(f"{each:.3g}") for each in np.exp(found)]
            if launch is None:
                launch = numbers[0]
            else:
                numbers = [launch, *numbers]
            print(f'        "{form}": _rates({", ".join(f"{each:g}" for each in numbers)}),  # {error(found):.3f}')
        print("    },")


def of_rates(rates: GemmRates) -> list[float]:
    numbers = [rates.launch_s * 1e6, rates.split_s * 1e6, rates.bandwidth_fraction]
    numbers += [rates.sm_bytes_per_s / 1e9, rates.matrix_fraction]
    return numbers + ([rates.quantise_launch_s * 1e6, rates.quantise_fraction] if rates.quantise_launch_s else [])


def summary(rows) -> dict:
    large = rows[(rows.n >= LARGE) & (rows.k >= LARGE)]
    found = errors(rows) | {"roofline_mean": bound_error(rows)}
    of_large = errors(large) | {"roofline_mean": bound_error(large)}
    return found | {f"large_{name}": value for name, value in of_large.items() if name != "bias"}


def judged(rows):
    """The rows with what is expected and their roofline."""
    moved = rows.n * rows.k * rows.bytes + rows.m * (rows.k * rows.bytes + 2 * rows.n)
    flop = 2.0 * rows.m * rows.n * rows.k
    rows = rows.assign(
        roofline=np.maximum(moved / rows.bandwidth, flop / rows.peak),
        expected=0.0,
    )
    for slug, form in {(slug, form) for slug, form in zip(rows.gpu, rows.format, strict=True)}:
        gpu = load_gpu(slug)
        rates, peak = gemm_rates(gpu, form), gpu.peak(PEAKS[form])
        mask = (rows.gpu == slug) & (rows.format == form)
        rows.loc[mask, "expected"] = expected_s(rows[mask], of_rates(rates))
        for row in rows[mask].sample(20, random_state=2).itertuples():
            product = Product(
                name="", rows=row.m, inner=row.k, columns=row.n, weight_bytes=row.bytes, input_bytes=row.bytes
            )
            one = gemm_s(product, gpu, rates, peak) + quantise_s(product, gpu, rates)
            assert abs(one / row.expected - 1) < 1e-9, (row, one)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true")
    rows = load_rows()
    if parser.parse_args().fit:
        fit(rows)
        return
    rows = judged(rows[~rows.fitted])
    used = rows[~rows.eager]
    groups = {"all": summary(used)}
    groups |= {f"format {name}": summary(chosen) for name, chosen in used.groupby("format")}
    groups |= {f"{gpu}": summary(chosen) for gpu, chosen in used.groupby("gpu")}
    for low, high in ((1, 16), (17, 128), (129, 1024), (1025, 32_768)):
        groups[f"rows {low:,} to {high:,}"] = summary(used[(used.m >= low) & (used.m <= high)])
    tables = {" ".join(key): summary(chosen) for key, chosen in used.groupby(["gpu", "engine", "format"])}
    left = {" ".join(key): summary(chosen) for key, chosen in rows[rows.eager].groupby(["gpu", "engine", "format"])}
    publish("gemm", {"fit_rows": FIT_ROWS, "groups": groups, "tables": tables, "left_out": left}, page)


def page(result: dict) -> str:
    lines = [
        "# Accuracy of a product's time by shape",
        "",
        f"Made by `python benchmarks/gemm.py` on {result['date']} from the GEMM tables of {result['measurements']}:",
        "absolute error relative to the measurement, on rows that no constant was fitted to",
        f"({result['fit_rows']:,} rows of each architecture and format were, all large).",
        f"Large products have {LARGE:,} or more columns and inner width, as a model's have.",
    ]
    columns = {"number": "rows", "mean": "mean", "median": "median", "bias": "bias", "roofline": "roofline_mean"}
    columns |= {"large: number": "large_rows", "large: mean": "large_mean", "large: median": "large_median"}
    columns |= {"large: roofline": "large_roofline_mean"}
    why_left = (
        "Their harness timed launches from Python or more than the product: the median of small products is",
        f"above {EAGER_S * 1e6:g} us. " + "; ".join(f"{name}: {why}" for name, why in LEFT_OUT.items()) + ".",
    )
    for title, chosen, text in (
        ("Together", "groups", ()),
        ("By table", "tables", ()),
        ("Tables left out", "left_out", why_left),
    ):
        lines += table(title, result[chosen], columns, text)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""How long kvcalc takes to start, as a ratio to a bare interpreter, and how long 1,000 estimates take in one process.

    python benchmarks/startup.py --runs 21 --output benchmarks/results/startup.json

Each start is measured as the CPU time (user and system) of a child process; the median of N runs is divided by the
median of `python -c pass`. The runs of all commands are interleaved, so that a busy machine slows all of them alike.
The budget (DESIGN.md): help 9 or less, estimate 22 or less, 1,000 estimates within 1 s on one core.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BARE = "bare"
COMMANDS = {
    BARE: ["-c", "pass"],
    "import typer": ["-c", "import typer"],
    "version": ["-m", "kvcalc", "--version"],
    "help": ["-m", "kvcalc", "--help"],
    "estimate": ["-m", "kvcalc", "estimate", "deepseek-v3", "--context", "128k", "--json"],
    "estimate with a GPU": ["-m", "kvcalc", "estimate", "deepseek-v3", "--gpu", "h200-sxm-141gb", "--json"],
    "estimate as a table": ["-m", "kvcalc", "estimate", "deepseek-v3", "--format", "table"],
    "compare": ["-m", "kvcalc", "compare", "deepseek-v3", "--what-if", "mha,gqa:8,mqa,mla", "--json"],
}
BUDGET = {"help": 9.0, "estimate": 22.0}
ESTIMATES = 1000


def cpu_s(arguments: list[str]) -> float:
    """CPU seconds of one child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def starts(runs: int) -> dict[str, list[float]]:
    """Samples of each command; the first round, which fills the byte-code and page caches, is thrown away."""
    samples: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, arguments in COMMANDS.items():
            samples[name].append(cpu_s(arguments))
    return {name: values[1:] for name, values in samples.items()}


def thousand_estimates() -> dict[str, float | int]:
    """CPU seconds of 1,000 estimates and their JSON: all packaged models times as many contexts as it takes."""
    sys.path.insert(0, str(ROOT))
    from kvcalc import estimate
    from kvcalc.specs.sources import load_packaged, model_names

    start = time.process_time()
    models = [load_packaged(name) for name in model_names()]
    load_s = time.process_time() - start
    contexts = [1024 * (step + 1) for step in range(-(-ESTIMATES // len(models)))]
    pairs = [(model, context) for context in contexts for model in models][:ESTIMATES]
    samples = []
    for _ in range(5):
        start = time.process_time()
        for model, context in pairs:
            estimate(model, context_tokens=context)
        samples.append(time.process_time() - start)
    start = time.process_time()
    for model, context in pairs:
        estimate(model, context_tokens=context).to_json()
    return {
        "estimates": len(pairs),
        "models": len(models),
        "contexts": len(contexts),
        "load_all_models_s": round(load_s, 4),
        "median_s": round(statistics.median(samples), 4),
        "with_json_s": round(time.process_time() - start, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21, help="runs of each command (default 21)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "startup.json")
    options = parser.parse_args()
    samples = starts(options.runs)
    bare = statistics.median(samples[BARE])
    commands = {}
    print(f"{'command':22} {'median':>8} {'min':>8} {'max':>8} {'ratio':>6}  budget")
    for name, values in samples.items():
        median = statistics.median(values)
        commands[name] = {
            "arguments": COMMANDS[name],
            "cpu_s": {"median": round(median, 4), "min": round(min(values), 4), "max": round(max(values), 4)},
            "ratio_to_bare": round(median / bare, 2),
            "budget": BUDGET.get(name),
        }
        budget = f"{BUDGET[name]:g}" if name in BUDGET else ""
        print(
            f"{name:22} {median * 1e3:6.1f}ms {min(values) * 1e3:6.1f}ms {max(values) * 1e3:6.1f}ms "
            f"{median / bare:6.2f}  {budget}"
        )
    many = thousand_estimates()
    print(
        f"{many['estimates']} estimates of {many['models']} models: {many['median_s']} s, JSON {many['with_json_s']} s"
    )
    result = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in ("typer", "pydantic", "pyyaml", "rich")},
        "date": time.strftime("%Y-%m-%d"),
        "runs": options.runs,
        "commands": commands,
        "thousand_estimates": many,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.output.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(options.output)


if __name__ == "__main__":
    main()

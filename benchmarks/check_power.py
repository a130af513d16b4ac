"""How often `kvcalc check` cries wolf, and how often it finds what is there: a simulation with a machine's noise.

    python benchmarks/check_power.py            2,000 comparisons of each kind, to benchmarks/results/check_power.md
    python benchmarks/check_power.py --runs 50  a quick look

A run is 12 cases of 30 samples. Its noise, beside the samples' own (lognormal):
    run       each case of each run is off by its own constant (0.3 %: addresses, page colours, one autotuned choice)
    machine   each run's machine is off by a constant (1 %), which its measured ceiling shows, give or take 0.2 %
    drift     the case gets slower or faster over the run, at most 1 % from end to end
    outliers  3 % of samples are 10 to 100 % longer
    bimodal   a clock that jumps between two states and stays in each for some 4 samples. `2 % in all` is 1.7 % of the
              samples' own and states 2 % apart. Where a clock stays for 10 samples, many a side of 30 has
              seen one state only, and nothing in the samples tells
An A/A run changes nothing: a false alarm is a run with any case called regressed. An A/B run slows one case down.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvcalc.check.findings import IMPROVED, REGRESSED, Settings
from kvcalc.check.results import TIME, Row, Samples
from kvcalc.check.statistics import median
from kvcalc.check.verdicts import compare

CASES, SAMPLES = 12, 30
OUT = Path(__file__).parent / "results" / "check_power.md"
CEILING = 3e12


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Shares of the time; `dwell` is how many samples a clock state lasts on average."""

    name: str
    samples: float = 0.02
    run: float = 0.003
    machine: float = 0.01
    ceiling: float = 0.002
    drift: float = 0.01
    outliers: float = 0.03
    bimodal: float = 0.0
    dwell: float = 4.0
    clock_known: bool = False


STILL = {"run": 0.0, "machine": 0.0, "ceiling": 0.0, "drift": 0.0, "outliers": 0.0}
NOISES = (
    Noise(name="2 %, independent", **STILL),
    Noise(name="2 %, runs, machines, drift", outliers=0.0),
    Noise(name="2 %, the same and outliers"),
    Noise(name="2 % in all, the same and bimodal clocks", samples=0.0173, bimodal=0.02),
    Noise(name="2.2 % in all, clocks 4 % apart that jump at random", samples=0.01, bimodal=0.04, dwell=2.0),
    Noise(name="3 % in all, clocks 4 % apart", samples=0.0224, bimodal=0.04),
    Noise(name="3 % in all, clocks 4 % apart that stay for 10 samples", samples=0.0224, bimodal=0.04, dwell=10.0),
    Noise(
        name="the same, and the runs recorded their clocks", samples=0.0224, bimodal=0.04, dwell=10.0, clock_known=True
    ),
    Noise(name="5 %, bimodal clocks", samples=0.0477, bimodal=0.03),
    Noise(name="0.5 %, no bimodal clocks", samples=0.005),
)


def run_of(
    rng: random.Random,
    noise: Noise,
    *,
    slower: Sequence[float],
    samples: int = SAMPLES,
    processes: int = 1,
) -> list[Row]:
    """One side: a row a case, `slower` by so much each."""
    machine = rng.gauss(0, noise.machine)
    ceiling = CEILING * (1 - machine) * (1 + rng.gauss(0, noise.ceiling))
    rows = []
    for case, factor in enumerate(slower):
        base = 1e-4 * (1 + case) * factor * (1 + machine)
        seconds: list[float] = []
        slow = 0
        for _ in range(processes):
            values, in_slow_state = _process(rng, noise, base, samples // processes)
            seconds += values
            slow += in_slow_state
        measured = Samples(
            seconds=tuple(seconds),
            processes=tuple(index * processes // len(seconds) for index in range(len(seconds))),
            median_s=median(seconds),
            bound="memory",
            ceiling=ceiling,
            fraction=0.8,
            clock_hz=1.98e9 / (1 + noise.bimodal * slow / len(seconds)) if noise.clock_known else None,
        )
        rows.append(Row(key={"case": f"case-{case:02}"}, about={"gpu": "simulated"}, samples=measured))
    return rows


def _process(rng: random.Random, noise: Noise, base: float, samples: int) -> tuple[list[float], int]:
    """The times, and how many of them the clock was low for."""
    own, drift = rng.gauss(0, noise.run), rng.uniform(-noise.drift, noise.drift)
    slow = rng.random() < 0.5
    found, low = [], 0
    for index in range(samples):
        if rng.random() < 1 / noise.dwell:
            slow = not slow
        value = base * (1 + own) * (1 + drift * (index / samples - 0.5)) * rng.lognormvariate(0, noise.samples)
        if slow:
            low += 1
            value *= 1 + noise.bimodal
        if rng.random() < noise.outliers:
            value *= rng.uniform(1.1, 2.0)
        found.append(value)
    return found, low


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of the runs: with any false alarm among 12 cases that did not change, and with the slow one found."""

    false_alarms: float
    false_improvements: float
    found: float
    found_other_cases: float


def simulate(
    noise: Noise,
    *,
    runs: int,
    slowdown: float = 0.05,
    samples: int = SAMPLES,
    processes: int = 1,
    seed: int = 20_260_101,
) -> Rates:
    """So many A/A runs and as many A/B runs, in which the first case is `slowdown` longer."""
    rng = random.Random(f"{seed} {noise.name}")
    same = [1.0] * CASES
    worse = [1 + slowdown, *same[1:]]
    settings = Settings()
    counts = [0, 0, 0, 0]
    options = {"samples": samples, "processes": processes}
    for _ in range(runs):
        verdicts = _verdicts(
            run_of(rng, noise, slower=same, **options), run_of(rng, noise, slower=same, **options), settings
        )
        counts[0] += REGRESSED in verdicts
        counts[1] += IMPROVED in verdicts
        verdicts = _verdicts(
            run_of(rng, noise, slower=same, **options), run_of(rng, noise, slower=worse, **options), settings
        )
        counts[2] += verdicts[0] == REGRESSED
        counts[3] += REGRESSED in verdicts[1:]
    rates = [count / runs for count in counts]
    return Rates(false_alarms=rates[0], false_improvements=rates[1], found=rates[2], found_other_cases=rates[3])


def _verdicts(before: list[Row], after: list[Row], settings: Settings) -> list[str | None]:
    return [finding.verdict for finding in compare(before, after, settings).findings if finding.metric == TIME]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="How often kvcalc check is wrong.")
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--output", type=Path, default=OUT)
    arguments = parser.parse_args()
    lines = [
        "# How often `kvcalc check` cries wolf, and what it finds",
        "",
        f"{arguments.runs:,} simulated A/A comparisons and as many A/B comparisons a line, {CASES} cases of {SAMPLES}",
        "samples unless a line says otherwise, at the default threshold of 3 %; made by `benchmarks/check_power.py`,",
        "seeded, so that the same figures come out again. The noise is described at the top of that file.",
        "",
        f"False alarms: runs in which any of {CASES} cases that did not change is called regressed. Found: A/B runs in",
        "which the one case that is slower is called so.",
        "",
        "| noise | slowdown | false alarms | found |",
        "|---|---:|---:|---:|",
    ]
    for noise in NOISES:
        lines.append(_line(noise.name, 0.05, simulate(noise, runs=arguments.runs)))
    whole, hard = NOISES[3], NOISES[6]
    lines.append(_line(f"{whole.name}, 20 samples", 0.05, simulate(whole, runs=arguments.runs, samples=20)))
    several = simulate(whole, runs=arguments.runs, samples=150, processes=5)
    lines.append(_line(f"{whole.name}, 5 processes of 30 samples", 0.05, several))
    for slowdown in (0.02, 0.04, 0.1, 0.2):
        lines.append(_line(whole.name, slowdown, simulate(whole, runs=arguments.runs, slowdown=slowdown)))
    for name, options in (
        ("the clocks that stay, 100 samples", {"samples": 100}),
        ("the clocks that stay, 5 processes of 10 samples", {"samples": 50, "processes": 5}),
        ("the clocks that stay, 10 processes of 10 samples", {"samples": 100, "processes": 10}),
    ):
        lines.append(_line(name, 0.05, simulate(hard, runs=arguments.runs, **options)))
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _line(name: str, slowdown: float, rates: Rates) -> str:
    return f"| {name} | {slowdown:.0%} | {rates.false_alarms:.2%} | {rates.found:.2%} |"


if __name__ == "__main__":
    main()

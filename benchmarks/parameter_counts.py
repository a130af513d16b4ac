"""The parameters of every packaged spec, beside the count of the transformers class that the model has.

A spec's fields are spelled as the class's config; what the spec doesn't say stays the class's default. The class is
built on the meta device and its distinct parameters are counted: a tied table once, no buffers, and no MTP layers,
which these classes leave out. No weight is allocated.

    python benchmarks/parameter_counts.py                      all specs, into benchmarks/results/parameter_counts.md
    python benchmarks/parameter_counts.py qwen3-8b falcon-40b  some specs, on standard output alone

Needs torch, transformers and an importable kvcalc. Exits 1 where a count differs without a reason that is named here.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from class_configs import BY_NAME, Fields, Spec

from kvcalc.specs.build import build_model
from kvcalc.specs.reader import read_file

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "model_specs"
RESULTS = Path(__file__).parent / "results" / "parameter_counts.md"

KNOWN = {
    "longcat-flash": "the class's fused tensor has rows for the 256 experts that do nothing; no checkpoint has them",
}
"""Counts that differ, and why."""


def count(config_name: str, fields: Fields) -> int:
    """Distinct parameters of the class on the meta device."""
    config = getattr(transformers, config_name)(**fields)
    named = getattr(transformers, config_name.removesuffix("Config") + "ForCausalLM", None)
    with torch.device("meta"):
        built = (named or transformers.AutoModelForCausalLM.from_config)(config)
    return sum(parameter.numel() for parameter in {id(p): p for p in built.parameters()}.values())


def rows(names: list[str]) -> Iterator[tuple[str, int, int | None, str]]:
    """Spec, kvcalc's count, transformers' count, and equal, a known reason, or `no`."""
    for name in names:
        document = read_file(SPECS / f"{name}.yaml")
        computed = build_model(document).parameters.total
        if name not in BY_NAME:
            yield name, computed, None, "no class"
            continue
        config, fields = BY_NAME[name]
        counted = count(config, fields(Spec(document.data)))
        yield name, computed, counted, "yes" if counted == computed else KNOWN.get(name, "no")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", help="names of packaged specs; all by default")
    arguments = parser.parse_args()
    for name in arguments.specs:
        if not (SPECS / f"{name}.yaml").is_file():
            parser.error(f"no packaged spec '{name}'")
    table, failed = ["| spec | kvcalc | transformers | equal |", "|---|---:|---:|---|"], 0
    for name, computed, counted, verdict in rows(arguments.specs or sorted(path.stem for path in SPECS.glob("*.yaml"))):
        failed += verdict == "no"
        table.append(f"| {name} | {computed:,} | {'' if counted is None else f'{counted:,}'} | {verdict} |")
        print(table[-1], flush=True)
    equal = sum(line.endswith("| yes |") for line in table)
    compared = len(table) - 2 - sum(line.endswith("| no class |") for line in table)
    summary = f"{equal} of {compared} equal to the last parameter; {failed} differ without a known reason."
    print(summary)
    if arguments.specs:
        return int(failed > 0)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}"
    head = [
        "# Parameter counts",
        "",
        f"`python benchmarks/parameter_counts.py`, {datetime.date.today()}: {versions}.",
        "",
        summary,
        "",
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(head + table) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

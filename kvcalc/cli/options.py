"""The command line's options: names, types, help and completion, used by one command or by many."""

from pathlib import Path
from typing import Annotated

import typer


def _names(folder: str) -> list[str]:
    package = Path(__file__).resolve().parent.parent
    here = package / folder if (package / folder).is_dir() else package.parent / folder
    return sorted(path.stem for path in here.glob("*.yaml"))


def _complete_model(incomplete: str) -> list[str]:
    return [name for name in _names("model_specs") if name.startswith(incomplete)]


def _complete_gpu(incomplete: str) -> list[str]:
    return [name for name in [*_names("data/hardware"), "auto"] if name.startswith(incomplete)]


Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="A packaged model, a YAML spec, a config.json, hf:org/name, or - for standard input.",
        autocompletion=_complete_model,
    ),
]
Specs = Annotated[
    list[str], typer.Argument(metavar="SPEC...", help="Models, named as for estimate.", autocompletion=_complete_model)
]
Context = Annotated[
    str | None,
    typer.Option("--context", "-c", help="Tokens attended: 32768, 128k, 1m. Default: 32k, or the model's maximum."),
]
Batch = Annotated[str, typer.Option("--batch", "-b", help="Sequences, over all GPUs.")]
QueryTokens = Annotated[str, typer.Option("--query-tokens", help="New tokens a sequence and step.")]
GpuName = Annotated[
    str | None,
    typer.Option("--gpu", "-g", help="A GPU of `kvcalc list gpus`, or auto.", autocompletion=_complete_gpu),
]
Family = Annotated[
    str | None, typer.Option("--family", help="Kernel family: flashmla, fa3, trtllm-gen, ... Default: the GPU's.")
]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", help="A file of `kvcalc calibrate`. Default: the GPU's own, if any.")
]
Serving = Annotated[
    str, typer.Option("--serving", help="alone: the step by itself; aggregated: among the prompts of other requests.")
]
OutputTokens = Annotated[
    str | None,
    typer.Option("--output-tokens", help="Tokens that a request generates, for --serving aggregated. Default: 1k."),
]
KvDtype = Annotated[str | None, typer.Option(help="Format of cache entries, of `kvcalc list formats`. Default: bf16.")]
IndexDtype = Annotated[str | None, typer.Option(help="Format of index keys. Default: the model's own.")]
StateDtype = Annotated[str | None, typer.Option(help="Format of recurrent states. Default: the model's own, or bf16.")]
WeightsDtype = Annotated[str | None, typer.Option(help="Format of weights. Default: as published.")]
Tp = Annotated[int, typer.Option(help="Attention tensor parallel ranks.")]
Pp = Annotated[int, typer.Option(help="Pipeline stages.")]
Dp = Annotated[int, typer.Option(help="Attention data parallel replicas.")]
Dcp = Annotated[int, typer.Option(help="Decode context parallel ranks, of the tp ranks.")]
Ep = Annotated[
    int,
    typer.Option(help="Expert parallel ranks, of the tp x dp ranks; expected times go by it, bytes do not."),
]
Mtp = Annotated[bool, typer.Option("--mtp", help="Count multi-token prediction layers too.")]
Engine = Annotated[
    str, typer.Option(help="Whose cache layout, of `kvcalc list engines`: generic, vllm, vllm@0.33, sglang.")
]
BlockSize = Annotated[
    int | None, typer.Option(help="Tokens in an allocated block. Default: the engine's own; 16 for generic.")
]
Utilization = Annotated[
    float | None,
    typer.Option(
        "--memory-utilization", help="Share of the reported GPU memory to use. Default: the engine's own, or 0.9."
    ),
]
PrefixCaching = Annotated[
    bool | None,
    typer.Option("--prefix-caching/--no-prefix-caching", help="Whether the engine keeps finished prefixes."),
]
BatchedTokens = Annotated[
    int | None, typer.Option("--max-batched-tokens", help="Tokens in one step of the engine. Default: its own.")
]
AsBytes = Annotated[bool, typer.Option("--bytes", help="Exact bytes instead of GiB.")]
Format = Annotated[
    str | None,
    typer.Option("--format", "-f", help="table, text, json, csv or markdown. Default: table, text in a pipe."),
]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of standard output.")]

Gpus = Annotated[int | None, typer.Option("--gpus", "-n", min=1, help="How many GPUs. Default: 1.")]
OnlyTp = Annotated[int | None, typer.Option(help="Only the mix with so many attention tensor parallel ranks.")]
OnlyPp = Annotated[int | None, typer.Option(help="... pipeline stages.")]
OnlyDp = Annotated[int | None, typer.Option(help="... attention data parallel replicas.")]
OnlyDcp = Annotated[int | None, typer.Option(help="... decode context parallel ranks.")]
OnlyEp = Annotated[int | None, typer.Option(help="... expert parallel ranks.")]
Search = Annotated[
    bool, typer.Option("--search", help="All valid mixes and batches, and the front of throughput against TPOT.")
]
TargetTpot = Annotated[
    str | None, typer.Option("--target-tpot", help="The largest batch whose tokens come this fast: 50ms.")
]
Price = Annotated[float | None, typer.Option(help="Price of a GPU-hour.")]
Lengths = Annotated[
    str | None,
    typer.Option(help="Requests as they come: a CSV, uniform:1k:32k, or lognormal:4k:32k (median, 95 %)."),
]
SharedPrefix = Annotated[
    str | None, typer.Option("--shared-prefix", help="First tokens that all sequences share: kept once.")
]
Cascade = Annotated[bool, typer.Option("--cascade", help="Kernels read a shared prefix once a step.")]
Draft = Annotated[str | None, typer.Option(help="A draft model, for speculative decoding.")]
DraftTokens = Annotated[int, typer.Option("--draft-tokens", help="Tokens drafted for a step.")]
Acceptance = Annotated[float, typer.Option(help="Probability that a draft token is accepted.")]
Link = Annotated[
    str | None, typer.Option(help="Move a sequence's cache over: gpu (the GPU's own), pcie, or a rate: 50GB/s.")
]
WeightsDtypes = Annotated[
    str | None,
    typer.Option(
        "--weights-dtype", help="Format of weights, or by part: attention=fp8,experts=nvfp4. Default: as published."
    ),
]
WeightsBytes = Annotated[str | None, typer.Option("--weights-bytes", help="Measured size of all weights: 688.6GB.")]
Reserve = Annotated[
    str | None,
    typer.Option(help="Memory of a GPU for all but weights and cache, instead of the assumptions: 6GiB."),
]
MostBatch = Annotated[
    str | None, typer.Option("--batch", "-b", help="Sequences over all GPUs. Default: as many as fit.")
]
NeededGpu = Annotated[
    str, typer.Option("--gpu", "-g", help="A GPU of `kvcalc list gpus`, or auto.", autocompletion=_complete_gpu)
]
Log = Annotated[str, typer.Argument(metavar="LOG", help="A startup log of vLLM, SGLang or llama.cpp; - for stdin.")]
LogModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="The model, named as for estimate.", autocompletion=_complete_model),
]
LogEngine = Annotated[str | None, typer.Option(help="The engine and version: vllm@0.33. Default: the log's.")]
LogTp = Annotated[int | None, typer.Option(help="Attention tensor parallel ranks. Default: the log's.")]
LogPp = Annotated[int | None, typer.Option(help="Pipeline stages. Default: the log's.")]
LogDcp = Annotated[int | None, typer.Option(help="Decode context parallel ranks. Default: the log's.")]

Sides = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="BASELINE [CURRENT]", help="Result files, folders of them, or a baseline that --update wrote."
    ),
]
Runs = Annotated[
    list[str] | None,
    typer.Option("--run", help="Produce a side now, in place of a file: 'profile deepseek-v3 --quick'."),
]
SpecsFolder = Annotated[
    Path | None, typer.Option("--specs", help="Check this folder's specs: bytes, FLOPs and parameters may not move.")
]
Update = Annotated[bool, typer.Option("--update", help="Show what changes, then rewrite the baseline.")]
Threshold = Annotated[
    str | None, typer.Option("--threshold", help="How much longer a measured time may be. Default: 3%.")
]
MaxRegression = Annotated[
    list[str] | None,
    typer.Option("--max-regression", help="METRIC=SHARE, such as cache.bytes_per_token=0%; METRIC may be a pattern."),
]
Strict = Annotated[bool | None, typer.Option("--strict/--no-strict", help="Fail where a row of the baseline is gone.")]
DifferentGpu = Annotated[
    bool | None,
    typer.Option(
        "--allow-different-gpu/--no-allow-different-gpu",
        help="Compare two GPUs all the same: times by their share of each one's ceiling.",
    ),
]
CheckFormat = Annotated[
    str | None,
    typer.Option("--format", "-f", help="table, text, json, csv, markdown, junit or github. Default: as elsewhere."),
]
ResultFiles = Annotated[
    list[Path],
    typer.Argument(metavar="RESULT...", help="JSON results of estimate, compare, predict, profile or check."),
]
ReportFile = Annotated[
    Path, typer.Option("--output", "-o", help="The page to write: .html, .md, .svg or, with matplotlib, .png.")
]


def output_tokens(serving: str, tokens: str | None) -> int | None:
    """Tokens that a request generates where serving is aggregated, 1k by default.

    Raises UsageError for another word, and for tokens that nothing would use.
    """
    from kvcalc.errors import UsageError
    from kvcalc.names import nearest
    from kvcalc.units import parse_tokens

    if serving not in ("alone", "aggregated"):
        raise UsageError(f"unknown serving '{serving}'", hint=nearest(serving, ("alone", "aggregated")))
    if serving == "aggregated":
        return parse_tokens(tokens or "1k", name="output tokens")
    if tokens is not None:
        raise UsageError("--output-tokens is of aggregated serving", hint="add --serving aggregated")
    return None

"""Commands about what was measured: signatures and help; bodies import when they run."""

from pathlib import Path
from typing import Annotated

import typer

from kvcalc.cli import options as opt
from kvcalc.cli.app import app, run


@app.command()
def profile(
    spec: opt.Spec,
    batch: Annotated[
        str | None, typer.Option("--batch", "-b", help="Sequences: 1,8,32 or 1:128:x2. Default: for the device.")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option("--context", "-c", help="Tokens attended: 4k,32k or 4k:128k:x2. Default: for the device."),
    ] = None,
    query_tokens: Annotated[
        str | None, typer.Option("--query-tokens", help="New tokens a sequence. Default: 1; in prefill, all.")
    ] = None,
    phase: Annotated[str, typer.Option(help="decode or prefill.")] = "decode",
    tp: opt.Tp = 1,
    dtype: Annotated[
        str | None, typer.Option(help="Format of queries and outputs: fp32, fp16, bf16. Default: bf16, on a CPU fp32.")
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help="Format of the cache: as --dtype, or fp8. Default: as --dtype.")
    ] = None,
    kernel: Annotated[
        list[str] | None, typer.Option("--kernel", "-k", help="Kernels, commas between them. Default: all that run.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    what_if: Annotated[
        str, typer.Option("--what-if", help="Attentions to set beside MLA: gqa:8,mha,mqa, or none.")
    ] = "gqa:8,mha",
    case: Annotated[list[str] | None, typer.Option("--case", help="Only the case with this id.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds: few cases, few samples.")] = False,
    repeat_process: Annotated[int, typer.Option(help="The whole run in so many fresh processes.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw roofline and times into this .png, .svg or .pdf.")
    ] = None,
    save_calibration: Annotated[
        Path | None, typer.Option("--save-calibration", help="Fit the timed decode cases; for estimate --calibration.")
    ] = None,
    format: opt.Format = None,
    json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Real attention kernels on this machine: proved right, timed, and set beside the prediction."""

    def body() -> int:
        from kvcalc.commands.profile import run
        from kvcalc.units import parse_tokens

        return run(
            spec,
            batch=batch,
            context=context,
            query_tokens=None if query_tokens is None else parse_tokens(query_tokens, name="query tokens"),
            phase=phase,
            tp=tp,
            dtype=dtype,
            kv_dtype=kv_dtype,
            kernels=kernel or [],
            device=device,
            what_if=what_if,
            case_ids=case or [],
            quick=quick,
            repeat_process=repeat_process,
            seed=seed,
            plot=plot,
            save_calibration=save_calibration,
            format=format,
            json=json,
            output=output,
        )

    run(body)


@app.command()
def reconcile(
    log: opt.Log,
    model: opt.LogModel = None,
    engine: opt.LogEngine = None,
    gpu: opt.GpuName = None,
    tp: opt.LogTp = None,
    pp: opt.LogPp = None,
    dcp: opt.LogDcp = None,
    kv_dtype: opt.KvDtype = None,
    block_size: opt.BlockSize = None,
    prefix_caching: opt.PrefixCaching = None,
    max_batched_tokens: opt.BatchedTokens = None,
    as_bytes: opt.AsBytes = False,
    format: opt.Format = None,
    json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """An engine's startup log beside the rules: where its memory goes, line by line."""

    def body() -> int:
        from kvcalc.commands.reconcile import run

        return run(
            log,
            model=model,
            engine=engine,
            gpu=gpu,
            ranks={"tp": tp, "pp": pp, "dcp": dcp},
            kv_dtype=kv_dtype,
            block_tokens=block_size,
            prefix_caching=prefix_caching,
            max_batched_tokens=max_batched_tokens,
            as_bytes=as_bytes,
            format=format,
            json=json,
            output=output,
        )

    run(body)


@app.command()
def check(
    sides: opt.Sides = None,
    runs: opt.Runs = None,
    specs: opt.SpecsFolder = None,
    update: opt.Update = False,
    threshold: opt.Threshold = None,
    max_regression: opt.MaxRegression = None,
    strict: opt.Strict = None,
    allow_different_gpu: opt.DifferentGpu = None,
    format: opt.CheckFormat = None,
    json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Results against a baseline: exit code 1 where something got worse, 3 where they can't be compared."""

    def body() -> int:
        from kvcalc.commands.check import run

        return run(
            sides or [],
            runs=runs or [],
            specs=specs,
            update=update,
            threshold=threshold,
            max_regression=max_regression or [],
            strict=strict,
            allow_different_gpu=allow_different_gpu,
            format=format,
            json=json,
            output=output,
        )

    run(body)


@app.command()
def report(results: opt.ResultFiles, output: opt.ReportFile) -> None:
    """A page to share from results: what is kept, how fast, and how it was measured, in one file."""

    def body() -> int:
        from kvcalc.commands.report import run

        return run(results, output=output)

    run(body)


@app.command()
def predict(
    cases: Annotated[str, typer.Argument(metavar="CASES.csv", help="A table of decode attention cases, or -.")],
    gpu: opt.NeededGpu,
    family: opt.Family = None,
    calibration: opt.CalibrationFile = None,
    output: opt.Output = None,
) -> None:
    """The time of every row of a table of decode attention cases, with its interval."""

    def body() -> int:
        from kvcalc.commands.predict import run

        return run(cases, gpu=gpu, family=family, calibration=calibration, output=output)

    run(body)


@app.command()
def calibrate(
    points: Annotated[str, typer.Argument(metavar="POINTS.csv", help="The same table with a column latency_us, or -.")],
    gpu: opt.NeededGpu,
    family: opt.Family = None,
    output: opt.Output = None,
) -> None:
    """Fit a kernel family to measured points: a calibration that predict and estimate use."""

    def body() -> int:
        from kvcalc.commands.calibrate import run

        return run(points, gpu=gpu, family=family, output=output)

    run(body)

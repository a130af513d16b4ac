"""Commands that calculate: signatures and help. Every body imports its command when it runs, so that help is quick."""

from typing import Annotated

import typer

from kvcalc.cli import options as opt
from kvcalc.cli.app import app, run


@app.command()
def estimate(
    spec: opt.Spec,
    context: opt.Context = None,
    batch: opt.Batch = "1",
    query_tokens: opt.QueryTokens = "1",
    gpu: opt.GpuName = None,
    kv_dtype: opt.KvDtype = None,
    index_dtype: opt.IndexDtype = None,
    state_dtype: opt.StateDtype = None,
    weights_dtype: opt.WeightsDtype = None,
    tp: opt.Tp = 1,
    pp: opt.Pp = 1,
    dp: opt.Dp = 1,
    dcp: opt.Dcp = 1,
    ep: opt.Ep = 1,
    mtp: opt.Mtp = False,
    engine: opt.Engine = "generic",
    block_size: opt.BlockSize = None,
    prefix_caching: opt.PrefixCaching = None,
    max_batched_tokens: opt.BatchedTokens = None,
    memory_utilization: opt.Utilization = None,
    calibration: opt.CalibrationFile = None,
    serving: opt.Serving = "alone",
    output_tokens: opt.OutputTokens = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every number as a formula, with its source.")] = False,
    fail_if_oom: Annotated[bool, typer.Option("--fail-if-oom", help="Exit 1 where it does not fit.")] = False,
    as_bytes: opt.AsBytes = False,
    format: opt.Format = None,
    json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Cache bytes, FLOPs and, with --gpu, times and what fits; a row each for lists and ranges (1,8,32 or 4k:1m:x2)."""

    def body() -> int:
        from kvcalc.commands.estimate import run
        from kvcalc.units import parse_list

        return run(
            spec,
            context_tokens=None if context is None else parse_list(context, name="context"),
            batch=parse_list(batch, name="batch"),
            query_tokens=parse_list(query_tokens, name="query tokens"),
            gpu=gpu,
            kv_dtype=kv_dtype,
            index_dtype=index_dtype,
            state_dtype=state_dtype,
            weights_dtype=weights_dtype,
            tp=tp,
            pp=pp,
            dp=dp,
            dcp=dcp,
            ep=ep,
            mtp=mtp,
            engine=engine,
            block_tokens=block_size,
            prefix_caching=prefix_caching,
            max_batched_tokens=max_batched_tokens,
            memory_utilization=memory_utilization,
            calibration=calibration,
            output_tokens=opt.output_tokens(serving, output_tokens),
            explained=explain,
            fail_if_oom=fail_if_oom,
            as_bytes=as_bytes,
            format=format,
            json=json,
            output=output,
        )

    run(body)


@app.command()
def compare(
    specs: opt.Specs,
    what_if: Annotated[
        str | None,
        typer.Option("--what-if", help="One model beside itself with other attention: mha,gqa:8,mqa,mla,mla:256+64."),
    ] = None,
    context: opt.Context = None,
    batch: opt.Batch = "1",
    query_tokens: opt.QueryTokens = "1",
    gpu: opt.GpuName = None,
    kv_dtype: opt.KvDtype = None,
    index_dtype: opt.IndexDtype = None,
    state_dtype: opt.StateDtype = None,
    weights_dtype: opt.WeightsDtype = None,
    tp: opt.Tp = 1,
    pp: opt.Pp = 1,
    dp: opt.Dp = 1,
    dcp: opt.Dcp = 1,
    ep: opt.Ep = 1,
    mtp: opt.Mtp = False,
    engine: opt.Engine = "generic",
    block_size: opt.BlockSize = None,
    prefix_caching: opt.PrefixCaching = None,
    max_batched_tokens: opt.BatchedTokens = None,
    memory_utilization: opt.Utilization = None,
    as_bytes: opt.AsBytes = False,
    format: opt.Format = None,
    json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Several models, or one with its attention replaced, in one table."""

    def body() -> int:
        from kvcalc.commands.compare import run
        from kvcalc.units import parse_tokens

        return run(
            specs,
            what_if=what_if,
            context_tokens=None if context is None else parse_tokens(context, name="context"),
            batch=parse_tokens(batch, name="batch"),
            query_tokens=parse_tokens(query_tokens, name="query tokens"),
            gpu=gpu,
            kv_dtype=kv_dtype,
            index_dtype=index_dtype,
            state_dtype=state_dtype,
            weights_dtype=weights_dtype,
            tp=tp,
            pp=pp,
            dp=dp,
            dcp=dcp,
            ep=ep,
            mtp=mtp,
            engine=engine,
            block_tokens=block_size,
            prefix_caching=prefix_caching,
            max_batched_tokens=max_batched_tokens,
            memory_utilization=memory_utilization,
            as_bytes=as_bytes,
            format=format,
            json=json,
            output=output,
        )

    run(body)


@app.command()
def plan(
    spec: opt.Spec,
    gpu: opt.NeededGpu,
    gpus: opt.Gpus = None,
    context: opt.Context = None,
    batch: opt.MostBatch = None,
    tp: opt.OnlyTp = None,
    pp: opt.OnlyPp = None,
    dp: opt.OnlyDp = None,
    dcp: opt.OnlyDcp = None,
    ep: opt.OnlyEp = None,
    search: opt.Search = False,
    target_tpot: opt.TargetTpot = None,
    price: opt.Price = None,
    lengths: opt.Lengths = None,
    shared_prefix: opt.SharedPrefix = None,
    cascade: opt.Cascade = False,
    draft: opt.Draft = None,
    draft_tokens: opt.DraftTokens = 0,
    acceptance: opt.Acceptance = 0.7,
    link: opt.Link = None,
    calibration: opt.CalibrationFile = None,
    weights_bytes: opt.WeightsBytes = None,
    reserve: opt.Reserve = None,
    memory_utilization: opt.Utilization = None,
    kv_dtype: opt.KvDtype = None,
    index_dtype: opt.IndexDtype = None,
    state_dtype: opt.StateDtype = None,
    weights_dtype: opt.WeightsDtypes = None,
    mtp: opt.Mtp = False,
    engine: opt.Engine = "generic",
    block_size: opt.BlockSize = None,
    prefix_caching: opt.PrefixCaching = None,
    max_batched_tokens: opt.BatchedTokens = None,
    fail_if_oom: Annotated[bool, typer.Option("--fail-if-oom", help="Exit 1 where nothing fits.")] = False,
    as_bytes: opt.AsBytes = False,
    format: opt.Format = None,
    json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """What fits on how many GPUs, for mixes of parallelism side by side."""

    def body() -> int:
        from kvcalc.commands.plan import run
        from kvcalc.units import parse_tokens

        return run(
            spec,
            gpu=gpu,
            gpus=gpus,
            ranks={"tp": tp, "pp": pp, "dp": dp, "dcp": dcp, "ep": ep},
            context_tokens=None if context is None else parse_tokens(context, name="context"),
            batch=None if batch is None else parse_tokens(batch, name="batch"),
            search=search,
            target_tpot=target_tpot,
            price=price,
            lengths=lengths,
            shared_prefix_tokens=0 if shared_prefix is None else parse_tokens(shared_prefix, name="shared prefix"),
            cascade=cascade,
            draft=draft,
            draft_tokens=draft_tokens,
            acceptance=acceptance,
            link=link,
            calibration=calibration,
            weights_bytes=weights_bytes,
            reserve=reserve,
            memory_utilization=memory_utilization,
            kv_dtype=kv_dtype,
            index_dtype=index_dtype,
            state_dtype=state_dtype,
            weights_dtype=weights_dtype,
            mtp=mtp,
            engine=engine,
            block_tokens=block_size,
            prefix_caching=prefix_caching,
            max_batched_tokens=max_batched_tokens,
            fail_if_oom=fail_if_oom,
            as_bytes=as_bytes,
            format=format,
            json=json,
            output=output,
        )

    run(body)


@app.command(name="import")
def import_(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A config.json, hf:org/name, or - for standard input.")
    ],
    output: opt.Output = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file that -o names.")] = False,
) -> None:
    """A Hugging Face config.json as a kvcalc spec."""

    def body() -> int:
        from kvcalc.commands.import_ import run

        return run(config, output=output, force=force)

    run(body)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(metavar="models|gpus|kinds|formats|engines")],
    format: opt.Format = None,
    json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """What there is: models, gpus, kinds, formats, engines."""

    def body() -> int:
        from kvcalc.commands.list import run

        return run(what, format=format, json=json, output=output)

    run(body)


@app.command()
def schema(
    what: Annotated[str, typer.Argument(metavar="model|hardware|estimate|compare|profile|check|plan|reconcile")],
    output: opt.Output = None,
) -> None:
    """The JSON Schema of a spec or a result."""

    def body() -> int:
        from kvcalc.commands.schema import run

        return run(what, output=output)

    run(body)

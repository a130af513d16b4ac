"""The command line: names, options and help. Every body imports its command when it runs, so that help stays quick."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

import kvcalc
from kvcalc.errors import KvcalcError, SpecError, printable

app = typer.Typer(
    name="kvcalc",
    help="KV-cache memory and speed of LLM inference: how many bytes, how long, and is it true here.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BUG_EXIT_CODE, INTERRUPTED_EXIT_CODE = 70, 130


def _names(folder: str) -> list[str]:
    package = Path(__file__).resolve().parent
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
KvDtype = Annotated[str | None, typer.Option(help="Format of cache entries, of `kvcalc list formats`. Default: bf16.")]
IndexDtype = Annotated[str | None, typer.Option(help="Format of index keys. Default: the model's own.")]
StateDtype = Annotated[str | None, typer.Option(help="Format of recurrent states. Default: the model's own, or bf16.")]
WeightsDtype = Annotated[str | None, typer.Option(help="Format of weights. Default: as published.")]
Tp = Annotated[int, typer.Option(help="Attention tensor parallel ranks.")]
Pp = Annotated[int, typer.Option(help="Pipeline stages.")]
Dp = Annotated[int, typer.Option(help="Attention data parallel replicas.")]
Dcp = Annotated[int, typer.Option(help="Decode context parallel ranks, of the tp ranks.")]
Ep = Annotated[int, typer.Option(help="Expert parallel ranks, of the tp x dp ranks.")]
Mtp = Annotated[bool, typer.Option("--mtp", help="Count multi-token prediction layers too.")]
Engine = Annotated[str, typer.Option(help="Whose cache layout, of `kvcalc list engines`.")]
BlockSize = Annotated[int, typer.Option(help="Tokens in an allocated block.")]
Utilization = Annotated[
    float, typer.Option("--memory-utilization", help="Share of the reported GPU memory for weights and cache.")
]
AsBytes = Annotated[bool, typer.Option("--bytes", help="Exact bytes instead of GiB.")]
Format = Annotated[
    str | None,
    typer.Option("--format", "-f", help="table, text, json, csv or markdown. Default: table, text in a pipe."),
]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of standard output.")]


@app.command()
def estimate(
    spec: Spec,
    context: Context = None,
    batch: Batch = "1",
    query_tokens: QueryTokens = "1",
    gpu: GpuName = None,
    kv_dtype: KvDtype = None,
    index_dtype: IndexDtype = None,
    state_dtype: StateDtype = None,
    weights_dtype: WeightsDtype = None,
    tp: Tp = 1,
    pp: Pp = 1,
    dp: Dp = 1,
    dcp: Dcp = 1,
    ep: Ep = 1,
    mtp: Mtp = False,
    engine: Engine = "generic",
    block_size: BlockSize = 16,
    memory_utilization: Utilization = 0.9,
    explain: Annotated[bool, typer.Option("--explain", help="Every number as a formula, with its source.")] = False,
    fail_if_oom: Annotated[bool, typer.Option("--fail-if-oom", help="Exit 1 where it does not fit.")] = False,
    as_bytes: AsBytes = False,
    format: Format = None,
    json: Json = False,
    output: Output = None,
) -> None:
    """Cache bytes, FLOPs and, with --gpu, times and what fits."""

    def body() -> int:
        from kvcalc.commands.estimate import run
        from kvcalc.units import parse_tokens

        return run(
            spec,
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
            memory_utilization=memory_utilization,
            explained=explain,
            fail_if_oom=fail_if_oom,
            as_bytes=as_bytes,
            format=format,
            json=json,
            output=output,
        )

    _run(body)


@app.command()
def compare(
    specs: Specs,
    what_if: Annotated[
        str | None,
        typer.Option("--what-if", help="One model beside itself with other attention: mha,gqa:8,mqa,mla,mla:256+64."),
    ] = None,
    context: Context = None,
    batch: Batch = "1",
    query_tokens: QueryTokens = "1",
    gpu: GpuName = None,
    kv_dtype: KvDtype = None,
    index_dtype: IndexDtype = None,
    state_dtype: StateDtype = None,
    weights_dtype: WeightsDtype = None,
    tp: Tp = 1,
    pp: Pp = 1,
    dp: Dp = 1,
    dcp: Dcp = 1,
    ep: Ep = 1,
    mtp: Mtp = False,
    engine: Engine = "generic",
    block_size: BlockSize = 16,
    memory_utilization: Utilization = 0.9,
    as_bytes: AsBytes = False,
    format: Format = None,
    json: Json = False,
    output: Output = None,
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
            memory_utilization=memory_utilization,
            as_bytes=as_bytes,
            format=format,
            json=json,
            output=output,
        )

    _run(body)


@app.command(name="import")
def import_(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A config.json, hf:org/name, or - for standard input.")
    ],
    output: Output = None,
) -> None:
    """A Hugging Face config.json as a kvcalc spec."""

    def body() -> int:
        from kvcalc.commands.import_ import run

        return run(config, output=output)

    _run(body)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="models, gpus, kinds, formats or engines.")],
    format: Format = None,
    json: Json = False,
    output: Output = None,
) -> None:
    """What there is: models, gpus, kinds, formats, engines."""

    def body() -> int:
        from kvcalc.commands.list import run

        return run(what, format=format, json=json, output=output)

    _run(body)


@app.command()
def schema(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="model, hardware, estimate or compare.")],
    output: Output = None,
) -> None:
    """The JSON Schema of a spec or a result."""

    def body() -> int:
        from kvcalc.commands.schema import run

        return run(what, output=output)

    _run(body)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"kvcalc {kvcalc.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The options before a command; the help above them is the app's."""


def _run(body: Callable[[], int]) -> None:
    """Run a command's body; what it raises becomes an exit code, and only a bug a traceback."""
    try:
        code = body()
    except KvcalcError as error:
        _show(error)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED_EXIT_CODE
    except BrokenPipeError:  # the reader has what it wants; nothing more can be said on this stream
        sys.stdout = None
        code = 0
    except Exception:
        import traceback

        traceback.print_exc()
        print("this is a bug in kvcalc; please report it with the lines above", file=sys.stderr)
        code = BUG_EXIT_CODE
    raise SystemExit(code)


def _show(error: KvcalcError) -> None:
    print(error.message if isinstance(error, SpecError) else printable(f"error: {error.message}"), file=sys.stderr)
    if error.hint:
        print(printable(f"hint: {error.hint}"), file=sys.stderr)


def main() -> None:
    """The entry point of the `kvcalc` script."""
    try:
        app()
    except SystemExit as stop:
        # where help meets a closed pipe, typer wraps standard output and stops with 1
        closed = type(sys.stdout).__name__ == "PacifyFlushWrapper"
        raise SystemExit(0 if closed else stop.code) from None

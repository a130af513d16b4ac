"""`kvcalc report`: a page to share, from results of any kind."""

from collections.abc import Sequence
from pathlib import Path

from kvcalc.check.documents import VERSIONS, Document, load
from kvcalc.commands.output import write_file
from kvcalc.errors import KvcalcError, UsageError
from kvcalc.report.read import Json, number, text

ENDINGS = (".html", ".md", ".svg", ".png")
COMMANDS = tuple(name for name in VERSIONS if name != "baseline")
WHAT_IF = "mha,gqa:8,mqa,mla"
FIRST_CONTEXT, LAST_CONTEXT = 1024, 1 << 20


def run(paths: Sequence[Path], *, output: Path) -> int:
    """Write the page."""
    ending = output.suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(f"can't write a report as '{output}'", hint=f"name a file that ends in {', '.join(ENDINGS)}")
    if ending == ".png":
        from kvcalc.report.png import need_matplotlib

        need_matplotlib()
    import kvcalc
    from kvcalc.report.story import tell

    documents = [document for path in paths for document in load(path, commands=COMMANDS)]
    story = tell(
        [(document.command, document.data) for document in documents],
        curves=_curves(documents),
        made_by=f"Made by kvcalc {kvcalc.__version__} from {len(documents):,} result{'s' * (len(documents) != 1)}.",
    )
    if ending == ".html":
        from kvcalc.report import html

        write_file(output, html.render(story))
    elif ending == ".md":
        from kvcalc.report import markdown

        write_file(output, markdown.render(story.page().cleaned()))
    elif not story.figures:
        raise UsageError("there is nothing to draw in these results", hint="write .html or .md")
    elif ending == ".svg":
        from kvcalc.report import svg

        write_file(output, svg.document(story.figures, title=story.title))
    else:
        from kvcalc.report import png

        _write_bytes(output, png.render(story.figures, title=story.title))
    return 0


def _curves(documents: Sequence[Document]) -> dict[str, list[Json]]:
    """For each packaged model of the results, comparisons with other attention at all contexts up to its maximum.

    A name in a result is only looked up among the packaged ones: it is never taken for a path.
    """
    from kvcalc.specs.sources import model_names

    known = set(model_names())
    found: dict[str, list[Json]] = {}
    for document in documents:
        model = text(document.data, "model.name")
        if document.command in ("estimate", "profile") and model in known and model not in found:
            curve = _curve(model, batch=number(document.data, "workload.batch"), kv=text(document.data, "precision.kv"))
            if curve:
                found[model] = curve
    return found


def _curve(model: str, *, batch: float | None, kv: str) -> list[Json]:
    """Empty where the model's attention can't be replaced, or the result's values can't be asked for."""
    from kvcalc import api

    loaded = api.load_model(model)
    options = {"batch": int(batch) if batch and 1 <= batch <= 1 << 30 else 1, "kv_dtype": kv or None}
    contexts = []
    context = FIRST_CONTEXT
    while context <= min(loaded.max_context_tokens, LAST_CONTEXT):
        contexts.append(context)
        context *= 2
    try:
        return [
            api.compare([loaded], what_if=WHAT_IF, context_tokens=context, **options).to_json() for context in contexts
        ]
    except KvcalcError:
        return []


def _write_bytes(path: Path, content: bytes) -> None:
    """Whole or not at all. Raises UsageError where that can't be done."""
    temporary = path.with_name(f".kvcalc-{path.name}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"can't write '{path}': {error.strerror}") from error

"""`kvcalc schema`: the JSON Schemas of what kvcalc reads and writes."""

from pathlib import Path
from typing import Any

from kvcalc.commands.output import write_file, write_out
from kvcalc.errors import UsageError
from kvcalc.names import nearest
from kvcalc.report.data import render_json

RESULTS = ("estimate", "compare", "profile", "check", "plan", "reconcile")
WHAT = ("model", "hardware", *RESULTS)


def run(what: str, *, output: Path | None) -> int:
    """Print the schema."""
    text = render_json(schema(what))
    if output is None:
        write_out(text)
    else:
        write_file(output, text)
    return 0


def schema(what: str) -> dict[str, Any]:
    """The schema of one document type. Raises UsageError for a type that there is none of."""
    if what == "model":
        from kvcalc.specs.schema import model_schema

        return model_schema()
    if what == "hardware":
        from kvcalc.specs.hardware import hardware_schema

        return hardware_schema()
    if what in RESULTS:
        from kvcalc.commands.result_schemas import result_schema

        return result_schema(what)
    raise UsageError(f"there is no schema of '{what}'", hint=nearest(what, WHAT))

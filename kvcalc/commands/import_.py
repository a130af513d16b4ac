"""`kvcalc import`: a Hugging Face config.json as a kvcalc spec that a person can read and change."""

from pathlib import Path

from kvcalc.commands.output import write_file, write_out
from kvcalc.errors import UsageError


def run(config: str, *, output: Path | None, force: bool = False) -> int:
    """Convert, check that the result builds, then write it; over a file that is there only with `force`."""
    from kvcalc.specs.build import build_model
    from kvcalc.specs.huggingface.write import spec_yaml
    from kvcalc.specs.sources import load_document, spec_document

    if output is not None and output.is_file() and not force:
        raise UsageError(f"'{output}' is there already", hint="name another file, or overwrite it with --force")
    document = spec_document(load_document(config))
    build_model(document)
    text = spec_yaml(document.data)
    if output is None:
        write_out(text)
    else:
        write_file(output, text)
    return 0

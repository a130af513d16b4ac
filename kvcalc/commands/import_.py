"""`kvcalc import`: a Hugging Face config.json as a kvcalc spec that a person can read and change."""

from pathlib import Path

from kvcalc.commands.output import write_file, write_out


def run(config: str, *, output: Path | None) -> int:
    """Convert, check that the result builds, then write it."""
    from kvcalc.specs.build import build_model
    from kvcalc.specs.huggingface.write import spec_yaml
    from kvcalc.specs.sources import load_document, spec_document

    document = spec_document(load_document(config))
    build_model(document)
    text = spec_yaml(document.data)
    if output is None:
        write_out(text)
    else:
        write_file(output, text)
    return 0

"""Fetches a model's config.json, and nothing else, from the Hugging Face hub."""

from pathlib import Path

from kvcalc.errors import UsageError
from kvcalc.specs.reader import Document, read_bytes


def fetch_config(reference: str) -> Document:
    """config.json of `org/name` or `org/name@revision`. Raises UsageError where it can't be had."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UsageError(f"hf:{reference} needs the package huggingface_hub", hint="pip install 'kvcalc[hf]'") from None
    repository, _, revision = reference.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UsageError(f"'hf:{reference}' names no model", hint="write hf:org/name or hf:org/name@revision")
    try:
        path = hf_hub_download(repository, "config.json", revision=revision or None)
    except GatedRepoError:
        raise UsageError(
            f"hf:{reference} is gated", hint="accept its terms on the hub and log in with `hf auth login`"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"can't fetch config.json of hf:{reference}: {(str(error).splitlines() or [type(error).__name__])[0]}",
            hint="check the name, or download config.json and give its path",
        ) from None
    return read_bytes(f"hf:{reference}/config.json", Path(path).read_bytes())

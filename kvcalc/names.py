"""Hints for names that were nearly right."""

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` where something is close, else the list of what there is."""
    from difflib import get_close_matches

    names = sorted(set(known))
    close = get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{match}'" for match in close) + "?"
    return "known: " + ", ".join(names)

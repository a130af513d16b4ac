"""What profiling needs and a plain install does not bring."""

from importlib.util import find_spec

from kvcalc.errors import KvcalcError


class NoTorchError(KvcalcError):
    """Nothing can be measured without torch."""

    exit_code = 3


def need_torch() -> None:
    """Raise NoTorchError, which says in two lines how to install it."""
    try:
        found = find_spec("torch") is not None
    except ValueError:  # a module of that name that was not imported from anywhere
        found = False
    if not found:
        raise NoTorchError(
            "profile runs real kernels, and torch, which they need, is not installed",
            hint="pip install 'kvcalc[profile]'; for a CPU alone, install a CPU build of torch first, which is smaller",
        )

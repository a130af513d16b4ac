"""`kvcalc predict`: the time of every row of a table of decode attention cases."""

from pathlib import Path
from typing import Any

from kvcalc.api import load_calibrations, load_gpu
from kvcalc.commands.output import warn, write_file, write_out
from kvcalc.errors import UsageError
from kvcalc.timing.calibrated import CalibratedKernel, choose


def run(cases: str, *, gpu: str, family: str | None, calibration: Path | None, output: Path | None) -> int:
    """Predict and write the table with its predictions."""
    require_numpy()
    from kvcalc.timing.calibration.table import KINDS, predict, read_table, to_csv

    device = load_gpu(gpu)
    known = load_calibrations(device, calibration)
    table = read_table(read_text(cases), source=cases, points=False)
    used: dict[str, CalibratedKernel] = {}

    def chosen(kind: int, shared: bool, eight_bit: bool) -> CalibratedKernel:
        kernel = choose(
            KINDS[kind], shared_heads=shared, eight_bit=eight_bit, gpu=device, calibrations=known, family=family
        )
        used[kernel.origin] = kernel
        return kernel

    text = to_csv(table, predict(table, chosen))
    warn([origin for origin, kernel in used.items() if not kernel.fitted])
    if output is None:
        write_out(text)
    else:
        write_file(output, text)
    return 0


def read_text(source: str) -> str:
    """A file's text, or standard input's for `-`. Raises UsageError where it can't be read."""
    import sys

    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't read '{source}': {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"'{source}' is not UTF-8 text") from None


def require_numpy(*, fitting: bool = False) -> Any:
    """Raises UsageError that names the extra where numpy, or scipy for fitting, is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("numpy", *(("scipy",) if fitting else ())) if find_spec(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} not installed", hint="pip install 'kvcalc[predict]'")

"""`kvcalc calibrate`: fit a kernel family to a table of measured decode attention points."""

import datetime
from pathlib import Path

from kvcalc.api import load_gpu
from kvcalc.commands.output import warn, write_file, write_out
from kvcalc.commands.predict import read_text, require_numpy


def run(points: str, *, gpu: str, family: str | None, output: Path | None) -> int:
    """Fit each kernel that the points are of, and write the calibration."""
    require_numpy(fitting=True)
    from kvcalc.timing.calibration.own import calibrate
    from kvcalc.timing.calibration.store import to_yaml
    from kvcalc.timing.calibration.table import read_table

    device = load_gpu(gpu)
    table = read_table(read_text(points), source=points, points=True)
    calibration, notes = calibrate(
        table, device, family=family, source=f"{Path(points).name}, {len(table):,} points", date=_today()
    )
    warn(notes)
    text = to_yaml(calibration)
    if output is None:
        write_out(text)
    else:
        write_file(output, text)
    return 0


def _today() -> str:
    return datetime.date.today().isoformat()

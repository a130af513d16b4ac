"""C sources of this package as shared libraries: built by the machine's own compiler for its own CPU, and kept.

A library lies in the user's cache directory under a name made of all that it depends on, the CPU included: a home that
several machines share never holds one that another can't run.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

COMPILERS = ("cc", "gcc", "clang")
"""Looked for in this order where the environment's CC names none."""
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC")
FOR_THIS_CPU = ("-march=native", "-mcpu=native")
"""The first that the compiler knows is used; without any, a library is right but slow."""
LONGEST_S = 120


class BuildError(Exception):
    """Why there is no library, in one line."""


@cache
def compiler() -> tuple[str, ...]:
    """The command of a C compiler. Raises BuildError where none is found."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [[each] for each in COMPILERS]:
        if shutil.which(command[0]):
            return tuple(command)
    raise BuildError(f"no C compiler: {' '.join(named) or ', '.join(COMPILERS)} not found")


@cache
def compiler_version() -> str | None:
    """The first line that the compiler says of itself; None where there is none."""
    try:
        lines = _run(*compiler(), "--version").splitlines()
    except BuildError:
        return None
    return lines[0] if lines else None


def library(source: Path) -> ctypes.CDLL:
    """The library of a C file, built if need be. Raises BuildError where that is not possible, and tries once."""
    found = _library(source)
    if isinstance(found, BuildError):
        raise found
    return found


@cache
def _library(source: Path) -> ctypes.CDLL | BuildError:
    try:
        depends_on = (source.read_bytes(), compiler(), compiler_version(), FLAGS, _cpu())
        key = hashlib.sha256("\0".join(map(str, depends_on)).encode()).hexdigest()[:16]
        name = f"{source.stem}-{key}.so"
        try:
            return _load(source, _cache_folder() / name)
        except OSError:  # no home, or none that can be written: built anew in each process
            with tempfile.TemporaryDirectory() as folder:
                return _load(source, Path(folder) / name)
    except BuildError as error:
        return error
    except OSError as error:
        return BuildError(str(error))


def _load(source: Path, target: Path) -> ctypes.CDLL:
    if not target.exists():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _build(source, target)
    return ctypes.CDLL(str(target))


def _build(source: Path, target: Path) -> None:
    """Into a name of its own first: a library under its final name is whole."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(descriptor)
    try:
        for tuned in FOR_THIS_CPU:
            try:
                _run(*compiler(), *FLAGS, tuned, "-o", name, str(source), "-lm")
                break
            except BuildError:
                continue
        else:
            _run(*compiler(), *FLAGS, "-o", name, str(source), "-lm")
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _run(*command: str) -> str:
    """What a command prints. Raises BuildError with the first line of its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise BuildError(f"{command[0]}: {complaint.strip()}")
    return done.stdout


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvcalc"


def _cpu() -> str:
    """What this CPU is and can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    first = lines[: lines.index("")] if "" in lines else lines
    return "\n".join(line for line in first if line.startswith(("model name", "flags", "Features", "CPU part")))

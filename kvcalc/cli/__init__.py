"""The command line: names, options and help, and no more; what a command does is in `kvcalc.commands`."""

from kvcalc.cli import calculate, measure
from kvcalc.cli.app import app, main

__all__ = ["app", "calculate", "main", "measure"]

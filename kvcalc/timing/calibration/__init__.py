"""Calibration: fitting a kernel family to measured points, its interval, and the files that keep both."""

"""Measuring: one clock, the ceilings of the machine, the conditions that it ran under, and what machine it is."""

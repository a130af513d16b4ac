"""The attention model over many rows: numpy's namespace for its few operations, and cases as arrays.

Needs numpy, which the extra `[predict]` installs.
"""

from dataclasses import fields

import numpy as np

from kvcalc.timing.attention_time import AttentionCase, Operations

NUMPY = Operations(maximum=np.maximum, minimum=np.minimum, ceil=np.ceil, where=np.where, log2=np.log2)

CHUNK_ROWS = 1 << 15
"""Rows at a time: temporaries that stay in the processor's cache."""


def rows(case: AttentionCase) -> int:
    """How many rows the arrays of a case have."""
    return max(np.size(getattr(case, field.name)) for field in fields(case))


def take(case: AttentionCase, index: "np.ndarray | slice") -> AttentionCase:
    """Some of a case's rows; fields that are the same for all rows stay scalars."""
    return AttentionCase(
        **{field.name: value[index] if np.ndim(value := getattr(case, field.name)) else value for field in fields(case)}
    )

"""Checks of inputs that apply to every operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import constant_value
from onnxq.pipelines.dynamic.rewriter import LARGEST_HALF


def is_computed(value: ir.Value | None) -> bool:
    """Whether an input exists and is computed at run time."""
    return value is not None and constant_value(value) is None


def needs_float(*values: ir.Value | None) -> str | None:
    """Say why values do not have the type that kernels take; None if they have, or are missing."""
    for value in values:
        if value is not None and value.dtype != ir.DataType.FLOAT:
            return f"{value.name!r} is {value.dtype.name if value.dtype else 'untyped'}, expected FLOAT"
    return None


LEAST_WEIGHTS = 1024
"""The fewest weights of a product worth it: with fewer, quantizing the data costs more time than it saves."""

SCALING = "its inner size is 1: it scales numbers, such as positions, that may need all their digits"
"""The reason why a product without sums is kept in float."""


def weight_obstacle(*arrays: NDArray[np.generic]) -> str | None:
    """Say why weights cannot be quantized; None if they can."""
    if any(array.size == 0 for array in arrays):
        return "its weights are empty"
    if not all(np.isfinite(array).all() for array in arrays):
        return "its weights hold NaN or infinite numbers"
    return None


def half_obstacle(*arrays: NDArray[np.generic]) -> str | None:
    """Say why weights cannot be float16; None if they can."""
    if (reason := weight_obstacle(*arrays)) is not None:
        return reason
    if any(np.abs(array).max() > LARGEST_HALF for array in arrays):
        return f"it has weights beyond {LARGEST_HALF:.0f}, the largest float16"
    return None

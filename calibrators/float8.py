"""Run sessions with arrays of 8-bit floating-point numbers, whose bytes ONNX Runtime gives and takes.

numpy has no such type of its own, and ONNX Runtime returns the bytes as uint8. Everywhere else in the project
the arrays have the type of the package `ml_dtypes`, as onnx_ir gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

TYPES = {"tensor(float8e4m3fn)": ir.DataType.FLOAT8E4M3FN}
"""ONNX Runtime's name of a type -> the type."""

_OF_ARRAYS = {dtype.numpy(): dtype for dtype in TYPES.values()}


def run(
    session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any]
) -> list[NDArray[np.generic]]:
    """Run a session.

    Args:
        session: the session.
        outputs: names of its outputs to compute; at least one.
        feeds: arrays by input name.

    Returns:
        The outputs, with the types that they have in the model.
    """
    types = {value.name: TYPES.get(value.type) for value in session.get_outputs()}
    arrays = session.run(list(outputs), {name: _fed(array) for name, array in feeds.items()})
    known = (types[name] for name in outputs)
    pairs = zip(arrays, known, strict=True)
    return [array if dtype is None else array.view(dtype.numpy()) for array, dtype in pairs]


def _fed(array: Any) -> Any:
    """Convert 8-bit floating-point numbers to what a session takes; other arrays stay."""
    dtype = _OF_ARRAYS.get(array.dtype) if isinstance(array, np.ndarray) else None
    if dtype is None:
        return array
    stored = np.ascontiguousarray(array).view(np.uint8)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(stored, int(dtype))

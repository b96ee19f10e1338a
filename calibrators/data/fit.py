"""Fit an array to an input of the model, or say why it does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from calibrators.data.samples import Array, Dim, InputSpec, Sample, batched, shape_text
from calibrators.errors import CalibrationError


def fit_sample(sample: Sample, inputs: tuple[InputSpec, ...]) -> Sample:
    """Cast every array of the sample to its input's type, and check shapes and values.

    Raises:
        CalibrationError: an array does not fit its input, or holds NaN or Inf.
    """
    names = batched(inputs) if sample.joinable else frozenset()
    feeds = {
        spec.name: fit(sample.feeds[spec.name], spec, sample.name, spec.name in names) for spec in inputs
    }
    return replace(sample, feeds=feeds)


def fit(array: Array, spec: InputSpec, where: str, any_count: bool = False) -> Array:
    """Cast ``array`` to the type of ``spec``, and make it contiguous.

    Args:
        array: the data for one input.
        spec: the input.
        where: the name of the sample, for messages.
        any_count: allow any size of axis 0.

    Raises:
        CalibrationError: see `fit_sample`.
    """
    if not fits_shape(array.shape, spec, any_count):
        raise misfit(array.shape, spec, where)
    check_type(array.dtype, spec, where)
    if array.dtype.kind in "iu" and spec.dtype.kind in "iub":
        _check_range(array, spec, where)
    _check_finite(array, spec, where)
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, dtype=spec.dtype).reshape(array.shape)
    if spec.dtype != array.dtype:
        _check_finite(result, spec, where, f"a value beyond the range of {spec.dtype}")
    return result


def fits_shape(shape: tuple[int, ...], spec: InputSpec, any_count: bool = False) -> bool:
    """Whether an array of this shape fits the input.

    Args:
        shape: the shape of the array.
        spec: the input.
        any_count: allow any size of axis 0.
    """
    if spec.shape is None:
        return True
    expected: tuple[Dim, ...] = (None, *spec.shape[1:]) if any_count else spec.shape
    return len(expected) == len(shape) and all(map(_agree, shape, expected))


def misfit(shape: tuple[int, ...], spec: InputSpec, where: str) -> CalibrationError:
    """Make the error for an array whose shape does not fit its input.

    Args:
        shape: the shape of the array.
        spec: the input.
        where: the name of the file or sample, for the message.
    """
    return CalibrationError(
        f"{where}: the array for input '{spec.name}' has shape {shape_text(shape)}, the model takes "
        f"{shape_text(spec.shape)}: give data of that shape, its first axis counting samples"
    )


def _agree(size: int, dim: Dim) -> bool:
    return not isinstance(dim, int) or size == dim


def check_type(dtype: np.dtype[np.generic], spec: InputSpec, where: str) -> None:
    """Check that values of this type may be cast to the input's type.

    Casts that keep the kind of number are allowed: float to float, integer to integer (if the values
    fit) or to float, bool to any.

    Args:
        dtype: the type of the array.
        spec: the input.
        where: the name of the file or sample, for the message.

    Raises:
        CalibrationError: the cast is not allowed.
    """
    if dtype.kind == "U" and spec.dtype.kind in "OU":
        return
    numbers = dtype.kind in "biuf" and spec.dtype.kind not in "OU"
    integers = dtype.kind in "iu" and spec.dtype.kind in "iub"
    if numbers and (integers or np.can_cast(dtype, spec.dtype, "same_kind")):
        return
    raise CalibrationError(
        f"{where}: the array for input '{spec.name}' holds {dtype} values, the model takes {spec.dtype}: "
        f"if that is intended, convert it with astype('{spec.dtype}')"
    )


def _check_range(array: Array, spec: InputSpec, where: str) -> None:
    if array.size == 0 or np.can_cast(array.dtype, spec.dtype, "safe"):
        return
    low, high = _limits(spec.dtype)
    if int(array.min()) < low or int(array.max()) > high:
        raise CalibrationError(
            f"{where}: the array for input '{spec.name}' holds values from {array.min()} to {array.max()}, "
            f"{spec.dtype} holds {low} to {high}"
        )


def _limits(dtype: np.dtype[np.generic]) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    return int(np.iinfo(dtype.name).min), int(np.iinfo(dtype.name).max)


def _check_finite(array: Array, spec: InputSpec, where: str, what: str = "") -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    what = what or ("NaN" if np.isnan(array[index]) else "Inf")
    raise CalibrationError(
        f"{where}: input '{spec.name}' holds {what} at index {list(index)}: calibration needs finite values; "
        "repair or remove that sample"
    )

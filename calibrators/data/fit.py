"""Make one array what an input of the model takes, or say why it cannot be."""

from __future__ import annotations

import numpy as np

from calibrators.data.samples import Array, Dim, InputSpec, Sample, batched, shape_text
from calibrators.errors import CalibrationError


def fit_sample(sample: Sample, inputs: tuple[InputSpec, ...]) -> Sample:
    """The sample with every array cast to its input's type, checked for shape, NaN and Inf.

    Raises:
        CalibrationError: an array does not fit its input, or holds a value that is not finite.
    """
    names = batched(inputs) if sample.joinable else frozenset()
    feeds = {
        spec.name: fit(sample.feeds[spec.name], spec, sample.name, spec.name in names) for spec in inputs
    }
    return Sample(sample.name, feeds, sample.count, sample.joinable)


def fit(array: Array, spec: InputSpec, where: str, any_count: bool = False) -> Array:
    """``array`` in the type of ``spec``, contiguous; with ``any_count`` axis 0 may have any size.

    Raises:
        CalibrationError: see `fit_sample`; ``where`` names the sample.
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
    """May the input get an array of this shape? With ``any_count`` axis 0 may have any size."""
    if spec.shape is None:
        return True
    expected: tuple[Dim, ...] = (None, *spec.shape[1:]) if any_count else spec.shape
    return len(expected) == len(shape) and all(map(_agree, shape, expected))


def misfit(shape: tuple[int, ...], spec: InputSpec, where: str) -> CalibrationError:
    """The error that an array of this shape is no input."""
    return CalibrationError(
        f"{where}: the array for input '{spec.name}' has shape {shape_text(shape)}, the model takes "
        f"{shape_text(spec.shape)}: give data of that shape, its first axis counting samples"
    )


def _agree(size: int, dim: Dim) -> bool:
    return not isinstance(dim, int) or size == dim


def check_type(dtype: np.dtype[np.generic], spec: InputSpec, where: str) -> None:
    """Raise `CalibrationError` unless values of this type may stand for the input's.

    Allowed is what keeps the kind of number: float to float, integer to integer (if the values
    fit) or to float, bool to any.
    """
    if dtype.kind == "U" and spec.dtype.kind in "OU":
        return
    numbers = dtype.kind in "biuf" and spec.dtype.kind not in "OU"
    integers = dtype.kind in "iu" and spec.dtype.kind in "iub"
    if numbers and (integers or np.can_cast(dtype, spec.dtype, "same_kind")):
        return
    raise CalibrationError(
        f"{where}: the array for input '{spec.name}' holds {dtype} values, the model takes {spec.dtype}: "
        f"convert it, if that is meant, with astype('{spec.dtype}')"
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
        f"{where}: input '{spec.name}' holds {what} at index {list(index)}: calibration needs finite values, "
        "repair or remove that sample"
    )

"""Turn ranges into scales, quantize and dequantize arrays, and measure the error. numpy only.

============== ========= ======== ============== ==========================================
format         symmetric limits   zero_point     scale
============== ========= ======== ============== ==========================================
uint8          no        0, 255   0 … 255        (high - low) / 255, zero in the range
uint8          yes       0, 255   128            amax / 127
int8           no        -128,127 -128 … 127     (high - low) / 255, zero in the range
int8           yes       -128,127 0              amax / 127
int8 narrow    yes       -127,127 0              amax / 127
int8 7-bit     yes       -64, 63  0              amax / 63
float8e4m3fn   yes       ±448     0              amax / 448, or what a search finds
int32 (bias)   yes       ±2^31    0              input scale x weight scale
============== ========= ======== ============== ==========================================

If scales are powers of two, the scale is the least power of two that is not below that of the table.
16- and 4-bit types follow the same rows. With per-block scales (``[…, K, …]`` cut along one axis), scale and
zero point have the shape ``[…, ceil(K / block_size), …]``. Rounding is half to even, as in QuantizeLinear.
Floating-point numbers are rounded to their own grid (see `Grid`), and saturate at its ends.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrators.grid import Grid
from onnxq.core.plan import FLOATING, QuantParams, QuantSpec

_Scalar = TypeVar("_Scalar", bound=np.generic)

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Least normal float32. A smaller scale is subnormal: 1/scale overflows, and runtimes flush it to zero."""

UNBOUNDED = (-np.inf, np.inf)


def grid_of(spec: QuantSpec) -> Grid:
    """Make the grid that numbers are rounded to, and on which calibration methods measure errors."""
    qmin, qmax = spec.limits
    return Grid(qmin, qmax, spec.symmetric, FLOATING.get(spec.dtype))


def params_from_range(
    low: ArrayLike, high: ArrayLike, spec: QuantSpec, bounds: tuple[float, float] = UNBOUNDED
) -> QuantParams:
    """Compute scale and zero point for the range ``[low, high]``.

    The range is widened to hold zero, so that padding and ReLU are exact, and cut to ``bounds``. The
    *rounded* grid does not exceed the bounds either, unless it is symmetric or its scales are powers of two:
    ONNX Runtime drops a Relu or Clip before QuantizeLinear only if the grid lies within its limits. An empty
    range (a tensor that is always zero) gets scale 1. Floating-point numbers may exceed the bounds: a wider
    range loses no precision, and may place them better.

    Args:
        low: low ends of any shape.
        high: high ends, of the same shape.
        spec: the number format.
        bounds: limits of useful values (low <= 0 <= high).

    Raises:
        ValueError: an end of the range is NaN or infinite.
    """
    bounds = UNBOUNDED if spec.is_floating else bounds
    low64 = np.minimum(np.maximum(np.asarray(low, dtype=np.float64), bounds[0]), 0.0)
    high64 = np.maximum(np.minimum(np.asarray(high, dtype=np.float64), bounds[1]), 0.0)
    if not (np.isfinite(low64).all() and np.isfinite(high64).all()):
        raise ValueError(f"a range must be finite, got [{low64}, {high64}]")
    qmin, qmax = spec.limits
    if spec.symmetric:
        middle = 0 if spec.dtype.is_signed() else (qmax + qmin + 1) // 2
        scale = usable_scale(np.maximum(-low64, high64) / (qmax - middle), spec)
        return QuantParams(scale, np.full(scale.shape, middle).astype(spec.dtype.numpy()))
    scale = usable_scale((high64 - low64) / (qmax - qmin), spec)
    zero_point = np.clip(np.rint(qmin - low64 / scale), qmin, qmax)
    if not spec.power_of_two:
        scale = usable_scale(_within(scale, zero_point, spec, bounds), spec)
    return QuantParams(scale, zero_point.astype(spec.dtype.numpy()))


def _within(
    scale: NDArray[np.float32], zero_point: NDArray[np.float64], spec: QuantSpec, bounds: tuple[float, float]
) -> NDArray[np.float64]:
    """Find the largest float32 scale, at most ``scale``, with which the grid stays inside ``bounds``."""
    qmin, qmax = spec.limits
    fitted = scale.astype(np.float64)
    for level, bound in ((qmin, bounds[0]), (qmax, bounds[1])):
        steps = level - zero_point
        limit = np.divide(bound, steps, out=np.full(fitted.shape, np.inf), where=steps != 0)
        fitted = np.minimum(fitted, limit)
    below = np.nextafter(fitted.astype(np.float32), np.float32(0))
    return np.where(fitted.astype(np.float32) > fitted, below, fitted.astype(np.float32))


def usable_scale(scale: NDArray[np.floating[Any]], spec: QuantSpec) -> NDArray[np.float32]:
    """Make a scale usable: float32, 1 instead of 0, not subnormal, and a power of two if ``spec`` says so."""
    usable = np.where(scale == 0, 1.0, np.maximum(scale, SMALLEST_SCALE))
    if spec.power_of_two:
        usable = np.exp2(np.ceil(np.log2(usable)))
    return np.asarray(usable, dtype=np.float32)


def spread(values: NDArray[_Scalar], spec: QuantSpec, shape: tuple[int, ...]) -> NDArray[_Scalar]:
    """Reshape scales or zero points so that they broadcast over a tensor.

    ``()`` stays, ``[C]`` becomes ``[1, C, 1 …]``, and per-block values are repeated for each element.

    Args:
        values: scales or zero points.
        spec: the number format.
        shape: the shape of the tensor.
    """
    if spec.axis is None or values.ndim == 0:
        return values
    size = shape[spec.axis]
    if spec.block_size is not None:
        return np.repeat(values, spec.block_size, spec.axis).take(np.arange(size), spec.axis)
    return values.reshape([-1 if axis == spec.axis % len(shape) else 1 for axis in range(len(shape))])


def quantize(real: NDArray[np.generic], params: QuantParams, spec: QuantSpec) -> NDArray[np.generic]:
    """Quantize: ``clip(round(real / scale) + zero_point)`` in the type of ``spec``, rounded to its grid.

    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html

    Args:
        real: float numbers of any shape; the result has the same shape.
        params: scale and zero point.
        spec: the number format.
    """
    scale = spread(params.scale, spec, real.shape)
    zero_point = spread(params.zero_point.astype(np.float64), spec, real.shape)
    qmin, qmax = spec.limits
    levels = grid_of(spec).rounded(real.astype(np.float32) / scale).astype(np.float64)
    clipped = np.clip(levels + zero_point, qmin, qmax)
    return np.asarray(clipped, dtype=spec.dtype.numpy())


def dequantize(levels: NDArray[np.generic], params: QuantParams, spec: QuantSpec) -> NDArray[np.float32]:
    """Dequantize: ``(q - zero_point) * scale`` as float32. `quantize` restores exactly ``levels``.

    Args:
        levels: numbers of the grid, of any shape; the result has the same shape.
        params: scale and zero point.
        spec: the number format.
    """
    scale = spread(params.scale, spec, levels.shape)
    zero_point = spread(params.zero_point.astype(np.float32), spec, levels.shape)
    shifted = levels.astype(np.float32) - zero_point
    return np.asarray(shifted * scale, dtype=np.float32)


def weight_range(
    weight: NDArray[np.generic], spec: QuantSpec
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Find the lowest and the highest weight for each scale: shape ``()``, ``[C]`` or that of the blocks."""
    axis = spec.axis
    if weight.size == 0:
        zero = np.zeros((), np.float32)
        return zero, zero
    if axis is not None and spec.block_size is not None:
        starts = np.arange(0, weight.shape[axis], spec.block_size)
        low, high = (end.reduceat(weight, starts, axis) for end in (np.minimum, np.maximum))
        return low, high
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    return np.asarray(weight.min(axis=others)), np.asarray(weight.max(axis=others))


def quantize_bias(bias: NDArray[np.generic], scale: NDArray[np.generic]) -> NDArray[np.int32]:
    """Quantize a bias: ``round(bias / scale)`` as int32, saturated at the int32 limits.

    ``scale`` is input scale x weight scale, ``()`` or ``[C]``.
    """
    levels = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(levels, limits.min, limits.max).astype(np.int32)


def sqnr(reference: NDArray[np.generic], actual: NDArray[np.generic]) -> float:
    """Compute the signal to quantization noise ratio in dB: ``10 log10(sum ref^2 / sum (ref - actual)^2)``.

    It is infinite if both are equal, and minus infinite if the reference is all zero and the other is not.
    """
    expected = reference.astype(np.float64)
    noise = float(np.square(expected - actual.astype(np.float64)).sum())
    return decibels(float(np.square(expected).sum()), noise)


def decibels(signal: float, noise: float) -> float:
    """Compute ``10 log10(signal / noise)`` of two powers; see `sqnr`."""
    if noise == 0:
        return float("inf")
    if signal == 0 or np.isinf(noise):
        return float("-inf")
    return float(10 * np.log10(signal / noise))

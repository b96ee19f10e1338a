"""Search the weight scale with the least squared rounding error, for each channel or block by itself.

``min over s of sum (w - s * (clip(round(w / s) + z) - z))^2``, tried at multiples of the scale that just
covers the largest weight. With many levels, rounding errors depend on how the weights happen to fall on the
grid. A slightly larger scale is then best as often as a smaller one, which clips. With few levels, steps are
so wide that clipping the largest weights is worth it for all the others. On a floating-point grid, the scale
decides where the weights lie between powers of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from calibrators.grid import Grid
from onnxq.core.numerics import grid_of
from onnxq.core.plan import QuantParams, QuantSpec

LARGEST = 1.2
"""The largest multiple that is tried on an integer grid."""

FLOATING = (0.5, 2.0)
"""The least and the largest multiple that are tried on a floating-point grid: an octave to either side."""

SPARED = 10.0
"""Sets the smallest multiple, ``L / (L + 10)`` for ``L`` levels per side. Measured on trained networks: the
best multiple is below it for less than one channel in a hundred, with 2 to 8 bits, and with 32 weights per
scale or thousands."""

COARSE, FINE = 33, 8
"""The number of multiples tried over the whole range, and then between the neighbours of the best one."""

SAMPLE = 512
"""The number of weights per channel to try multiples on, evenly spread. The best scale must then be better
than the initial one on all weights of the channel."""

BLOCK = 2**20
"""The number of weights processed together, to limit memory. A channel is never split."""

Floats = NDArray[np.float32]
_Scalar = TypeVar("_Scalar", bound=np.generic)


def refine_scale(weight: NDArray[np.generic], params: QuantParams, spec: QuantSpec) -> QuantParams:
    """Search scales with less squared rounding error than those of ``params``.

    Args:
        weight: the weights, of any shape.
        params: the initial parameters, which cover the range of the weights.
        spec: the number format.

    Returns:
        Parameters of the same shape whose rounding error is never larger.
    """
    if weight.size == 0:
        return params
    rows = _rows(weight, spec)
    scales, zeros = (_flat(values, spec) for values in (params.scale, params.zero_point.astype(np.float32)))
    limits = np.array(spec.limits, np.float32)[:, None] - zeros
    step = max(1, BLOCK // rows.shape[1])
    blocks = (slice(start, start + step) for start in range(0, len(rows), step))
    grid = grid_of(spec)
    best = [_best(grid, rows[b].astype(np.float32), scales[b], limits[:, b]) for b in blocks]
    return QuantParams(_unflat(np.concatenate(best), params.scale.shape, spec), params.zero_point)


def _rows(weight: NDArray[_Scalar], spec: QuantSpec) -> NDArray[_Scalar]:
    """Reshape to one row per scale; short blocks are filled with zeros, which have no rounding error."""
    if spec.axis is None:
        return weight.reshape(1, -1)
    if spec.block_size is None:
        return np.moveaxis(weight, spec.axis, 0).reshape(weight.shape[spec.axis], -1)
    missing = -weight.shape[spec.axis] % spec.block_size
    moved = np.moveaxis(weight, spec.axis, -1)
    return np.pad(moved, [(0, 0)] * (weight.ndim - 1) + [(0, missing)]).reshape(-1, spec.block_size)


def _flat(values: NDArray[_Scalar], spec: QuantSpec) -> NDArray[_Scalar]:
    """Flatten scales or zero points in the order of `_rows`."""
    return (np.moveaxis(values, spec.axis or 0, -1) if values.ndim > 1 else values).reshape(-1)


def _unflat(values: NDArray[_Scalar], shape: tuple[int, ...], spec: QuantSpec) -> NDArray[_Scalar]:
    """Undo `_flat` for values of this ``shape``."""
    if len(shape) < 2:
        return values.reshape(shape)
    axis = (spec.axis or 0) % len(shape)
    return np.moveaxis(values.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis]), -1, axis)


def _best(grid: Grid, rows: Floats, scales: Floats, limits: Floats) -> Floats:
    """Find the best scale of each row: rows [R, K], scales [R], limits [2, R] minus zero points -> [R]."""
    sample = rows[:, :: -(-rows.shape[1] // SAMPLE)]

    def error(multiple: NDArray[np.float64]) -> NDArray[np.float64]:
        return _error(grid, sample, (scales * multiple).astype(np.float32), limits)

    levels = float(limits[1, 0] - limits[0, 0]) / 2
    ends = (levels / (levels + SPARED), LARGEST) if grid.floating is None else FLOATING
    coarse, width = np.linspace(*ends, COARSE, retstep=True)
    near = np.linspace(-width, width, FINE + 2)[1:-1]
    best = _tried(error, np.ones(len(rows)), coarse[:, None])
    best = _tried(error, best, best + near[:, None])
    refined = (scales * best).astype(np.float32)
    better = _error(grid, rows, refined, limits) < _error(grid, rows, scales, limits)
    return np.where(better, refined, scales)


def _tried(
    error: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    start: NDArray[np.float64],
    multiples: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Find the multiple with the least error per row, among ``start`` [R] and ``multiples`` [n, 1 or R]."""
    best, least = start, error(start)
    for multiple in multiples:
        tried = error(multiple)
        best, least = np.where(tried < least, multiple, best), np.minimum(tried, least)
    return best


def _error(grid: Grid, rows: Floats, scales: Floats, limits: Floats) -> NDArray[np.float64]:
    """Sum the squared rounding errors of each row: [R, K], [R], [2, R] -> [R]."""
    levels = grid.rounded(rows / scales[:, None]).clip(limits[0, :, None], limits[1, :, None])
    return np.asarray(np.square(rows - levels * scales[:, None]).sum(axis=1, dtype=np.float64))

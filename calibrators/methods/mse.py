"""Method ``mse``: the range with the least squared quantization error on the deployed grid.

On a floating-point grid, the range may also be wider than the values, by less than a factor of two: it
decides where the values lie between powers of two. There numbers are relatively closest just below one.

The error is exact for the histogram, whose values count as evenly spread within each bin. With
``u = x / scale`` and ``n = clip(round(u))`` the squared error ``scale**2 (u - n)**2`` has the integral
``scale**3 (n / 12 + (u - n)**3 / 3)``, for rounding and for clipping. On a floating-point grid, the sum of
the cubed gaps between zero and the number n takes the place of n in the first term. So the error of a
histogram is a sum over its bin edges of that integral times the drop in density at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrators.grid import Grid
from calibrators.methods.range_search import best_share, best_shares
from calibrators.statistics import TensorStatistics
from calibrators.statistics.histogram import SIDE

Floats = NDArray[np.float64]

CHUNK = 16
"""Number of candidates processed together, so that the data stay in the processor's cache."""

POINT = 2.0**-10
"""The least share of a bin over which its values are spread, if the range ends within the bin."""


def mse(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """Choose the range with the least mean squared error; it is never worse than the whole range.

    On asymmetric grids both ends are searched together. If all values have one sign, the end nearer to zero
    is not cut.

    Args:
        statistics: the statistics of the tensor.
        grid: the grid that the range is mapped to.
        averaged: not used by this method.

    Raises:
        CalibrationError: no finite value was seen.
    """
    return least_error(statistics, grid)


def least_error(statistics: TensorStatistics, grid: Grid, clipping: float = 1.0) -> tuple[float, float]:
    """Choose the range with the least squared error, with a weight for clipping errors.

    Args:
        statistics: the statistics of the tensor.
        grid: the grid that the range is mapped to.
        clipping: weight of the squared errors of clipped values.

    Raises:
        CalibrationError: no finite value was seen.
    """
    statistics.require_data()
    low, high = statistics.low, statistics.high
    if not statistics.amax:
        return low, high
    density = Density.of(statistics)

    def loss(shares: Floats) -> Floats:
        return squared_errors(density, grid, *_cut(low, high, shares, grid.symmetric), clipping)

    if grid.floating is not None:
        best = best_share(loss)
    else:
        best = best_shares(loss, (grid.symmetric or low < 0, not grid.symmetric and high > 0))
    lows, highs = _cut(low, high, best[None], grid.symmetric)
    return float(lows[0]), float(highs[0])


def squared_errors(
    density: Density, grid: Grid, lows: Floats, highs: Floats, clipping: float = 1.0
) -> Floats:
    """Sum the squared errors of each range ``[lows[i], highs[i]]``, widened to hold zero; ``[K]``.

    Args:
        density: the density of the values.
        grid: the grid that the ranges are mapped to.
        lows: the low ends, ``[K]``.
        highs: the high ends, ``[K]``.
        clipping: weight of the squared distance of values beyond the grid's ends.
    """
    scale, zero_point = _parameters(grid, np.minimum(lows, 0.0), np.maximum(highs, 0.0))
    errors = np.empty(scale.shape)
    for start in range(0, scale.size, CHUNK):
        part = slice(start, start + CHUNK)
        steps = density.edges / scale[part, None]
        below, above = (level - zero_point[part, None] for level in (grid.qmin, grid.qmax))
        errors[part] = scale[part] ** 3 * (_integral(grid, steps, (below, above), clipping) @ density.falls)
    return errors


def _integral(grid: Grid, steps: Floats, ends: tuple[Floats, Floats], clipping: float) -> Floats:
    """Integrate the squared error, in units of the scale, from zero to ``steps``.

    ``ends`` are the lowest and highest numbers, zero point subtracted. ``steps`` is overwritten.
    """
    inside = np.clip(steps, *ends)
    level = grid.rounded(inside)
    beyond = steps - inside
    steps -= level
    level = grid.cubed_gaps(level) / 12
    level += steps * steps * steps / 3
    if clipping != 1:
        level += (clipping - 1) / 3 * (beyond * beyond * beyond)
    return level


def _parameters(grid: Grid, lows: Floats, highs: Floats) -> tuple[Floats, Floats]:
    """Scale and zero point with which ranges that hold zero are deployed."""
    if grid.symmetric:
        scale = np.maximum(-lows, highs) / grid.steps_up
        return scale, np.full(scale.shape, float(grid.middle))
    scale = (highs - lows) / (grid.levels - 1)
    return scale, np.clip(np.rint(grid.qmin - lows / scale), grid.qmin, grid.qmax)


def _cut(low: float, high: float, shares: Floats, symmetric: bool) -> tuple[Floats, Floats]:
    """Cut the ends of ``[low, high]`` to ``shares``, ``[K, 2]``; ``symmetric``: one limit for both ends.

    Shares above 1 widen both ends.
    """
    if symmetric:
        limit, wider = max(-low, high) * shares[:, 0], np.maximum(shares[:, 0], 1.0)
        return np.maximum(low * wider, -limit), np.minimum(high * wider, limit)
    shrunk_low = low * shares[:, 0] if low < 0 else np.full(len(shares), low)
    shrunk_high = high * shares[:, 1] if high > 0 else np.full(len(shares), high)
    return shrunk_low, shrunk_high


@dataclass(frozen=True)
class Density:
    """A piecewise constant density: it drops by ``falls[i]`` at ``edges[i]``; both ``[E]``."""

    edges: Floats
    falls: Floats

    @staticmethod
    def of(statistics: TensorStatistics) -> Density:
        """Make the density of a histogram; its outermost bins end at the extremes of the values."""
        counts, width = statistics.histogram.counts, statistics.histogram.width
        used = np.flatnonzero(counts)
        first, last = int(used[0]), int(used[-1]) + 1
        edges = np.arange(first - SIDE, last - SIDE + 1, dtype=np.float64) * width
        edges[0] = np.clip(statistics.low, edges[0], edges[1] - POINT * width)
        edges[-1] = np.clip(statistics.high, edges[-2] + POINT * width, edges[-1])
        density = np.concatenate([[0.0], counts[first:last] / np.diff(edges), [0.0]])
        falls = -np.diff(density)
        kept = np.flatnonzero(falls)
        return Density(edges[kept], falls[kept])

"""The range with the least squared quantization error on the grid it is deployed on.

The error is exact for the histogram: within a bin the values count as evenly spread. With
``u = x / scale`` and ``n = clip(round(u))`` the squared error ``scale**2 (u - n)**2`` has the integral
``scale**3 (n / 12 + (u - n)**3 / 3)``, rounding and clipping alike. So the error of a histogram is a sum over
its bin edges of that integral times the fall in density at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrators.grid import Grid
from calibrators.methods.range_search import best_shares
from calibrators.statistics import TensorStatistics
from calibrators.statistics.histogram import SIDE

Floats = NDArray[np.float64]

CHUNK = 16
"""Candidates at a time, so that the work stays in the processor's cache."""

POINT = 2.0**-10
"""The least part of a bin that its values are spread over, where the range ends within the bin."""


def mse(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """The range with the least mean squared error; never worse than the whole range.

    Asymmetric grids are searched over both ends at once. An end that zero lies beyond is not cut.

    Raises:
        CalibrationError: no finite value was seen.
    """
    return least_error(statistics, grid)


def least_error(statistics: TensorStatistics, grid: Grid, clipping: float = 1.0) -> tuple[float, float]:
    """The range with the least squared error, in which that of clipped values counts ``clipping`` times.

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

    best = best_shares(loss, (grid.symmetric or low < 0, not grid.symmetric and high > 0))
    lows, highs = _cut(low, high, best[None], grid.symmetric)
    return float(lows[0]), float(highs[0])


def squared_errors(
    density: Density, grid: Grid, lows: Floats, highs: Floats, clipping: float = 1.0
) -> Floats:
    """The summed squared error of each range ``[lows[i], highs[i]]``, widened to hold zero; ``[K]``.

    The squared distance of values beyond the grid's ends counts ``clipping`` times.
    """
    scale, zero_point = _parameters(grid, np.minimum(lows, 0.0), np.maximum(highs, 0.0))
    errors = np.empty(scale.shape)
    for start in range(0, scale.size, CHUNK):
        part = slice(start, start + CHUNK)
        steps = density.edges / scale[part, None]
        below, above = (level - zero_point[part, None] for level in (grid.qmin, grid.qmax))
        errors[part] = scale[part] ** 3 * (_integral(steps, below, above, clipping) @ density.falls)
    return errors


def _integral(steps: Floats, below: Floats, above: Floats, clipping: float) -> Floats:
    """Of the squared error in units of the scale, from zero to ``steps``; the grid ends at the other two."""
    inside = np.clip(steps, below, above)
    level = np.rint(inside)
    beyond = steps - inside
    steps -= level
    level /= 12
    level += steps * steps * steps / 3
    if clipping != 1:
        level += (clipping - 1) / 3 * (beyond * beyond * beyond)
    return level


def _parameters(grid: Grid, lows: Floats, highs: Floats) -> tuple[Floats, Floats]:
    """Scale and zero point of ranges that hold zero, as they are deployed."""
    if grid.symmetric:
        scale = np.maximum(-lows, highs) / grid.steps_up
        return scale, np.full(scale.shape, float(grid.middle))
    scale = (highs - lows) / (grid.levels - 1)
    return scale, np.clip(np.rint(grid.qmin - lows / scale), grid.qmin, grid.qmax)


def _cut(low: float, high: float, shares: Floats, symmetric: bool) -> tuple[Floats, Floats]:
    """The ends of ``[low, high]`` cut to ``shares``, ``[K, 2]``; one limit for both if ``symmetric``."""
    if symmetric:
        limit = max(-low, high) * shares[:, 0]
        return np.maximum(low, -limit), np.minimum(high, limit)
    shrunk_low = low * shares[:, 0] if low < 0 else np.full(len(shares), low)
    shrunk_high = high * shares[:, 1] if high > 0 else np.full(len(shares), high)
    return shrunk_low, shrunk_high


@dataclass(frozen=True)
class Density:
    """A piecewise constant density: ``falls[i]`` is how far it drops at ``edges[i]``; both ``[E]``."""

    edges: Floats
    falls: Floats

    @staticmethod
    def of(statistics: TensorStatistics) -> Density:
        """The density of a histogram, whose outermost bins end where the values do."""
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

"""The useful low end of a range whose values go through a function that is flat there, such as SiLU.

``SiLU(x) = x / (1 + exp(-x))`` is nearly zero for all x below -6. A range that reaches further down spends
levels on values that give the same. Cutting them at ``b`` costs the difference of the function's values, and
makes the steps smaller everywhere else. With the density ``p`` of the values and a step
``s(b) = (high - b) / (levels - 1)``, the squared error after the function ``f`` is about

    E(b) = w * sum over x < b of p(x) (f(x) - f(b))**2  +  s(b)**2 / 12 * sum over x >= b of p(x) f'(x)**2

`useful_low` returns the b with the least error. The weight w is needed because all cut values err to one
side, in most channels, so their errors add up in the next layer where rounding errors cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from calibrators.grid import Grid
from calibrators.statistics import TensorStatistics
from calibrators.statistics.histogram import SIDE

Floats = NDArray[np.float64]

CANDIDATES, LOWEST = 64, -16.0
"""The number of low ends to try besides the least value, and the lowest: below it, the functions are zero."""

CLIPPING = 16.0
"""The weight of the errors of cut values.

For a YOLOv8 detector 1, 8, 64 and 512 gave 33.0, 36.2, 35.6 and 33.3 dB (32.5 with the whole range), for a
segmenter 8, 16 and 32 gave 12.9, 14.0 and 11.8 dB.
"""


def _sigmoid(x: Floats) -> Floats:
    result: Floats = 0.5 * (1 + np.tanh(0.5 * x))  # does not overflow
    return result


def _silu(x: Floats) -> Floats:
    result: Floats = x * _sigmoid(x)
    return result


def _gelu(x: Floats) -> Floats:
    """Gelu by its approximation with tanh, which differs by less than 0.001."""
    result: Floats = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return result


_NEAR = 1e-3
"""Half the distance of the points that give a slope."""

FUNCTIONS: Mapping[str, Callable[[Floats], Floats]] = {"silu": _silu, "gelu": _gelu}
"""Name -> a function that is flat for very negative values."""


def useful_low(statistics: TensorStatistics, grid: Grid, function: str) -> float:
    """Choose the low end of a range by the error after a function.

    Args:
        statistics: the statistics of the values that go into the function.
        grid: the grid that the range is mapped to.
        function: a key of `FUNCTIONS`.

    Returns:
        The low end, at most 0; minus infinity if nothing is known, or if no cut makes the steps smaller, as
        on floating-point grids.
    """
    if not statistics.count or statistics.low >= 0 or grid.floating is not None:
        return -np.inf
    counts, width = statistics.histogram.counts, statistics.histogram.width
    used = np.flatnonzero(counts)
    centres: Floats = (used.astype(np.float64) - SIDE + 0.5) * width
    shares: Floats = counts[used] / float(counts.sum())
    tried = np.linspace(max(statistics.low, LOWEST), 0.0, CANDIDATES, endpoint=False)
    lows: Floats = np.concatenate([[statistics.low], tried])
    steps = _steps(lows, statistics.high, grid)
    errors = _errors(FUNCTIONS[function], centres, shares, lows, steps)
    best = int(np.argmin(errors))
    return float(lows[best]) if lows[best] > statistics.low else -np.inf


def _steps(lows: Floats, high: float, grid: Grid) -> Floats:
    """Compute the step of the grid for each low end."""
    if grid.symmetric:
        return np.asarray(np.maximum(-lows, high) / grid.steps_up, np.float64)
    steps: Floats = (max(high, 0.0) - lows) / (grid.levels - 1)
    return steps


def _errors(
    function: Callable[[Floats], Floats], centres: Floats, shares: Floats, lows: Floats, steps: Floats
) -> Floats:
    """Compute E for each low end."""
    slope = (function(centres + _NEAR) - function(centres - _NEAR)) / (2 * _NEAR)
    inside = centres >= lows[:, None]
    rounding: Floats = steps**2 / 12 * (inside * (shares * slope**2)).sum(axis=1)
    cut: Floats = (~inside * shares * (function(centres) - function(lows)[:, None]) ** 2).sum(axis=1)
    return rounding + CLIPPING * cut

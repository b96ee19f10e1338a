"""Methods ``minmax``, the whole range, and ``moving-average``, the average of the samples' ranges."""

from __future__ import annotations

import numpy as np

from calibrators.grid import Grid
from calibrators.statistics import TensorStatistics


def minmax(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """Return the least and the greatest value seen: nothing is clipped.

    Args:
        statistics: the statistics of the tensor.
        grid: not used by this method.
        averaged: not used by this method.

    Raises:
        CalibrationError: no finite value was seen.
    """
    statistics.require_data()
    return statistics.low, statistics.high


MOMENTUM = 0.9
"""The weight of the past: ``m <- 0.9 m + 0.1 x``."""


def moving_average(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """Average the least and the greatest value of the samples: ``m <- 0.9 m + 0.1 x``.

    The average begins with the first sample; single outlying samples fade. The samples count in the order of
    the data, whatever the order in which they were run. If there are very many, neighbours are combined (see
    `SampleExtremes`).

    Args:
        statistics: the statistics of the tensor.
        grid: not used by this method.
        averaged: not used by this method.

    Raises:
        CalibrationError: no finite value was seen.
    """
    statistics.require_data()
    lows, highs = statistics.trail.seen()
    weights = (1 - MOMENTUM) * MOMENTUM ** np.arange(len(lows), dtype=np.float64)[::-1]
    weights[0] /= 1 - MOMENTUM
    low, high = float(weights @ lows), float(weights @ highs)
    return max(low, statistics.low), min(high, statistics.high)

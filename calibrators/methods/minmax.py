"""Min-max: the whole range; and the moving average of the samples' ranges.

The whole range.

The moving average of the samples' ranges.
"""

from __future__ import annotations

import numpy as np

from calibrators.grid import Grid
from calibrators.statistics import TensorStatistics


def minmax(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """The least and the greatest value seen: nothing is clipped.

    Raises:
        CalibrationError: no finite value was seen.
    """
    statistics.require_data()
    return statistics.low, statistics.high


MOMENTUM = 0.9
"""The weight of the past: ``m <- 0.9 m + 0.1 x``."""


def moving_average(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """``m <- 0.9 m + 0.1 x`` over the least and the greatest value of each sample, beginning with the first.

    Single outlying samples fade. The samples count in the order in which they stand in the data, in
    whatever order they were seen; of very many, neighbours are taken together (see `SampleExtremes`).

    Raises:
        CalibrationError: no finite value was seen.
    """
    statistics.require_data()
    lows, highs = statistics.trail.seen()
    weights = (1 - MOMENTUM) * MOMENTUM ** np.arange(len(lows), dtype=np.float64)[::-1]
    weights[0] /= 1 - MOMENTUM
    low, high = float(weights @ lows), float(weights @ highs)
    return max(low, statistics.low), min(high, statistics.high)

"""The whole range."""

from __future__ import annotations

from calibrators.grid import Grid
from calibrators.statistics import TensorStatistics


def minmax(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """The least and the greatest value seen: nothing is clipped.

    Raises:
        CalibrationError: no finite value was seen.
    """
    statistics.require_data()
    return statistics.low, statistics.high

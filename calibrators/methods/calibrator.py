"""The signature that all calibration methods share."""

from __future__ import annotations

from typing import Protocol

from calibrators.grid import Grid
from calibrators.statistics import TensorStatistics


class Calibrator(Protocol):
    """A calibration method: ``(statistics, grid) -> (low, high)``.

    The range lies within the extremes that were seen, but for floating-point grids; it need not hold zero.
    ``averaged`` is the number of elements of the tensor that one result downstream averages.
    """

    def __call__(self, statistics: TensorStatistics, grid: Grid, averaged: int = 1, /) -> tuple[float, float]:
        """Choose the range of a tensor."""

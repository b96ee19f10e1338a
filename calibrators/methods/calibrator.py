"""The signature that all calibration methods share."""

from __future__ import annotations

from typing import Protocol

from calibrators.grid import Grid
from calibrators.statistics import TensorStatistics


class Calibrator(Protocol):
    """``(statistics, grid) -> (low, high)``, within the extremes of what was seen; zero need not be inside.

    ``averaged`` says over how many elements of the tensor the network behind it averages.
    """

    def __call__(self, statistics: TensorStatistics, grid: Grid, averaged: int = 1, /) -> tuple[float, float]:
        """The range for a tensor."""

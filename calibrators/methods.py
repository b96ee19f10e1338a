"""The calibration methods by name: each turns the statistics of a tensor into a range."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from calibrators.auto import auto
from calibrators.entropy import entropy
from calibrators.grid import Grid
from calibrators.minmax import minmax
from calibrators.moving_average import moving_average
from calibrators.mse import mse
from calibrators.percentile import percentile
from calibrators.statistics import TensorStatistics


class Calibrator(Protocol):
    """``(statistics, grid) -> (low, high)``, within the extremes of what was seen; zero need not be inside.

    ``averaged`` says over how many elements of the tensor the network behind it averages.
    """

    def __call__(self, statistics: TensorStatistics, grid: Grid, averaged: int = 1, /) -> tuple[float, float]:
        """The range for a tensor."""


CALIBRATORS: Mapping[str, Calibrator] = MappingProxyType(
    {
        "minmax": minmax,
        "moving-average": moving_average,
        "percentile": percentile,
        "entropy": entropy,
        "mse": mse,
        "auto": auto,
    }
)

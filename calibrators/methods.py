"""The calibration methods by name: each turns the statistics of a tensor into a range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from calibrators.entropy import entropy
from calibrators.grid import Grid
from calibrators.minmax import minmax
from calibrators.moving_average import moving_average
from calibrators.mse import mse
from calibrators.percentile import percentile
from calibrators.statistics import TensorStatistics

Calibrator = Callable[[TensorStatistics, Grid], tuple[float, float]]
"""``(statistics, grid) -> (low, high)``, within the extremes of what was seen; zero need not be inside."""

CALIBRATORS: Mapping[str, Calibrator] = MappingProxyType(
    {
        "minmax": minmax,
        "moving-average": moving_average,
        "percentile": percentile,
        "entropy": entropy,
        "mse": mse,
    }
)

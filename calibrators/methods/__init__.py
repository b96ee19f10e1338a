"""The calibration methods by name; each turns the statistics of a tensor into a range."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from calibrators.methods.auto import auto
from calibrators.methods.calibrator import Calibrator
from calibrators.methods.entropy import entropy
from calibrators.methods.minmax import minmax, moving_average
from calibrators.methods.mse import mse
from calibrators.methods.percentile import percentile

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

"""The range with the least expected error in what is made of the tensor.

What reads a tensor adds up many of its elements. Let ``n`` elements of one feature be averaged, by the
window of a convolution or by a pool. Their rounding errors have mean zero and nothing to do with each
other: the power of the average is that of one error, divided by ``n``. Clipping errors all have one sign,
and a feature that is too strong for the range is so over a whole patch: with a correlation ``r`` the
average keeps ``(1 + (n - 1) r) / n`` of their power. As a multiple of what rounding keeps that is

    weight = 1 + (n - 1) r

so the range sought is the one with the least ``rounding + weight * clipping``, both powers taken from
the histogram on the deployed grid as `mse` does. With ``n = 1`` that would be the least squared
error, with ``n`` large it comes close to the whole range.

``r`` is taken as 1: the patch is larger than most windows. ``weight`` is held between `LEAST` and `MOST`,
which were found by measurement (docs/calibration.md). Above one, since what calibration did not see will
be clipped too, and nobody counted it. Bounded, since a pool averages over many patches, not over one.
"""

from __future__ import annotations

from calibrators.grid import Grid
from calibrators.methods.mse import least_error
from calibrators.statistics import TensorStatistics

LEAST = 2.0
"""The weight of clipping where nothing is averaged."""

MOST = 32.0
"""Its greatest weight."""


def auto(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """The range with the least sum of rounding and clipping, as they weigh after averaging.

    Args:
        statistics: of the tensor.
        grid: what it is deployed on.
        averaged: how many of its elements one result averages over.

    Raises:
        CalibrationError: no finite value was seen.
    """
    return least_error(statistics, grid, min(max(LEAST, float(averaged)), MOST))

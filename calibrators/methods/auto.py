"""Method ``auto``: the range with the least expected error downstream of the tensor.

The node that reads a tensor averages ``n`` elements of one feature, in the window of a convolution or in a
pool. Rounding errors have mean zero and are uncorrelated: the error power of the average is that of one
element, divided by ``n``. Clipping errors all have one sign, and a feature that exceeds the range does so
over a whole patch: with a correlation ``r`` the average keeps ``(1 + (n - 1) r) / n`` of their power. As a
multiple of the factor for rounding that is

    weight = 1 + (n - 1) r

So the best range has the least ``rounding + weight * clipping``. Both powers are taken from the histogram on
the deployed grid, as in `mse`. With ``n = 1`` this is the least squared error; with large ``n`` the result
comes close to the whole range.

``r`` is taken as 1, because a patch is larger than most windows. ``weight`` is held between `LEAST` and
`MOST`, which were found by measurement (docs/calibration.md). It is above 1 because values that calibration
did not see are clipped too, and are not counted. It is bounded because a pool averages over many patches.

On a floating-point grid a wider range costs next to nothing. There the weight mostly keeps the largest values
below the largest number, and the search places the others well between powers of two.
"""

from __future__ import annotations

from calibrators.grid import Grid
from calibrators.methods.mse import least_error
from calibrators.statistics import TensorStatistics

LEAST = 2.0
"""The weight of clipping errors where nothing is averaged."""

MOST = 32.0
"""The largest weight of clipping errors."""


def auto(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """Choose the range with the least weighted sum of rounding and clipping errors.

    Args:
        statistics: the statistics of the tensor.
        grid: the grid that the range is mapped to.
        averaged: number of elements that one result downstream averages.

    Raises:
        CalibrationError: no finite value was seen.
    """
    return least_error(statistics, grid, min(max(LEAST, float(averaged)), MOST))

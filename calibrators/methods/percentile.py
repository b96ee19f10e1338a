"""Method ``percentile``: the range that holds all but a given share of the values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibrators.errors import CalibrationError
from calibrators.grid import Grid
from calibrators.statistics import TensorStatistics
from calibrators.statistics.histogram import SIDE

DEFAULT = 99.99


def percentile(
    statistics: TensorStatistics, grid: Grid, averaged: int = 1, *, percentile: float = DEFAULT
) -> tuple[float, float]:
    """Choose the narrowest range of whole bins that leaves out at most ``100 - percentile`` per cent.

    On a symmetric grid the magnitudes count. On an asymmetric grid each tail loses at most half of that
    share. If all values lie on one side of zero, only the far tail is cut, and may lose the whole share.
    The range is never empty and never exceeds the values seen.

    Args:
        statistics: the statistics of the tensor.
        grid: the grid that the range is mapped to.
        averaged: not used by this method.
        percentile: the share of values to keep, in per cent.

    Raises:
        CalibrationError: no finite value was seen, or ``percentile`` is not within (0, 100].
    """
    if not 0 < percentile <= 100:
        raise CalibrationError(f"percentile: expected more than 0 and at most 100, got {percentile}")
    statistics.require_data()
    low, high, histogram = statistics.low, statistics.high, statistics.histogram
    width, spare = histogram.width, statistics.count * (1 - percentile / 100)
    if grid.symmetric or low >= 0 or high <= 0:
        limit = _last(histogram.magnitudes(), spare) * width
        return max(low, -limit), min(high, limit)
    top = min(high, (_last(histogram.counts, spare / 2) - SIDE) * width)
    bottom = (SIDE - _last(histogram.counts[::-1], spare / 2)) * width
    return max(low, min(bottom, top - width)), top


def _last(counts: NDArray[np.int64], spare: float) -> int:
    """Find the leftmost edge with at most ``spare`` counts to its right; edge ``n`` follows ``n`` bins."""
    beyond = counts.sum() - np.cumsum(counts)
    return int(np.argmax(beyond <= spare)) + 1

"""The moving average of the batches' ranges."""

from __future__ import annotations

from calibrators.grid import Grid
from calibrators.statistics import TensorStatistics


def moving_average(statistics: TensorStatistics, grid: Grid) -> tuple[float, float]:
    """``m <- 0.9 m + 0.1 x`` over the least and the greatest value of each batch.

    Single outlying batches fade. The result depends on the order of the batches; statistics that
    were merged count as one stream, the merged-in batches last.

    Raises:
        CalibrationError: no finite value was seen.
    """
    statistics.require_data()
    low, high = statistics.moving.value
    return max(low, statistics.low), min(high, statistics.high)

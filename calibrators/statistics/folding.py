"""Add the arrays of several batches to the statistics of a tensor: joined, since each update takes time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibrators.data.batching import join
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.statistics.tensor import TensorStatistics

Array = NDArray[np.generic]

ROWS = "rows"
"""The name of the only array of batches that are joined."""

Observed = tuple[Sample, Array]
"""A batch whose samples have numbers, and the values of a tensor for it."""


@dataclass(frozen=True)
class Folding:
    """What is collected of a tensor.

    Attributes:
        name: the tensor's name.
        selection: count about this many elements of each sample; None: all.
        channel_axis: collect the means of the channels along this axis; None: none.
    """

    name: str
    selection: int | None = None
    channel_axis: int | None = None

    def fold(self, observed: Sequence[Observed], tensor: TensorStatistics) -> tuple[Sample, int, int] | None:
        """Add the arrays of the tensor to its statistics.

        Returns:
            The first batch with NaN or infinite values, the number of these, and that of all values in the
            batch; None if all values are finite.

        Raises:
            CalibrationError: the tensor does not hold arrays of numbers.
        """
        known = tensor.nonfinite
        for batch, array in _joined(observed):
            self._update(tensor, batch, array)
        return None if tensor.nonfinite == known else _first_nonfinite(observed)

    def _update(self, tensor: TensorStatistics, batch: Sample, array: Array) -> None:
        if not isinstance(array, np.ndarray):
            raise CalibrationError(
                f"{self.name} cannot be observed: it is not a tensor but a {type(array).__name__}"
            )
        try:
            tensor.update(
                array,
                batch.count,
                number=batch.numbers,
                name_of=batch.name_of,
                selection=self.selection,
                channel_axis=self.channel_axis,
            )
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"{self.name} cannot be observed: {error}") from error


def _joined(observed: Sequence[Observed]) -> Iterator[Observed]:
    """Yield neighbours whose samples have the same shape as one batch, others as they are."""
    if len(observed) == 1:
        yield observed[0]
        return
    group: list[Observed] = []
    for each in observed:
        if group and not _fit(group[-1], each):
            yield _join(group)
            group = []
        group.append(each)
    if group:
        yield _join(group)


def _fit(one: Observed, other: Observed) -> bool:
    """Whether both arrays have rows of the same kind, one for each sample."""
    if not all(getattr(array, "ndim", 0) and len(array) == batch.count for batch, array in (one, other)):
        return False
    return one[1].shape[1:] == other[1].shape[1:] and one[1].dtype == other[1].dtype


def _join(group: Sequence[Observed]) -> Observed:
    if len(group) == 1:
        return group[0]
    joined = join([replace(batch, feeds={ROWS: array}) for batch, array in group], frozenset((ROWS,)))
    return joined, joined.feeds[ROWS]


def _first_nonfinite(observed: Sequence[Observed]) -> tuple[Sample, int, int]:
    with np.errstate(over="ignore"):  # a float64 beyond float32 counts as infinite
        bad = [int(np.count_nonzero(~np.isfinite(array.astype(np.float32)))) for _, array in observed]
    first = next(index for index, count in enumerate(bad) if count)
    return observed[first][0], bad[first], observed[first][1].size

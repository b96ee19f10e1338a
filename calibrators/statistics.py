"""What is remembered of a tensor: enough for every calibration method, in memory that never grows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrators import archive
from calibrators.errors import CalibrationError
from calibrators.histogram import SIDE, Histogram
from calibrators.moving_range import MovingRange


class TensorStatistics:
    """Extremes and histogram of one tensor, over everything it was shown.

    All but ``moving`` are exact: the same data give the same bits, in whatever batches and order they
    come and however partial statistics are merged. Values are taken as float32.

    Attributes:
        low, high: the least and greatest finite value; ``inf`` and ``-inf`` while there is none.
        count: finite elements seen.
        nonfinite: NaN and infinite elements seen, which count nowhere else.
        samples: samples seen.
        histogram: the counts of the finite elements.
        moving: the moving average of the batches' ranges; depends on their order.
    """

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.count = 0
        self.nonfinite = 0
        self.samples = 0
        self.histogram = Histogram()
        self.moving = MovingRange()

    def update(self, array: NDArray[np.generic], samples: int = 1) -> None:
        """Take in one batch of any shape and number type, holding ``samples`` samples.

        Raises:
            TypeError: the array does not hold real numbers.
        """
        self.samples += samples
        values = _as_float32(array)
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = values[np.isfinite(values)]
            self.nonfinite += values.size - finite.size
            if not finite.size:
                return
            values, low, high = finite, float(finite.min()), float(finite.max())
        # Adding zero makes -0.0 positive, so that the sign of a zero cannot depend on the order.
        low, high = low + 0.0, high + 0.0
        self.count += values.size
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.moving = self.moving.followed_by(MovingRange((low, high), (low, high), 1))
        self.histogram.add(values, low, high)

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """The statistics of our samples followed by ``other``'s, of the same tensor."""
        result = self._combined(other)
        result.samples = self.samples + other.samples
        result.moving = self.moving.followed_by(other.moving)
        return result

    def join(self, other: TensorStatistics) -> TensorStatistics:
        """The statistics of two tensors of the same samples that are to share one range."""
        result = self._combined(other)
        result.samples = max(self.samples, other.samples)
        result.moving = self.moving.beside(other.moving)
        return result

    def clipped(self, low: float, high: float) -> TensorStatistics:
        """As if every value outside ``[low, high]``, which holds zero, had been set to its nearer end."""
        if not self.count or (low <= self.low and self.high <= high):
            return self
        result = TensorStatistics()
        result.low, result.high = (min(max(end, low), high) for end in (self.low, self.high))
        result.count, result.nonfinite, result.samples = self.count, self.nonfinite, self.samples
        result.histogram = self.histogram.clipped(low, high)
        result.moving = self.moving.clipped(low, high)
        return result

    def _combined(self, other: TensorStatistics) -> TensorStatistics:
        result = TensorStatistics()
        result.low, result.high = min(self.low, other.low), max(self.high, other.high)
        result.count = self.count + other.count
        result.nonfinite = self.nonfinite + other.nonfinite
        result.histogram = self.histogram.merged(other.histogram)
        return result

    def require_data(self) -> None:
        """Check that there is something to make a range of.

        Raises:
            CalibrationError: no finite value was ever seen.
        """
        if not self.count:
            raise CalibrationError(
                f"no finite value was seen in {self.samples} samples ({self.nonfinite} were NaN or infinite)"
            )

    @property
    def amax(self) -> float:
        """The largest magnitude seen."""
        return max(-self.low, self.high, 0.0)


class Statistics(Mapping[str, TensorStatistics]):
    """Statistics by tensor name, and the number of samples they come from."""

    def __init__(self, tensors: Mapping[str, TensorStatistics], samples: int) -> None:
        self._tensors = dict(tensors)
        self.samples = samples

    def __getitem__(self, name: str) -> TensorStatistics:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Tensors of which not one finite value was seen: no method can give them a range."""
        return tuple(name for name, tensor in self.items() if not tensor.count)

    def merge(self, other: Statistics) -> Statistics:
        """Our samples followed by ``other``'s.

        Raises:
            CalibrationError: the two do not describe the same tensors.
        """
        different = sorted(self.keys() ^ other.keys())
        if different:
            raise CalibrationError(
                "statistics of different tensors cannot be merged; only one of the two has "
                + ", ".join(different[:5])
                + (f" and {len(different) - 5} more" if len(different) > 5 else "")
            )
        tensors = {name: tensor.merge(other[name]) for name, tensor in self.items()}
        return Statistics(tensors, self.samples + other.samples)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file, whole or not at all; the same statistics give the same bytes.

        Raises:
            CalibrationError: the file cannot be written.
        """
        columns: dict[str, NDArray[Any]] = {
            name: np.array([read(t) for t in self.values()], kind) for name, kind, read in _COLUMNS
        }
        columns["counts"] = np.array([t.histogram.counts for t in self.values()], np.int64).reshape(
            -1, 2 * SIDE
        )
        archive.write(Path(path), {"samples": self.samples, "tensors": list(self)}, columns)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Statistics:
        """Read what `save` wrote.

        Raises:
            CalibrationError: there is no such file, it is damaged, or it is something else.
        """
        header, columns = archive.read(Path(path))
        try:
            names, samples = [str(name) for name in header["tensors"]], int(header["samples"])
            tensors = _from_columns(columns, len(names))
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"{path} is damaged: {error!r}; collect the statistics anew") from error
        return Statistics(dict(zip(names, tensors, strict=True)), samples)


def _as_float32(array: NDArray[np.generic]) -> NDArray[np.float32]:
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected real numbers, got an array of {array.dtype}")
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is counted as such
        return array.astype(np.float32, copy=False)


_COLUMNS: tuple[tuple[str, type, Callable[[TensorStatistics], object]], ...] = (
    ("low", np.float64, lambda t: t.low),
    ("high", np.float64, lambda t: t.high),
    ("count", np.int64, lambda t: t.count),
    ("nonfinite", np.int64, lambda t: t.nonfinite),
    ("samples", np.int64, lambda t: t.samples),
    ("exponent", np.int64, lambda t: t.histogram.exponent),
    ("first_low", np.float64, lambda t: t.moving.first[0]),
    ("first_high", np.float64, lambda t: t.moving.first[1]),
    ("moving_low", np.float64, lambda t: t.moving.value[0]),
    ("moving_high", np.float64, lambda t: t.moving.value[1]),
    ("batches", np.int64, lambda t: t.moving.batches),
)
"""How statistics lie in a file: one array a column, one element a tensor."""


def _from_columns(columns: Mapping[str, NDArray[np.generic]], tensors: int) -> list[TensorStatistics]:
    """The statistics of each tensor; KeyError or ValueError if the columns do not fit together."""
    counts = columns["counts"].astype(np.int64, casting="safe")
    if counts.shape != (tensors, 2 * SIDE) or (counts < 0).any():
        raise ValueError(f"counts of shape {counts.shape} for {tensors} tensors")
    table = {}
    for name, kind, _ in _COLUMNS:
        column: NDArray[Any] = columns[name].astype(kind, casting="safe")
        if column.shape != (tensors,):
            raise ValueError(f"{name} of shape {column.shape} for {tensors} tensors")
        table[name] = column.tolist()
    if (counts.sum(axis=1) != table["count"]).any():
        raise ValueError("the counts do not add up")
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return [_from_row(row, bins.copy()) for row, bins in zip(rows, counts, strict=True)]


def _from_row(row: Mapping[str, Any], counts: NDArray[np.int64]) -> TensorStatistics:
    tensor = TensorStatistics()
    tensor.low, tensor.high = row["low"], row["high"]
    tensor.count, tensor.nonfinite, tensor.samples = row["count"], row["nonfinite"], row["samples"]
    tensor.histogram = Histogram(row["exponent"], counts)
    first, value = (row["first_low"], row["first_high"]), (row["moving_low"], row["moving_high"])
    tensor.moving = MovingRange(first, value, row["batches"])
    if tensor.count and not (-math.inf < tensor.low <= tensor.high < math.inf):
        raise ValueError(f"range [{tensor.low}, {tensor.high}]")
    return tensor

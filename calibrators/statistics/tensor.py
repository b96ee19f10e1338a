"""The statistics of a tensor: enough for every calibration method, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from calibrators.errors import CalibrationError
from calibrators.statistics.batch_summary import BatchSummary, digest
from calibrators.statistics.channel_means import ChannelMeans
from calibrators.statistics.histogram import Histogram
from calibrators.statistics.sample_extremes import EMPTY, SampleExtremes

Floats = NDArray[np.float32]


STEPS = 256
"""Number of batches whose extremes are buffered before they are added to the trail."""


@dataclass(frozen=True, order=True)
class Extreme:
    """The least or the greatest value, and the first sample that held it.

    Attributes:
        value: the value; ``inf`` or ``-inf`` while there is none.
        number: number of the sample in the stream of data.
        name: name of the sample.
    """

    value: float
    number: int = -1
    name: str = ""


def _nameless(_: int) -> str:
    return ""


def _span(name_of: Callable[[int], str], samples: int, _: int) -> str:
    """Name all samples of a batch, if it is unknown which of them is meant."""
    return name_of(0) if samples == 1 else f"{name_of(0)} to {name_of(samples - 1)}"


class TensorStatistics:
    """Extremes and histogram of one tensor over all samples seen.

    They are exact: the same samples with the same numbers give the same bits, whatever their batches and
    order, and however partial statistics are merged. Values are converted to float32.

    Attributes:
        lowest, highest: the extremes of the finite values.
        count: number of elements in the histogram.
        nonfinite: number of NaN and infinite elements seen; they count nowhere else.
        samples: number of samples seen.
        histogram: counts of the finite elements. If only a selection was counted, each element of it counts
            once for each element it stands for; the tails of each sample are always counted in full.
        channels: the mean of each channel, if requested.
    """

    def __init__(self) -> None:
        self.lowest = Extreme(math.inf)
        self.highest = Extreme(-math.inf)
        self.count = 0
        self.nonfinite = 0
        self.samples = 0
        self.histogram = Histogram()
        self.channels: ChannelMeans | None = None
        self._trail = EMPTY
        self._steps: list[tuple[NDArray[np.int64], Floats, Floats]] = []

    @property
    def trail(self) -> SampleExtremes:
        """The extremes of each sample."""
        if self._steps:
            numbers, *ends = zip(*self._steps, strict=True)
            # Adding zero makes -0.0 positive, so that the sign of a zero cannot depend on the order.
            lows, highs = (np.concatenate(part) + np.float32(0) for part in ends)
            steps = SampleExtremes.of(np.concatenate(numbers), lows, highs)
            self._trail, self._steps = self._trail.over(steps), []
        return self._trail

    @trail.setter
    def trail(self, trail: SampleExtremes) -> None:
        self._trail, self._steps = trail, []

    @property
    def low(self) -> float:
        """The least finite value; ``inf`` while there is none."""
        return self.lowest.value

    @property
    def high(self) -> float:
        """The greatest finite value; ``-inf`` while there is none."""
        return self.highest.value

    @property
    def amax(self) -> float:
        """The largest magnitude seen."""
        return max(-self.low, self.high, 0.0)

    def update(
        self,
        array: NDArray[np.generic],
        samples: int = 1,
        *,
        number: int | Sequence[int] | None = None,
        name_of: Callable[[int], str] = _nameless,
        selection: int | None = None,
        channel_axis: int | None = None,
    ) -> None:
        """Add one batch of any shape and number type.

        Args:
            array: the tensor. If the size of its axis 0 is a multiple of ``samples``, that axis counts
                samples, or their rows one after the other; if it is 1, all samples share the values.
            samples: number of samples in the batch.
            number: number of each sample in the stream of data, or of the first one if they follow each
                other; None: they follow the last one seen.
            name_of: index of a sample in the batch -> its name.
            selection: count about this many elements of each sample, evenly spread, and fewer of samples with
                high numbers (`digest`); None: all.
            channel_axis: also collect the means of the channels along this axis.

        Raises:
            TypeError: the array does not hold real numbers.
            ValueError: the array has no such axis, or the number of channels changed.
        """
        first = self.samples if number is None else number
        numbers = np.arange(first, first + samples) if isinstance(first, int) else np.array(first, np.int64)
        self.samples += samples
        values = _as_float32(array)
        if not values.size:
            return
        values = _by_sample(values, samples)
        if len(values) != samples:
            name_of = partial(_span, name_of, samples)
        if channel_axis is not None:
            means = ChannelMeans.of(values, channel_axis)
            self.channels = means if self.channels is None else self.channels.plus(means)
        numbers = numbers[: len(values)]
        self._fold(digest(values.reshape(len(values), -1), numbers, selection), numbers, name_of)

    def _fold(self, batch: BatchSummary, numbers: NDArray[np.int64], name_of: Callable[[int], str]) -> None:
        """Add a batch whose samples have these numbers."""
        self.nonfinite += batch.nonfinite
        self._remember(numbers, batch.lows, batch.highs)
        low, high = float(batch.lows.min()), float(batch.highs.max())
        if low > high:  # not one finite value
            return
        # Adding zero makes -0.0 positive, so that the sign of a zero cannot depend on the order.
        if low <= self.low:
            place = _first(batch.lows == low, numbers)
            if low < self.low or numbers[place] <= self.lowest.number:  # a zero is mostly reached again
                self.lowest = min(self.lowest, Extreme(low + 0.0, int(numbers[place]), name_of(place)))
        if high >= self.high:
            place = _first(batch.highs == high, numbers)
            if high > self.high or numbers[place] <= self.highest.number:
                self.highest = _higher(self.highest, Extreme(high + 0.0, int(numbers[place]), name_of(place)))
        self.histogram.reach(low, high)
        for values, weight in batch.counted:
            self.histogram.add(values, low < 0, weight)
            self.count += values.size * weight

    def _remember(self, numbers: NDArray[np.int64], lows: Floats, highs: Floats) -> None:
        """Buffer the extremes; adding them to the trail one by one would take as long as counting."""
        self._steps.append((numbers, lows, highs))
        if len(self._steps) == STEPS:
            self.trail = self.trail.over(EMPTY)

    def merge(self, other: TensorStatistics, later: int = 0) -> TensorStatistics:
        """Merge with the statistics of other samples of the same tensor.

        Args:
            other: the statistics of other samples.
            later: offset to add to ``other``'s sample numbers, if those overlap with the numbers of ``self``.

        Raises:
            ValueError: the two have different channels.
        """
        trail = other.trail.later(later) if later else other.trail
        ends = (replace(end, number=end.number + later) for end in (other.lowest, other.highest))
        result = self._combined(other, trail, *ends)
        result.samples = self.samples + other.samples
        pair = [means for means in (self.channels, other.channels) if means is not None]
        result.channels = pair[0].plus(pair[1]) if len(pair) == 2 else pair[0] if pair else None
        return result

    def join(self, other: TensorStatistics) -> TensorStatistics:
        """Combine with another tensor of the same samples, with which this one is to share a range."""
        result = self._combined(other, other.trail, other.lowest, other.highest)
        result.samples = max(self.samples, other.samples)
        return result

    def clipped(self, low: float, high: float) -> TensorStatistics:
        """Make the statistics of the values clipped to ``[low, high]``, which holds zero."""
        if not self.count or (low <= self.low and self.high <= high):
            return self
        result = TensorStatistics()
        result.lowest, result.highest = (
            replace(end, value=min(max(end.value, low), high)) for end in (self.lowest, self.highest)
        )
        result.count, result.nonfinite, result.samples = self.count, self.nonfinite, self.samples
        result.histogram = self.histogram.clipped(low, high)
        result.trail = self.trail.clipped(low, high)
        return result

    def _combined(
        self, other: TensorStatistics, trail: SampleExtremes, lowest: Extreme, highest: Extreme
    ) -> TensorStatistics:
        result = TensorStatistics()
        result.lowest, result.highest = min(self.lowest, lowest), _higher(self.highest, highest)
        result.count = self.count + other.count
        result.nonfinite = self.nonfinite + other.nonfinite
        result.histogram = self.histogram.merged(other.histogram)
        result.trail = self.trail.over(trail)
        return result

    def require_data(self) -> None:
        """Check that there are values to choose a range from.

        Raises:
            CalibrationError: no finite value was ever seen.
        """
        if not self.count:
            raise CalibrationError(
                f"no finite value was seen in {self.samples} samples ({self.nonfinite} were NaN or infinite)"
            )


def _higher(one: Extreme, two: Extreme) -> Extreme:
    """Return the greater value; if equal, that of the earlier sample, and then by name."""
    return min(one, two, key=lambda end: (-end.value, end.number, end.name))


def _first(holds: NDArray[np.bool_], numbers: NDArray[np.int64]) -> int:
    """Return the index of the sample with the least number among those that hold a value."""
    if len(numbers) == 1:
        return 0
    places = np.flatnonzero(holds)
    return int(places[numbers[places].argmin()])


def _by_sample(values: Floats, samples: int) -> Floats:
    """Give the values an axis of samples; of size 1 if it is not known which values belong to which."""
    if values.ndim and len(values) == samples:
        return values
    if not values.ndim or len(values) == 1:
        return np.broadcast_to(values, (samples, *values.shape[1:]))
    return values.reshape(samples if len(values) % samples == 0 else 1, -1, *values.shape[1:])


def _as_float32(array: NDArray[np.generic]) -> Floats:
    if array.dtype == np.float32:
        return array  # type: ignore[return-value]
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected real numbers, got an array of {array.dtype}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is counted as such
        return array.astype(np.float32)

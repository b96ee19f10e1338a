"""What is remembered of a tensor: enough for every calibration method, in memory that never grows."""

from __future__ import annotations

import math
from collections.abc import Callable
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
"""Batches whose extremes wait to be added to the trail."""


@dataclass(frozen=True, order=True)
class Extreme:
    """The least or the greatest value, and the first sample that held it.

    Attributes:
        value: ``inf`` or ``-inf`` while there is none.
        number: the sample's in the stream of data.
        name: the sample's.
    """

    value: float
    number: int = -1
    name: str = ""


def _nameless(_: int) -> str:
    return ""


def _span(name_of: Callable[[int], str], samples: int, _: int) -> str:
    """All samples of a batch, where nothing tells which of them it was."""
    return name_of(0) if samples == 1 else f"{name_of(0)} to {name_of(samples - 1)}"


class TensorStatistics:
    """Extremes and histogram of one tensor, over everything it was shown.

    They are exact: the same samples, numbered alike, give the same bits, in whatever batches and order
    they come and however partial statistics are merged. Values are taken as float32.

    Attributes:
        lowest, highest: the extremes of the finite values.
        count: elements in the histogram.
        nonfinite: NaN and infinite elements seen, which count nowhere else.
        samples: samples seen.
        histogram: the counts of the finite elements. Where only a selection was counted, each counts
            as often as it stands for others; the tails of each sample are always counted in full.
        channels: the mean of each channel, if they were asked for.
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
        self._steps: list[tuple[int, Floats, Floats]] = []

    @property
    def trail(self) -> SampleExtremes:
        """The extremes of each sample."""
        if self._steps:
            numbers = [np.arange(first, first + len(lows)) for first, lows, _ in self._steps]
            _, *ends = zip(*self._steps, strict=True)
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
        number: int | None = None,
        name_of: Callable[[int], str] = _nameless,
        selection: int | None = None,
        channel_axis: int | None = None,
    ) -> None:
        """Take in one batch of any shape and number type.

        Args:
            array: the tensor. If its axis 0 has the size ``samples``, it counts them.
            samples: samples in the batch.
            number: the number of the first of them in the stream of data; else they follow the last.
            name_of: the name of each of them, counted from 0.
            selection: count about so many elements of each sample, evenly spread, instead of all.
            channel_axis: also keep the means of the channels along this axis.

        Raises:
            TypeError: the array does not hold real numbers.
            ValueError: it has no such axis, or other channels than before.
        """
        number = self.samples if number is None else number
        self.samples += samples
        values = _as_float32(array)
        if not values.size:
            return
        if not values.ndim or len(values) != samples:
            values, name_of = values[None], partial(_span, name_of, samples)
        if channel_axis is not None:
            means = ChannelMeans.of(values, channel_axis)
            self.channels = means if self.channels is None else self.channels.plus(means)
        self._fold(digest(values.reshape(len(values), -1), selection), number, name_of)

    def _fold(self, batch: BatchSummary, number: int, name_of: Callable[[int], str]) -> None:
        """Take in a batch whose first sample has the number ``number``."""
        self.nonfinite += batch.nonfinite
        self._remember(number, batch.lows, batch.highs)
        low, high = float(batch.lows.min()), float(batch.highs.max())
        if low > high:  # not one finite value
            return
        # Adding zero makes -0.0 positive, so that the sign of a zero cannot depend on the order.
        if low <= self.low:
            place = int(batch.lows.argmin())
            self.lowest = min(self.lowest, Extreme(low + 0.0, number + place, name_of(place)))
        if high >= self.high:
            place = int(batch.highs.argmax())
            self.highest = _higher(self.highest, Extreme(high + 0.0, number + place, name_of(place)))
        self.histogram.reach(low, high)
        for values, weight in batch.counted:
            self.histogram.add(values, low < 0, weight)
            self.count += values.size * weight

    def _remember(self, number: int, lows: Floats, highs: Floats) -> None:
        """Steps of the trail are added many at a time: one by one takes as long as to count."""
        self._steps.append((number, lows, highs))
        if len(self._steps) == STEPS:
            self.trail = self.trail.over(EMPTY)

    def merge(self, other: TensorStatistics, later: int = 0) -> TensorStatistics:
        """The statistics of our samples and ``other``'s, of the same tensor.

        Args:
            other: of other samples.
            later: the samples that came before all of ``other``'s, if those were numbered anew.

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
        """The statistics of two tensors of the same samples that are to share one range."""
        result = self._combined(other, other.trail, other.lowest, other.highest)
        result.samples = max(self.samples, other.samples)
        return result

    def clipped(self, low: float, high: float) -> TensorStatistics:
        """As if every value outside ``[low, high]``, which holds zero, had been set to its nearer end."""
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
        """Check that there is something to make a range of.

        Raises:
            CalibrationError: no finite value was ever seen.
        """
        if not self.count:
            raise CalibrationError(
                f"no finite value was seen in {self.samples} samples ({self.nonfinite} were NaN or infinite)"
            )


def _higher(one: Extreme, two: Extreme) -> Extreme:
    """The greater value; of equal ones that of the earlier sample."""
    return max(one, two, key=lambda end: (end.value, -end.number))


def _as_float32(array: NDArray[np.generic]) -> Floats:
    if array.dtype == np.float32:
        return array  # type: ignore[return-value]
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected real numbers, got an array of {array.dtype}")
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is counted as such
        return array.astype(np.float32)

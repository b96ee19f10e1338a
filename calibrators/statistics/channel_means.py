"""The mean of every channel of a tensor, for bias correction."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from calibrators.statistics.exact_sum import ExactSum

LARGEST = float(np.finfo(np.float32).max)


class ChannelMeans:
    """Sums of each channel over all samples; the same data give the same bits, however they are split.

    Each sample's sum is rounded to float32 once, and the rounded sums are added exactly.

    Attributes:
        axis: the channel axis; axis 0 counts samples.
        sums: sums of the finite values, ``[C]``.
        counts: number of finite values, int64 ``[C]``.
    """

    def __init__(self, axis: int, sums: ExactSum, counts: NDArray[np.int64]) -> None:
        self.axis = axis
        self.sums = sums
        self.counts = counts

    @staticmethod
    def of(values: NDArray[np.float32], axis: int) -> ChannelMeans:
        """Sum one batch, ``[samples, ..., C, ...]`` with C at ``axis`` (negative: from the end).

        Raises:
            ValueError: the array has no such axis.
        """
        if not -values.ndim < axis < values.ndim or axis == 0:
            raise ValueError(f"no axis {axis} that counts channels in shape {list(values.shape)}")
        axis %= values.ndim
        channels = values.shape[axis]
        sums = _per_sample(values, axis)
        counts = np.full(channels, values.size // max(channels, 1), np.int64)
        if not np.isfinite(sums).all():
            finite = np.isfinite(values)
            sums = _per_sample(np.where(finite, values, np.float32(0)), axis)
            counts = finite.sum(axis=tuple(i for i in range(values.ndim) if i != axis), dtype=np.int64)
        result = ChannelMeans(axis, ExactSum.zeros(channels), counts)
        result.sums.add(np.clip(sums, -LARGEST, LARGEST).astype(np.float32))
        return result

    def plus(self, other: ChannelMeans) -> ChannelMeans:
        """Add the sums of other samples.

        Raises:
            ValueError: the numbers of channels differ.
        """
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"{self.counts.size} channels in one batch, {other.counts.size} in another")
        return ChannelMeans(self.axis, self.sums.plus(other.sums), self.counts + other.counts)

    @property
    def value(self) -> NDArray[np.float64]:
        """The means, ``[C]``; 0 where no finite value was seen."""
        return np.asarray(self.sums.value / np.maximum(self.counts, 1), np.float64)


def _per_sample(values: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    """Sum the channels of each sample, ``[samples, C]``.

    First rows of contiguous values are summed, then the rows, in float64. Both sums stay within one sample,
    so they do not depend on the rest of the batch.
    """
    samples, channels = values.shape[0], values.shape[axis]
    row = math.prod(values.shape[axis + 1 :])
    blocks = values.reshape(samples, math.prod(values.shape[1:axis]), channels, row)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = blocks[..., 0] if row == 1 else blocks.sum(axis=3)
        return np.asarray(rows.sum(axis=1, dtype=np.float64))

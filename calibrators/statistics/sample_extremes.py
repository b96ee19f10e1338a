"""The extremes of a tensor for each sample, which show how its range came about."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LENGTH = 4096
"""Largest number of entries. With more samples, each entry stands for two neighbours, then for four ..."""


@dataclass(frozen=True)
class SampleExtremes:
    """Extremes of samples by their number in the stream of data.

    Entry ``i`` holds the extremes of the samples ``i * block`` to ``(i + 1) * block - 1``. ``block`` is a
    power of two that depends only on the highest number. So any order and split of the samples gives the same
    result.

    Attributes:
        lows, highs: float32 ``[entries]``; ``inf`` and ``-inf`` where no finite value was seen.
        block: number of samples per entry.
    """

    lows: Floats
    highs: Floats
    block: int = 1

    @staticmethod
    def of(numbers: NDArray[np.int64], lows: Floats, highs: Floats) -> SampleExtremes:
        """Make the entries for some samples.

        Args:
            numbers: the samples' numbers in the stream of data, ``[samples]``.
            lows: the least value of each, ``[samples]``.
            highs: the greatest value of each, ``[samples]``.
        """
        if not len(numbers):
            return EMPTY
        block = _block(int(numbers.max()) + 1)
        entries = numbers // block
        trail = _empty(int(entries.max()) + 1, block)
        np.minimum.at(trail.lows, entries, lows)
        np.maximum.at(trail.highs, entries, highs)
        return trail

    def over(self, other: SampleExtremes) -> SampleExtremes:
        """Combine with other samples of the same stream, or with another tensor of the same samples."""
        block = max(self.block, other.block)
        one, two = self._coarser(block), other._coarser(block)
        longer, shorter = (one, two) if len(one.lows) >= len(two.lows) else (two, one)
        n = len(shorter.lows)
        lows, highs = longer.lows.copy(), longer.highs.copy()
        np.minimum(lows[:n], shorter.lows, out=lows[:n])
        np.maximum(highs[:n], shorter.highs, out=highs[:n])
        return SampleExtremes(lows, highs, block)

    def later(self, samples: int) -> SampleExtremes:
        """Renumber as if at least ``samples`` others had come before; numbers grow by whole blocks."""
        ahead = _empty(-(-samples // self.block), self.block)
        moved = SampleExtremes(
            np.concatenate([ahead.lows, self.lows]), np.concatenate([ahead.highs, self.highs]), self.block
        )
        return moved._coarser(_block(len(moved.lows) * self.block))

    def clipped(self, low: float, high: float) -> SampleExtremes:
        """Compute the extremes of values clipped to ``[low, high]``."""
        seen = self.lows <= self.highs
        lows, highs = (
            np.where(seen, np.clip(ends, low, high), ends).astype(np.float32)
            for ends in (self.lows, self.highs)
        )
        return SampleExtremes(lows, highs, self.block)

    def seen(self) -> tuple[Floats, Floats]:
        """Return lows and highs, in order, of the entries that hold a finite value."""
        there = self.lows <= self.highs
        return self.lows[there], self.highs[there]

    def _coarser(self, block: int) -> SampleExtremes:
        """Merge entries to ``block`` samples per entry, a multiple of the present number."""
        times = block // self.block
        if times == 1:
            return self
        entries = -(-len(self.lows) // times)
        padded = _empty(entries * times, block)
        padded.lows[: len(self.lows)], padded.highs[: len(self.highs)] = self.lows, self.highs
        shape = (entries, times)
        return SampleExtremes(
            padded.lows.reshape(shape).min(axis=1), padded.highs.reshape(shape).max(axis=1), block
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SampleExtremes) and self._bytes() == other._bytes()

    def __hash__(self) -> int:
        return hash(self._bytes())

    def _bytes(self) -> tuple[int, bytes, bytes]:
        return self.block, self.lows.tobytes(), self.highs.tobytes()


def _block(samples: int) -> int:
    """The least number of samples per entry, a power of two, so that `LENGTH` entries are enough."""
    return 1 << max(math.ceil(samples / LENGTH) - 1, 0).bit_length()


def _empty(entries: int, block: int) -> SampleExtremes:
    return SampleExtremes(np.full(entries, np.inf, np.float32), np.full(entries, -np.inf, np.float32), block)


EMPTY = _empty(0, 1)

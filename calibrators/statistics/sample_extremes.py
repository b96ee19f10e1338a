"""The extremes of a tensor sample by sample: how its range came about."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LENGTH = 4096
"""Entries at most. Beyond as many samples, each entry stands for two neighbours, then for four ..."""


@dataclass(frozen=True)
class SampleExtremes:
    """Extremes of samples by their number in the stream of data; the order in which they came is forgotten.

    Entry ``i`` holds those of the samples ``i * block`` to ``(i + 1) * block - 1``. ``block`` is a power of
    two that follows from the highest number alone, so any order and split of the samples gives the same.

    Attributes:
        lows, highs: float32 ``[entries]``; ``inf`` and ``-inf`` where nothing finite was seen.
        block: samples to an entry.
    """

    lows: Floats
    highs: Floats
    block: int = 1

    @staticmethod
    def of(numbers: NDArray[np.int64], lows: Floats, highs: Floats) -> SampleExtremes:
        """Of the samples with these ``numbers``; all three ``[samples]``."""
        if not len(numbers):
            return EMPTY
        block = _block(int(numbers.max()) + 1)
        entries = numbers // block
        trail = _empty(int(entries.max()) + 1, block)
        np.minimum.at(trail.lows, entries, lows)
        np.maximum.at(trail.highs, entries, highs)
        return trail

    def over(self, other: SampleExtremes) -> SampleExtremes:
        """Of both, numbered alike: other samples of one stream, or another tensor's of the same samples."""
        block = max(self.block, other.block)
        one, two = self._coarser(block), other._coarser(block)
        longer, shorter = (one, two) if len(one.lows) >= len(two.lows) else (two, one)
        n = len(shorter.lows)
        lows, highs = longer.lows.copy(), longer.highs.copy()
        np.minimum(lows[:n], shorter.lows, out=lows[:n])
        np.maximum(highs[:n], shorter.highs, out=highs[:n])
        return SampleExtremes(lows, highs, block)

    def later(self, samples: int) -> SampleExtremes:
        """As if at least ``samples`` others had come before; the numbers grow by whole blocks."""
        ahead = _empty(-(-samples // self.block), self.block)
        moved = SampleExtremes(
            np.concatenate([ahead.lows, self.lows]), np.concatenate([ahead.highs, self.highs]), self.block
        )
        return moved._coarser(_block(len(moved.lows) * self.block))

    def clipped(self, low: float, high: float) -> SampleExtremes:
        """As if every value had been cut to ``[low, high]``."""
        seen = self.lows <= self.highs
        lows, highs = (
            np.where(seen, np.clip(ends, low, high), ends).astype(np.float32)
            for ends in (self.lows, self.highs)
        )
        return SampleExtremes(lows, highs, self.block)

    def seen(self) -> tuple[Floats, Floats]:
        """Lows and highs, in order, of the entries that hold a finite value."""
        there = self.lows <= self.highs
        return self.lows[there], self.highs[there]

    def _coarser(self, block: int) -> SampleExtremes:
        """With ``block`` samples to an entry, a multiple of today's."""
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
    """The least power of two with which ``samples`` fit."""
    return 1 << max(math.ceil(samples / LENGTH) - 1, 0).bit_length()


def _empty(entries: int, block: int) -> SampleExtremes:
    return SampleExtremes(np.full(entries, np.inf, np.float32), np.full(entries, -np.inf, np.float32), block)


EMPTY = _empty(0, 1)

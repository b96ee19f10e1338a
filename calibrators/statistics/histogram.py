"""Histograms that can be split, reordered and merged without changing a single count.

Bin ``j`` counts ``j * w <= x < (j + 1) * w`` for ``j`` from ``-SIDE`` to ``SIDE - 1``. The width ``w`` is
always a power of two and depends only on the largest magnitude seen: ``|x| < 2**exponent`` and
``w = 2**exponent / SIDE``. So between half and all bins of a side are in use. When the range doubles,
neighbouring pairs of bins are added, which gives exactly the same as counting from scratch. Dividing a
float32 by a power of two is exact, so the bin of a value does not depend on earlier values.
"""

from __future__ import annotations

import math

import numpy as np
from fast_histogram import histogram1d
from numpy.typing import NDArray

SIDE = 4096
"""Number of bins on either side of zero."""

SIDE_BITS = SIDE.bit_length() - 1

FEW = 2048
"""Below this number of values, it is faster to look up each bin than to make a new histogram."""

WAITING = 2**14
"""Number of values that wait to be counted together, since each counting takes some time of its own."""

ZERO_EXPONENT = -149
"""The exponent of a histogram that holds only zeros: below that of the smallest float32."""

EXPONENTS = range(ZERO_EXPONENT, 129)
"""All possible exponents for float32 values."""


class Histogram:
    """A histogram of float32 values.

    Attributes:
        exponent: all magnitudes are below ``2**exponent``.
    """

    def __init__(self, exponent: int = ZERO_EXPONENT, counts: NDArray[np.int64] | None = None) -> None:
        self.exponent = exponent
        self._counts = np.zeros(2 * SIDE, np.int64) if counts is None else counts
        self._waiting: dict[int, list[NDArray[np.float32]]] = {}
        self._held = 0
        self._signed = False

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counts, int64 of shape ``[2 * SIDE]``; ``counts[SIDE + j]`` is that of bin ``j``."""
        self._count_waiting()
        return self._counts

    def __reduce__(self) -> tuple[type[Histogram], tuple[int, NDArray[np.int64]]]:
        """Pickle what was counted, without values that wait."""
        return Histogram, (self.exponent, self.counts)

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent - SIDE_BITS)

    def reach(self, low: float, high: float) -> None:
        """Widen the bins so that values from ``low`` to ``high`` can be added."""
        self.widen(exponent_of(max(-low, high)))

    def add(self, values: NDArray[np.float32], signed: bool = True, weight: int = 1) -> None:
        """Count values.

        Args:
            values: finite values of any shape, with magnitudes below ``2**exponent`` (see `reach`).
            signed: whether some of them may be negative.
            weight: how often each value counts.
        """
        self._signed |= signed
        if values.size >= WAITING:
            self._count(values, weight)
            return
        self._waiting.setdefault(weight, []).append(
            values.flatten()
        )  # a copy: the caller may reuse the array
        self._held += values.size
        if self._held >= WAITING:
            self._count_waiting()

    def _count_waiting(self) -> None:
        for weight, values in self._waiting.items():
            self._count(np.concatenate(values), weight)
        self._waiting, self._held = {}, 0

    def _count(self, values: NDArray[np.float32], weight: int) -> None:
        limit = math.ldexp(1.0, self.exponent)
        if values.size < FEW:
            bins = np.floor(values.astype(np.float64) / self.width).astype(np.int64)
            np.add.at(self._counts, SIDE + bins, weight)
        elif self._signed:
            self._counts += weight * _exact(
                values, histogram1d(values, 2 * SIDE, (-limit, limit)).astype(np.int64)
            )
        else:
            self._counts[SIDE:] += weight * histogram1d(values, SIDE, (0.0, limit)).astype(np.int64)

    def widen(self, exponent: int) -> None:
        """Grow the bins until ``2**exponent`` bounds the magnitudes; never shrink them."""
        if exponent <= self.exponent:
            return
        # After SIDE_BITS doublings there is one bin per side left; further doublings change nothing.
        shift = min(exponent - self.exponent, SIDE_BITS)
        folded = self._counts.reshape(-1, 1 << shift).sum(axis=1)
        self._counts = np.zeros_like(self._counts)
        self._counts[SIDE - (SIDE >> shift) : SIDE + (SIDE >> shift)] = folded
        self.exponent = exponent

    def clipped(self, low: float, high: float) -> Histogram:
        """Make the histogram of the values clipped to ``[low, high]``, which holds zero."""
        steps = (end / self.width if math.isfinite(end) else math.copysign(SIDE, end) for end in (low, high))
        below, above = (min(max(step, -SIDE), SIDE) for step in steps)
        first, last = SIDE + math.floor(below), SIDE + max(math.ceil(above) - 1, 0)
        counts = np.zeros_like(self.counts)
        counts[first : last + 1] = self.counts[first : last + 1]
        counts[first] += self.counts[:first].sum()
        counts[last] += self.counts[last + 1 :].sum()
        return Histogram(self.exponent, counts)

    def merged(self, other: Histogram) -> Histogram:
        """Make the histogram of both sets of values."""
        exponent = max(self.exponent, other.exponent)
        return Histogram(exponent, self._widened(exponent) + other._widened(exponent))

    def _widened(self, exponent: int) -> NDArray[np.int64]:
        """Return the counts of bins as wide as those of ``exponent``; the same array if they are."""
        copy = Histogram(self.exponent, self.counts)
        copy.widen(exponent)  # which makes new counts, or leaves them
        return copy.counts

    def magnitudes(self) -> NDArray[np.int64]:
        """Count ``|x|`` by adding both sides; shape ``[SIDE]``."""
        return self.counts[SIDE:] + self.counts[SIDE - 1 :: -1]


def _exact(values: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Correct ``counts``, in which tiny negative ``values`` may lie on the wrong side of zero.

    The histogram computes ``x + limit`` in float64. If a negative x is below the resolution, the sum is
    rounded up to ``limit``, and x falls into the bin right of zero. This cannot happen at other borders:
    there a float32 has no such small digits.
    """
    strays = np.count_nonzero(values < 0) - counts[:SIDE].sum()
    counts[SIDE - 1] += strays
    counts[SIDE] -= strays
    return counts


def exponent_of(magnitude: float) -> int:
    """Find the least ``e`` with ``magnitude < 2**e``."""
    return math.frexp(magnitude)[1] if magnitude else ZERO_EXPONENT

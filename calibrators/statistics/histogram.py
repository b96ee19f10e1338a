"""Histograms that can be split, reordered and merged without changing a single count.

Bin ``j`` counts ``j * w <= x < (j + 1) * w`` for ``j`` from ``-SIDE`` to ``SIDE - 1``. The width ``w`` is
always a power of two and follows from the largest magnitude seen alone: ``|x| < 2**exponent`` and
``w = 2**exponent / SIDE``, so that between half and all of a side's bins are in use. When the range
doubles, neighbouring pairs of bins are added, which gives exactly what counting anew would give. A
float32 divided by a power of two is exact, so every value has one bin, whatever came before it.
"""

from __future__ import annotations

import math

import numpy as np
from fast_histogram import histogram1d
from numpy.typing import NDArray

SIDE = 4096
"""Bins on either side of zero."""

SIDE_BITS = SIDE.bit_length() - 1

FEW = 2048
"""Below so many values it takes less time to look up their bins one by one than to make a new histogram."""

ZERO_EXPONENT = -149
"""The exponent of a histogram that holds nothing but zeros: below that of the smallest float32."""

EXPONENTS = range(ZERO_EXPONENT, 129)
"""The exponents that float32 values can give."""


class Histogram:
    """Counts of float32 values.

    Attributes:
        exponent: all magnitudes are below ``2**exponent``.
        counts: int64, shape ``[2 * SIDE]``; ``counts[SIDE + j]`` is bin ``j``.
    """

    def __init__(self, exponent: int = ZERO_EXPONENT, counts: NDArray[np.int64] | None = None) -> None:
        self.exponent = exponent
        self.counts = np.zeros(2 * SIDE, np.int64) if counts is None else counts

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent - SIDE_BITS)

    def reach(self, low: float, high: float) -> None:
        """Widen the bins so that values from ``low`` to ``high`` can be added."""
        self.widen(exponent_of(max(-low, high)))

    def add(self, values: NDArray[np.float32], signed: bool = True, weight: int = 1) -> None:
        """Count ``values``, all finite and within reach, ``weight`` times each.

        None of them is negative unless ``signed``.
        """
        limit = math.ldexp(1.0, self.exponent)
        if values.size < FEW:
            bins = np.floor(values.astype(np.float64) / self.width).astype(np.int64)
            np.add.at(self.counts, SIDE + bins, weight)
        elif signed:
            self.counts += weight * _exact(
                values, histogram1d(values, 2 * SIDE, (-limit, limit)).astype(np.int64)
            )
        else:
            self.counts[SIDE:] += weight * histogram1d(values, SIDE, (0.0, limit)).astype(np.int64)

    def widen(self, exponent: int) -> None:
        """Grow the bins until ``2**exponent`` bounds the magnitudes; never shrink them."""
        if exponent <= self.exponent:
            return
        # After SIDE_BITS doublings one bin a side is left, and more doublings leave it so.
        shift = min(exponent - self.exponent, SIDE_BITS)
        folded = self.counts.reshape(-1, 1 << shift).sum(axis=1)
        self.counts = np.zeros_like(self.counts)
        self.counts[SIDE - (SIDE >> shift) : SIDE + (SIDE >> shift)] = folded
        self.exponent = exponent

    def clipped(self, low: float, high: float) -> Histogram:
        """As if values outside ``[low, high]``, which holds zero, had been set to its nearer end."""
        steps = (end / self.width if math.isfinite(end) else math.copysign(SIDE, end) for end in (low, high))
        below, above = (min(max(step, -SIDE), SIDE) for step in steps)
        first, last = SIDE + math.floor(below), SIDE + max(math.ceil(above) - 1, 0)
        counts = np.zeros_like(self.counts)
        counts[first : last + 1] = self.counts[first : last + 1]
        counts[first] += self.counts[:first].sum()
        counts[last] += self.counts[last + 1 :].sum()
        return Histogram(self.exponent, counts)

    def merged(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values."""
        result = Histogram(self.exponent, self.counts.copy())
        result.widen(other.exponent)
        addend = Histogram(other.exponent, other.counts)
        addend.widen(self.exponent)
        result.counts += addend.counts
        return result

    def magnitudes(self) -> NDArray[np.int64]:
        """Counts of ``|x|``, shape ``[SIDE]``: both sides added."""
        return self.counts[SIDE:] + self.counts[SIDE - 1 :: -1]


def _exact(values: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``counts`` of ``values`` with none on the wrong side of zero.

    ``x + limit`` rounds a negative x below the resolution of a double up to ``limit``, and so into the bin
    right of zero. At no other border can that happen: there a float32 has no such digits.
    """
    strays = np.count_nonzero(values < 0) - counts[:SIDE].sum()
    counts[SIDE - 1] += strays
    counts[SIDE] -= strays
    return counts


def exponent_of(magnitude: float) -> int:
    """The least ``e`` with ``magnitude < 2**e``."""
    return math.frexp(magnitude)[1] if magnitude else ZERO_EXPONENT

"""The grid of numbers that a range is mapped to: integers, or floating-point numbers of 8 bits.

A tensor is divided by its scale and rounded to the grid. The numbers of an integer grid are one step apart.
Those of a floating-point grid lie ``2**(e - mantissa)`` apart between ``2**e`` and ``2**(e + 1)``, and evenly
below the least normal number, ``2**exponent``. Their rounding error is relative to the value, so the scale
matters little for small numbers, and a larger one clips nothing.

Source for E4M3: Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Real = TypeVar("_Real", np.float32, np.float64)

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format of few bits, without infinity.

    Attributes:
        largest: the largest number.
        mantissa: the number of stored bits of the mantissa.
        exponent: the exponent of the least normal number.
    """

    largest: int
    mantissa: int
    exponent: int


E4M3 = FloatFormat(largest=448, mantissa=3, exponent=-6)


@dataclass(frozen=True)
class Grid:
    """The numbers from ``qmin`` to ``qmax``; a ``symmetric`` grid has its zero point in the middle.

    Attributes:
        qmin: the lowest number.
        qmax: the highest number.
        symmetric: whether the zero point is fixed in the middle.
        floating: the format of floating-point numbers; None: the numbers are the integers.
    """

    qmin: int
    qmax: int
    symmetric: bool
    floating: FloatFormat | None = None

    @property
    def levels(self) -> int:
        """The number of integers."""
        return self.qmax - self.qmin + 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid: 0 for signed types, half the number of levels for unsigned."""
        return (self.qmin + self.qmax + 1) // 2

    @property
    def steps_up(self) -> int:
        """The number of steps from the middle to the top; a symmetric scale is amax / steps_up (127)."""
        return self.qmax - self.middle

    def rounded(self, values: NDArray[_Real]) -> NDArray[_Real]:
        """Round to the nearest numbers, halves to even, without the limits of the grid."""
        if self.floating is None:
            return np.rint(values)
        spacing = self.spacing(values)
        return np.asarray(np.rint(values / spacing) * spacing, values.dtype)

    def spacing(self, values: NDArray[_Real]) -> NDArray[_Real]:
        """Compute the distance of the neighbours between which each value lies."""
        if self.floating is None:
            return np.ones_like(values)
        normal = np.maximum(np.abs(values), 2.0**self.floating.exponent)
        exponent = np.frexp(normal)[1] - 1 - self.floating.mantissa
        return np.asarray(np.ldexp(np.ones_like(values), exponent), values.dtype)

    def cubed_gaps(self, numbers: Reals) -> Reals:
        """Sum the cubed distances of neighbours from zero to each of these ``numbers`` of the grid.

        The sum is negative for negative numbers. A twelfth of it is the integral of the squared rounding
        error from zero to the number.
        """
        if self.floating is None:
            return numbers
        positive, sums = self._cubes
        return np.asarray(np.copysign(np.interp(np.abs(numbers), positive, sums), numbers), np.float64)

    @cached_property
    def _cubes(self) -> tuple[Reals, Reals]:
        """The numbers from zero up, and the cubed distances up to each, summed."""
        assert self.floating is not None
        mantissa, exponent = self.floating.mantissa, self.floating.exponent
        subnormal = np.arange(2**mantissa) * 2.0 ** (exponent - mantissa)
        octaves = 2.0 ** np.arange(exponent, np.log2(self.qmax).astype(int) + 1)
        normal = octaves[:, None] * (1 + np.arange(2**mantissa) / 2**mantissa)
        numbers = np.concatenate([subnormal, normal.reshape(-1)])
        numbers = numbers[numbers <= self.qmax]
        return numbers, np.concatenate([[0.0], np.cumsum(np.diff(numbers) ** 3)])

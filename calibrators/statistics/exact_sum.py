"""Sums of float32 numbers without rounding, so that their order does not matter.

A float32 is an integer times a power of two. Each sum is kept as integers in windows of 16 binary digits
(a superaccumulator, as in U. Kulisch, "Computer Arithmetic and Validity", 2013). A number is added to the
window that holds its lowest digit. Integer sums do not depend on the order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOW = 16
"""Binary digits between neighbouring windows. A shifted float32 has at most 24 + 15 digits, so 2**23 of them
fit in 63 bits."""

DIGITS = 24
LOWEST = -176
"""Exponent of the unit ``2**LOWEST`` of the first window; the least digit of a float32 here is 2**-172."""

WINDOWS = 19
"""Number of windows: enough for the largest float32, just below ``2**128``."""

_UNITS = np.ldexp(1.0, LOWEST + WINDOW * np.arange(WINDOWS))


class ExactSum:
    """The sums of ``n`` series of float32 numbers.

    Attributes:
        windows: int64 ``[n, WINDOWS]``; the sum is ``windows @ 2**(LOWEST + WINDOW * [0, 1, ...])``.
    """

    def __init__(self, windows: NDArray[np.int64]) -> None:
        self.windows = windows

    @staticmethod
    def zeros(n: int) -> ExactSum:
        """Make ``n`` sums that are zero."""
        return ExactSum(np.zeros((n, WINDOWS), np.int64))

    def add(self, values: NDArray[np.float32]) -> None:
        """Add each row of ``values``, float32 ``[rows, n]``, all finite."""
        mantissa, exponent = np.frexp(values.astype(np.float64))
        digits = np.ldexp(mantissa, DIGITS).astype(np.int64)
        window, shift = np.divmod(exponent - DIGITS - LOWEST, WINDOW)
        window, shift = (np.where(digits == 0, 0, part) for part in (window, shift))
        series = np.broadcast_to(np.arange(values.shape[1]), values.shape)
        np.add.at(self.windows, (series, window), digits << shift)

    def plus(self, other: ExactSum) -> ExactSum:
        """Add the sums of both."""
        return ExactSum(self.windows + other.windows)

    @property
    def value(self) -> NDArray[np.float64]:
        """The sums, ``[n]``, rounded to float64."""
        return np.asarray(self.windows @ _UNITS, np.float64)

"""The integer grid that a range is mapped to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """The integers ``qmin … qmax``; a ``symmetric`` grid has its zero point in the middle."""

    qmin: int
    qmax: int
    symmetric: bool

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

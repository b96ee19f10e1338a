"""The integer grid a range is deployed on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Integers ``qmin … qmax``; ``symmetric`` grids have their zero point in the middle."""

    qmin: int
    qmax: int
    symmetric: bool

    @property
    def levels(self) -> int:
        """How many integers there are."""
        return self.qmax - self.qmin + 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid: 0 for signed types, half for unsigned ones."""
        return (self.qmin + self.qmax + 1) // 2

    @property
    def steps_up(self) -> int:
        """Steps from the middle to the top: a symmetric grid has its scale from them (amax / 127)."""
        return self.qmax - self.middle

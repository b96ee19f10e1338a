"""The integer grid a range is deployed on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Integers ``qmin … qmax``; ``symmetric`` grids have their zero point in the middle."""

    qmin: int
    qmax: int
    symmetric: bool

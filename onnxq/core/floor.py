"""The floor of the accuracy: below it, a model is of no use, whatever it was made for."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_SQNR = 10.0
"""dB; below it, the error has more than a tenth of the power of the output itself."""

LEAST_AGREEMENT = 0.9
"""The least share of decisions that must stay the same."""

GOOD_SQNR = 20.0
"""dB; an error of a hundredth of the power.

From there on decisions may differ all the same where many values are nearly alike, such as the pixels of a
map: those are no decisions.
"""


@dataclass(frozen=True)
class Floor:
    """The least accuracy of every output.

    Attributes:
        sqnr: the least SQNR in dB.
        agreement: the least share of equal decisions of outputs with an SQNR below `GOOD_SQNR`.
    """

    sqnr: float = LEAST_SQNR
    agreement: float = LEAST_AGREEMENT

    def holds(self, sqnr: float, agreement: float | None) -> bool:
        """Whether an output with this SQNR in dB and this agreement is above the floor; NaN is unknown."""
        if sqnr < self.sqnr:
            return False
        return agreement is None or agreement >= self.agreement or sqnr >= GOOD_SQNR

    def __str__(self) -> str:
        return f"SQNR {self.sqnr:g} dB, agreement {self.agreement:.0%} below {GOOD_SQNR:g} dB"

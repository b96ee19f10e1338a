"""The moving average of the ranges of successive batches."""

from __future__ import annotations

from dataclasses import dataclass

MOMENTUM = 0.9
"""The weight of the past: ``m <- 0.9 m + 0.1 x``."""

Range = tuple[float, float]


@dataclass(frozen=True)
class MovingRange:
    """``m <- 0.9 m + 0.1 x`` over the extremes of batches, beginning with the first batch's.

    Unlike all other statistics it depends on the order of the batches.

    Attributes:
        first: the range of the first batch.
        value: the average after the last one.
        batches: how many there were.
    """

    first: Range = (0.0, 0.0)
    value: Range = (0.0, 0.0)
    batches: int = 0

    def followed_by(self, later: MovingRange) -> MovingRange:
        """The average over our batches and then ``later``'s, as if they had come in one stream.

        ``later`` began with its own first batch in place of our value, and what it began with has
        since faded to ``0.9**batches``; so that share of the difference is put right.
        """
        if not self.batches:
            return later
        fade = MOMENTUM**later.batches
        low, high = (
            value + fade * (ours - first)
            for value, ours, first in zip(later.value, self.value, later.first, strict=True)
        )
        return MovingRange(self.first, (low, high), self.batches + later.batches)

    def clipped(self, low: float, high: float) -> MovingRange:
        """Both ranges cut to ``[low, high]``."""
        first, value = (
            (min(max(ends[0], low), high), min(max(ends[1], low), high)) for ends in (self.first, self.value)
        )
        return MovingRange(first, value, self.batches)

    def beside(self, other: MovingRange) -> MovingRange:
        """The range that holds both averages: of two tensors that are to share one range."""
        if not (self.batches and other.batches):
            return self if self.batches else other
        return MovingRange(
            _hull(self.first, other.first),
            _hull(self.value, other.value),
            max(self.batches, other.batches),
        )


def _hull(one: Range, two: Range) -> Range:
    return min(one[0], two[0]), max(one[1], two[1])

"""The samples of one quantization: most are calibrated on, every fifth is held out to judge by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from calibrators.samples import Sample

HOLD_EVERY = 5
HELD_SAMPLES = 64
HELD_BYTES = 256 * 2**20


@dataclass
class Samples:
    """Iterate once to get the samples to calibrate on; what was held out is known afterwards.

    Attributes:
        source: all samples, read as they come.
        total: how many there are, None if unknown.
        synthetic: made up, so that nothing measured on them tells of accuracy.
    """

    source: Iterable[Sample]
    total: int | None
    synthetic: bool = False
    _held: list[Sample] = field(default_factory=list)
    _first: list[Sample] = field(default_factory=list)

    def __iter__(self) -> Iterator[Sample]:
        """The samples to calibrate on. A held-out one is never among them."""
        for index, sample in enumerate(self.source):
            if index % HOLD_EVERY == HOLD_EVERY - 1 and self._has_room(sample):
                self._held.append(sample)
                continue
            if index < HOLD_EVERY:
                self._first.append(sample)
            yield sample

    @property
    def independent(self) -> bool:
        """Whether `to_judge` was kept out of calibration."""
        return bool(self._held)

    @property
    def held(self) -> int:
        """How many samples have been held out so far."""
        return sum(sample.count for sample in self._held)

    @property
    def to_judge(self) -> list[Sample]:
        """The held-out samples; if there were too few to hold any out, the first ones."""
        return self._held or self._first

    def _has_room(self, sample: Sample) -> bool:
        held = sum(_bytes(other) for other in self._held)
        return len(self._held) < HELD_SAMPLES and held + _bytes(sample) <= HELD_BYTES


def _bytes(sample: Sample) -> int:
    return sum(array.nbytes for array in sample.feeds.values())

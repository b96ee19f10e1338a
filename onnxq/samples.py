"""The samples of one quantization: most are calibrated on, every fifth is held out to judge by."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from calibrators.batching import batches
from calibrators.data import open_data
from calibrators.samples import Sample, fixed_batch, input_specs
from calibrators.synthetic import synthetic_samples
from onnxq.config import QuantConfig

Data = str | os.PathLike[str] | Iterable[Any]
"""A path, or any iterable of ``{input name: array}``; see `calibrators.data`."""

SYNTHETIC_SAMPLES = 8
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
        block: neighbours that stay together: as many as the batch that the model fixes.
    """

    source: Iterable[Sample]
    total: int | None
    synthetic: bool = False
    block: int = 1
    _held: list[Sample] = field(default_factory=list)
    _first: list[Sample] = field(default_factory=list)

    def __iter__(self) -> Iterator[Sample]:
        """The samples to calibrate on. A held-out one is never among them."""
        for index, sample in enumerate(self.source):
            turn = index // self.block
            if turn % HOLD_EVERY == HOLD_EVERY - 1 and self._has_room(sample):
                self._held.append(sample)
                continue
            if turn < HOLD_EVERY:
                self._first.append(sample)
            yield sample

    @property
    def independent(self) -> bool:
        """Whether `to_judge` was kept out of calibration."""
        return bool(self._held)

    @property
    def judged_on(self) -> str:
        """What kind of samples `to_judge` holds, in words."""
        if not self.to_judge:
            return "nothing"
        if self.synthetic:
            return "synthetic inputs"
        return "held-out samples" if self.independent else "the calibration samples themselves"

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


def open_samples(model: ir.Model, data: Data | None, config: QuantConfig) -> Samples:
    """The samples of ``data``; synthetic ones without it; none if ranges come from a table.

    Raises:
        CalibrationError: the data cannot be read or does not fit the model.
    """
    inputs = input_specs(model)
    if config.from_table is not None:
        return Samples((), 0)
    if data is not None:
        source = open_data(data, inputs, preprocess=config.preprocess, limit=config.samples)
        return Samples(source, source.total, block=fixed_batch(inputs) or 1)
    count = config.samples or SYNTHETIC_SAMPLES
    return Samples(synthetic_samples(model, inputs, count, config.seed), count, synthetic=True)


def in_batches(samples: Iterable[Sample], model: ir.Model, config: QuantConfig) -> Iterator[Sample]:
    """Joined to batches of the asked size, or of the size that the model fixes."""
    return batches(samples, input_specs(model), config.batch_size)

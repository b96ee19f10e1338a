"""The samples of one quantization: most are calibrated on, every fifth is held out to judge by."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import onnx_ir as ir

from calibrators.data.bad_samples import OnBad
from calibrators.data.batching import batches
from calibrators.data.open import open_data
from calibrators.data.samples import Sample, fixed_batch, input_specs
from calibrators.data.synthetic import synthetic_samples
from calibrators.errors import CalibrationError
from onnxq.core.config import QuantConfig

logger = logging.getLogger(__name__)

Data = str | os.PathLike[str] | Iterable[Any]
"""A path, or any iterable of ``{input name: array}``; see `calibrators.data.open`."""

SYNTHETIC_SAMPLES = 8
HOLD_EVERY = 5
HELD_SAMPLES = 64
HELD_BYTES = 256 * 2**20

KEPT_SAMPLES = 128
"""Calibration samples that are run again for corrections; more of them hardly change what is fitted."""

NAMED = 100
"""Bad samples that are named; of more than that, the number tells enough."""


MANY_BAD = 0.05
"""The share of bad samples that is no accident any more."""


@dataclass
class BadSampleCounter:
    """Told of bad samples, it names and counts them; each once, however often it comes by."""

    count: int = 0
    _named: set[str] = field(default_factory=set)

    def __call__(self, error: CalibrationError, samples: int = 1) -> None:
        """``samples`` are skipped because of ``error``."""
        text = str(error)
        if text in self._named:
            return
        self._named.add(text)
        self.count += samples
        if len(self._named) <= NAMED:
            logger.warning("skipped: %s", text)
        elif len(self._named) == NAMED + 1:
            logger.warning("more than %d bad samples: further ones are skipped without a word", NAMED)


class ReservoirSample:
    """Samples of a stream of any length, evenly spread over it, within bounds.

    Every so-manieth is kept; when they become too many, every second of them goes.

    Attributes:
        samples: those that are kept.
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._every = 1
        self._seen = 0
        self._bytes = 0

    def take(self, sample: Sample) -> None:
        """The next sample of the stream."""
        if self._seen % self._every == 0:
            self.samples.append(sample)
            self._bytes += _bytes(sample)
        self._seen += 1
        while self._too_many():
            self.samples = self.samples[::2]
            self._every *= 2
            self._bytes = sum(map(_bytes, self.samples))

    def _too_many(self) -> bool:
        count = sum(sample.count for sample in self.samples)
        return len(self.samples) > 1 and (count > KEPT_SAMPLES or self._bytes > HELD_BYTES)


@dataclass
class Samples:
    """Iterate once to get the samples to calibrate on; what was held out is known afterwards.

    Attributes:
        source: all samples, read as they come.
        total: how many there are, None if unknown.
        synthetic: made up, so that nothing measured on them tells of accuracy.
        block: neighbours that stay together: as many as the batch that the model fixes.
        unreadable: told of bad samples that ``source`` leaves out; None: they are errors.
        refused: told of those that the model does not take; None: they are errors.
        holds: whether any are held out.
        given: samples that came out of ``source`` so far.
    """

    source: Iterable[Sample]
    total: int | None
    synthetic: bool = False
    block: int = 1
    unreadable: BadSampleCounter | None = None
    refused: BadSampleCounter | None = None
    holds: bool = True
    given: int = 0
    _taken: int = 0
    _held: list[Sample] = field(default_factory=list)
    _first: list[Sample] = field(default_factory=list)
    _kept: ReservoirSample = field(default_factory=lambda: ReservoirSample())

    def __iter__(self) -> Iterator[Sample]:
        """The samples to calibrate on. A held-out one is never among them."""
        return filter(self.take, self.source)

    def take(self, sample: Sample) -> bool:
        """The next sample; whether it is one to calibrate on. A loop of one's own calls this."""
        turn = self._taken // self.block
        self._taken += 1
        self.given += sample.count
        if self.holds and turn % HOLD_EVERY == HOLD_EVERY - 1 and self._has_room(sample):
            self._held.append(sample)
            return False
        if turn < HOLD_EVERY:
            self._first.append(sample)
        self._kept.take(sample)
        return True

    @property
    def has_held_out(self) -> bool:
        """Whether `eval_samples` was kept out of calibration."""
        return bool(self._held)

    @property
    def eval_source(self) -> str:
        """What kind of samples `eval_samples` holds, in words."""
        if not self.eval_samples:
            return "nothing"
        if self.synthetic:
            return "synthetic inputs"
        return "held-out samples" if self.has_held_out else "the calibration samples themselves"

    @property
    def on_refused(self) -> OnBad | None:
        """To be told of samples that the model does not take: those that were made up fit or do not."""
        return _ask_for_data if self.synthetic else self.refused

    @property
    def skipped(self) -> int:
        """How many bad samples there were so far."""
        return sum(kind.count for kind in (self.unreadable, self.refused) if kind)

    @property
    def not_calibrated(self) -> int:
        """How many samples so far were held out, or were so bad that they could not even be read."""
        return self.held + (self.unreadable.count if self.unreadable else 0)

    @property
    def passed(self) -> int:
        """How many samples came by so far, good and bad."""
        return self.given + (self.unreadable.count if self.unreadable else 0)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why these samples should not be trusted, if so."""
        if self.skipped <= MANY_BAD * self.passed:
            return ()
        return (
            f"{self.skipped} of {self.passed} SAMPLES WERE BAD and skipped: those that are left may not be "
            "what the model meets in use. Warnings above tell what is wrong with them.",
        )

    @property
    def held(self) -> int:
        """How many samples have been held out so far."""
        return sum(sample.count for sample in self._held)

    @property
    def fit_samples(self) -> list[Sample]:
        """Calibration samples, spread over all of them, to run again: what corrections are fitted on."""
        return self._kept.samples

    @property
    def eval_samples(self) -> list[Sample]:
        """The held-out samples; if there were too few to hold any out, the first ones."""
        return self._held or self._first

    def _has_room(self, sample: Sample) -> bool:
        held = sum(_bytes(other) for other in self._held)
        return self.held < HELD_SAMPLES and held + _bytes(sample) <= HELD_BYTES


def _ask_for_data(error: CalibrationError, _: int) -> NoReturn:
    raise CalibrationError(
        f"{error}: made-up inputs do not suit it, give calibration data (--data)"
    ) from error


def _bytes(sample: Sample) -> int:
    return sum(array.nbytes for array in sample.feeds.values())


def open_samples(
    model: ir.Model, data: Data | None, config: QuantConfig, made_up: int = SYNTHETIC_SAMPLES
) -> Samples:
    """The samples of ``data``; without it ``made_up`` ones, if ``config`` does not say how many; none if
    ranges come from a table.

    Raises:
        CalibrationError: the data cannot be read or does not fit the model.
    """
    inputs = input_specs(model)
    if config.from_table is not None:
        return Samples((), 0)
    if data is not None:
        bad = (BadSampleCounter(), BadSampleCounter()) if config.skip_bad_samples else (None, None)
        source = open_data(data, inputs, preprocess=config.preprocess, limit=config.samples, on_bad=bad[0])
        block = fixed_batch(inputs) or 1
        return Samples(source, source.total, block=block, unreadable=bad[0], refused=bad[1])
    count = config.samples or made_up
    return Samples(synthetic_samples(model, inputs, count, config.seed), count, synthetic=True)


def in_batches(samples: Iterable[Sample], model: ir.Model, config: QuantConfig) -> Iterator[Sample]:
    """Joined to batches of the asked size, or of the size that the model fixes."""
    return batches(samples, input_specs(model), config.batch_size)


def origin(data: Data | None) -> str:
    """Where samples come from, in words."""
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    return "" if data is None else f"samples from Python ({type(data).__name__})"

"""Split the samples of one quantization: every fifth is held out to evaluate on, the rest calibrate."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NoReturn

import onnx_ir as ir

from calibrators.data.bad_samples import OnBad
from calibrators.data.batching import batches, parts
from calibrators.data.labels import Labelled
from calibrators.data.open import open_data
from calibrators.data.samples import Sample, fixed_batch, input_specs
from calibrators.data.synthetic import synthetic_samples
from calibrators.errors import CalibrationError
from calibrators.statistics.kept_inputs import USUAL_BYTES, KeptInputs
from onnxq.core.config import QuantConfig

logger = logging.getLogger(__name__)

Data = str | os.PathLike[str] | Iterable[Any]
"""A path, or any iterable of ``{input name: array}``; see `calibrators.data.open`."""

SYNTHETIC_SAMPLES = 8
HOLD_EVERY = 5
HELD_SAMPLES = 64
HELD_BYTES = USUAL_BYTES

KEPT_SAMPLES = 128
"""Calibration samples that are kept to fit corrections on; more samples hardly change the result."""

NAMED = 100
"""Bad samples that are logged one by one; more are only counted."""


MANY_BAD = 0.05
"""The share of bad samples above which a warning is given."""


BLANK = (
    "THE DATA IS BLANK: all elements of a sample are the same value, so ranges mean nothing and the accuracy "
    "is UNKNOWN. Give samples as the model gets them in use."
)
"""The warning about samples without content: failed downloads, placeholders, buffers that nobody filled."""


def evenly(batches: Sequence[Sample], most: int) -> Sequence[Sample]:
    """Return at most ``most`` of the batches, evenly spread."""
    return batches[:: -(-len(batches) // most) or 1]


@dataclass
class BadSampleCounter:
    """Logs and counts bad samples, each of them once even if it is reported several times.

    Attributes:
        count: the number of bad samples.
    """

    count: int = 0
    _named: set[str] = field(default_factory=set)

    def __call__(self, error: CalibrationError, samples: int = 1) -> None:
        """Count ``samples`` more samples that are skipped because of ``error``."""
        text = str(error)
        if text in self._named:
            return
        self._named.add(text)
        self.count += samples
        if len(self._named) <= NAMED:
            logger.warning("skipped: %s", text)
        elif len(self._named) == NAMED + 1:
            logger.warning("more than %d bad samples: further ones are skipped without a message", NAMED)


class ReservoirSample:
    """Keeps a limited number of samples of a stream of any length, evenly spread over it.

    Those are kept whose place is a multiple of n. When there are too many, n doubles. So the result does not
    depend on the order of the samples, and the reservoirs of the parts of a stream can be merged.
    """

    def __init__(self, total: int | None = None) -> None:
        """Begin with the n that ``total`` samples will lead to, if their number is known."""
        self._kept: dict[int, Sample] = {}
        self._every = 1
        self._bytes = 0
        while total is not None and -(-total // self._every) > KEPT_SAMPLES:
            self._every *= 2

    @property
    def samples(self) -> list[Sample]:
        """The samples that are kept, in order."""
        return [self._kept[place] for place in sorted(self._kept)]

    @property
    def places(self) -> Mapping[int, Sample]:
        """The samples that are kept, by their place in the stream."""
        return self._kept

    def take(self, place: int, sample: Sample) -> None:
        """Take the sample at ``place`` of the stream, and keep it if it is its turn."""
        while place in self._kept:  # only where a sample too large to be held out has taken it
            place += 1
        if place % self._every == 0:
            self._kept[place] = sample
            self._bytes += _bytes(sample)
        while self._too_many():
            self._every *= 2
            self._kept = {place: kept for place, kept in self._kept.items() if place % self._every == 0}
            self._bytes = sum(map(_bytes, self._kept.values()))

    def _too_many(self) -> bool:
        count = sum(sample.count for sample in self._kept.values())
        return len(self._kept) > 1 and (count > KEPT_SAMPLES or self._bytes > HELD_BYTES)


@dataclass(frozen=True)
class Place:
    """Where a sample goes: every fifth is held out, while there is room. It follows from its number alone.

    Attributes:
        candidate: whether it is its turn to be held out.
        before: how many candidates come before it.
        room: how many samples of its size are held out at most.
    """

    candidate: bool
    before: int
    room: int

    @classmethod
    def of(cls, number: int, sample: Sample, block: int) -> Place:
        """Find the place of the sample with this number, where ``block`` successive ones stay together."""
        turn, inside = divmod(number, block)
        candidate = turn % HOLD_EVERY == HOLD_EVERY - 1
        before = turn // HOLD_EVERY * block + (inside if candidate else 0)
        room = min(-(-HELD_SAMPLES // sample.count), HELD_BYTES // max(_bytes(sample), 1))
        return cls(candidate, before, room)

    @property
    def is_held(self) -> bool:
        """Whether the sample is held out."""
        return self.candidate and self.before < self.room

    @property
    def held_before(self) -> int:
        """How many samples before it are held out."""
        return min(self.before, self.room)


@dataclass
class Samples:
    """The samples of one quantization. Iterate once to get those to calibrate on; the rest is held out.

    Attributes:
        source: all samples, read as they come.
        total: the number of samples; None if unknown.
        synthetic: the samples are synthetic, so measurements on them say nothing about accuracy.
        block: how many successive samples stay together: the batch size that the model fixes.
        unreadable: counts bad samples that ``source`` leaves out; None: they are errors.
        refused: counts samples that the model does not take; None: they are errors.
        holds: whether samples are kept in memory: some to evaluate on, others to fit on.
        travel: whether the kept samples travel with the statistics.
        elsewhere: how many samples another process has calibrated on; corrections get the time that this
            would have taken here.
        part: what part of a larger calibration these samples are; see `onnxq.calibration.shards`.
        given: the number of samples that came out of ``source`` so far.
    """

    source: Iterable[Sample]
    total: int | None
    synthetic: bool = False
    block: int = 1
    unreadable: BadSampleCounter | None = None
    refused: BadSampleCounter | None = None
    holds: bool = True
    travel: bool = False
    elsewhere: int = 0
    part: Mapping[str, Any] = field(default_factory=dict)
    given: int = 0
    _blank: bool = True
    _taken: int = 0
    _held: dict[int, Sample] = field(default_factory=dict)
    _first: list[Sample] = field(default_factory=list)
    _kept: ReservoirSample = field(default_factory=lambda: ReservoirSample())

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples to calibrate on, without the held-out ones, whose numbers close up."""
        for sample in self.source:
            place = self._place(sample)
            if self.take(sample):
                behind = place.held_before if self.holds else 0
                yield replace(sample, numbers=tuple(number - behind for number in sample.numbers))

    def _place(self, sample: Sample) -> Place:
        return Place.of(self._number(sample), sample, self.block if sample.joinable else 1)

    def _number(self, sample: Sample) -> int:
        """The number of a sample; batches from Python count as one."""
        return sample.numbers[0] if sample.numbers else self._taken

    def take(self, sample: Sample) -> bool:
        """Register the next sample and return whether to calibrate on it. The user's own loop calls this."""
        number, place = self._number(sample), self._place(sample)
        self._taken += 1
        self.given += sample.count
        self._blank = self._blank and _is_blank(sample)
        if not self.holds:
            return True
        if place.is_held:
            self._held[number] = sample
            return False
        if number // (self.block if sample.joinable else 1) < HOLD_EVERY:
            self._first.append(sample)
        self._kept.take(number - place.held_before, sample)
        return True

    def thinned_for(self, total: int | None) -> Samples:
        """Return a copy that keeps no more samples than those of a stream of ``total`` samples."""
        fewest = None if total is None else max(total - HELD_SAMPLES, 0)
        return replace(self, _kept=ReservoirSample(fewest))

    @property
    def kept(self) -> KeptInputs:
        """The samples that are kept in memory, to travel with the statistics."""
        return KeptInputs(dict(self._held), dict(self._kept.places), self.block)

    @staticmethod
    def of_kept(inputs: KeptInputs, calibrated: int) -> Samples:
        """Make the samples of a quantization from those that travel with statistics of ``calibrated``."""
        kept = ReservoirSample()
        for place, sample in inputs.fit.items():
            kept.take(place, sample)
        first = [kept.places[i] for i in sorted(kept.places) if i // inputs.block < HOLD_EVERY]
        return Samples(
            (),
            0,
            block=inputs.block,
            refused=BadSampleCounter(),
            elsewhere=calibrated,
            _held=dict(inputs.held),
            _kept=kept,
            _first=first,
        )

    @property
    def may_be_empty(self) -> bool:
        """Whether having no samples is no error: a part of the data may hold bad ones only."""
        return bool(self.part)

    @property
    def has_held_out(self) -> bool:
        """Whether `eval_samples` was kept out of calibration."""
        return bool(self._held)

    @property
    def eval_source(self) -> str:
        """The kind of samples in `eval_samples`, as a text for the user."""
        if not self.eval_samples:
            return "nothing"
        if self.synthetic:
            return "synthetic inputs"
        return "held-out samples" if self.has_held_out else "the calibration samples themselves"

    @property
    def on_refused(self) -> OnBad | None:
        """The callback for samples that the model does not take. For synthetic samples it raises an error."""
        return _ask_for_data if self.synthetic else self.refused

    @property
    def skipped(self) -> int:
        """The number of bad samples so far."""
        return sum(kind.count for kind in (self.unreadable, self.refused) if kind)

    @property
    def not_calibrated(self) -> int:
        """The number of samples so far that were held out or could not be read."""
        return self.held + (self.unreadable.count if self.unreadable else 0)

    @property
    def passed(self) -> int:
        """The number of samples so far, good and bad."""
        return self.given + (self.unreadable.count if self.unreadable else 0)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings about these samples."""
        return tuple(self._warnings())

    def _warnings(self) -> Iterator[str]:
        if self.skipped > MANY_BAD * self.passed:
            yield (
                f"{self.skipped} of {self.passed} SAMPLES WERE BAD and skipped: the others may not represent "
                "the data that the model gets in use. See the warnings above for what is wrong with the "
                "samples."
            )
        if self.given and self._blank and not self.synthetic:
            yield BLANK

    @property
    def held(self) -> int:
        """The number of samples held out so far."""
        return sum(sample.count for sample in self._held.values())

    @property
    def fit_samples(self) -> list[Sample]:
        """Calibration samples, evenly spread over all of them, to fit corrections on."""
        return self._kept.samples

    @property
    def eval_samples(self) -> list[Sample]:
        """The held-out samples; if there were too few samples to hold any out, the first ones."""
        return [self._held[number] for number in sorted(self._held)] or self._first


def _ask_for_data(error: CalibrationError, _: int) -> NoReturn:
    raise CalibrationError(
        f"{error}: synthetic inputs do not suit the model, give calibration data (--data)"
    ) from error


def _is_blank(sample: Sample) -> bool:
    """Whether each input holds only one value; inputs of a single element do not tell."""
    arrays = [array for array in sample.feeds.values() if array.size > 1]
    return bool(arrays) and all((array == array.flat[0]).all() for array in arrays)


def _bytes(sample: Sample) -> int:
    return sum(array.nbytes for array in sample.feeds.values())


def open_samples(
    model: ir.Model, data: Data | None, config: QuantConfig, default_count: int = SYNTHETIC_SAMPLES
) -> Samples:
    """Open the samples of one quantization: those of ``data``, or else synthetic ones.

    If ranges come from a table, there are no samples.

    Args:
        model: the float model.
        data: the calibration data; None: synthetic samples.
        config: the options.
        default_count: the number of synthetic samples, if ``config`` does not give one.

    Raises:
        CalibrationError: the data cannot be read or does not fit the model.
    """
    inputs = input_specs(model)
    if config.from_table is not None:
        return Samples((), 0)
    if data is not None:
        bad = (BadSampleCounter(), BadSampleCounter()) if config.skip_bad_samples else (None, None)
        has_labels = config.labels is not None and not config.pseudo_labels
        given = Labelled(data, config.labels) if has_labels else data
        source = open_data(given, inputs, preprocess=config.preprocess, limit=config.samples, on_bad=bad[0])
        block = fixed_batch(inputs) or 1
        return Samples(source, source.total, block=block, unreadable=bad[0], refused=bad[1])
    count = config.samples or default_count
    return Samples(synthetic_samples(model, inputs, count, config.seed), count, synthetic=True)


def in_batches(samples: Iterable[Sample], model: ir.Model, config: QuantConfig) -> Iterator[Sample]:
    """Join samples to batches of the requested size, or of the size that the model fixes.

    Args:
        samples: the samples.
        model: the float model.
        config: the options, which hold the requested batch size. With a metric, which sees the outputs of
            each sample alone, it is 1, and larger batches are cut.
    """
    stream = iter(samples)
    first = next(stream, None)
    if first is not None:  # without samples, inputs that nobody can feed are no error
        inputs, every = input_specs(model), chain([first], stream)
        if config.metric is None:
            yield from batches(every, inputs, config.batch_size)
        else:
            yield from batches((one for batch in every for one in parts(batch, inputs)), inputs, 1)


def origin(data: Data | None) -> str:
    """Describe where samples come from, for the user."""
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    return "" if data is None else f"samples from Python ({type(data).__name__})"

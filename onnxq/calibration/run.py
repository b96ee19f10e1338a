"""One calibration run: samples -> statistics. An interrupted run keeps its counts, and can be resumed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NoReturn

import onnx_ir as ir

import calibrators.errors
from calibrators.collect import Collector
from calibrators.data.batching import cut
from calibrators.data.samples import Sample, batched, input_specs
from calibrators.fingerprint import checksum, fingerprint
from calibrators.statistics import Statistics
from onnxq.calibration.sample_split import Samples, in_batches
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError
from onnxq.core.progress import Progress

logger = logging.getLogger(__name__)


def gather(
    model: ir.Model,
    tensors: Sequence[str],
    samples: Samples,
    config: QuantConfig,
    progress: Progress,
    channels: Mapping[str, int] | None = None,
) -> Statistics:
    """The statistics of ``tensors`` over ``samples``, kept in ``config.save_statistics`` if that is given.

    Of those in ``channels``, the means along that axis are gathered too.

    An interrupt leaves what was counted in that file; with such a file, and the same model and data, the
    work goes on where it ended, to the very statistics that it would have given in one piece.

    Raises:
        CalibrationError: the samples cannot be used, or the file holds what was begun with others.
    """
    known = _unfinished(config.save_statistics, model, tensors)
    reading = _Reading(in_batches(samples, model, config), batched(input_specs(model)))
    with Collector(
        model,
        tensors,
        channels=channels,
        every_element=config.every_element,
        providers=config.providers,
        threads=config.threads,
        resume=known,
        on_bad=samples.on_refused,
    ) as collector:
        if known is not None:
            _pass_over(known, reading, samples, config, progress)
        try:
            for batch in reading:
                collector.observe(batch)
                progress("calibrating", reading.place.samples + samples.not_calibrated, samples.total)
            statistics = _finished(collector, reading, complete=True)
            if config.save_statistics is not None:
                statistics.save(config.save_statistics)
        except KeyboardInterrupt:
            _keep(collector, reading, config.save_statistics)
            raise
    return statistics


def statistics_warnings(statistics: Statistics, model: ir.Model) -> Iterator[str]:
    """Why ranges from these statistics should not be trusted for ``model``, if so."""
    if not statistics.complete:
        yield (
            f"INCOMPLETE STATISTICS: calibration was interrupted after {statistics.samples} samples. "
            "The command that made them goes on from there."
        )
    if statistics.fingerprint and statistics.fingerprint != fingerprint(model):
        yield (
            "STATISTICS OF ANOTHER MODEL: its nodes or weights differ from this one's, so the ranges may be "
            "wrong and the accuracy is UNKNOWN. Calibrate this model."
        )


@dataclass(frozen=True)
class _Checkpoint:
    """How far the data was read: the number of samples, and a checksum of what each input got."""

    samples: int = 0
    sums: Mapping[str, int] = field(default_factory=dict)

    def after(self, batch: Sample, batched_inputs: frozenset[str]) -> _Checkpoint:
        """The place when ``batch`` is read too; the same however the samples are batched."""
        names = batch.feeds.keys() & batched_inputs if batch.joinable else batch.feeds.keys()
        sums = {name: checksum(batch.feeds[name], self.sums.get(name, 0)) for name in names}
        return _Checkpoint(self.samples + batch.count, {**self.sums, **sums})

    @property
    def checksum(self) -> str:
        return " ".join(f"{name}:{value:08x}" for name, value in sorted(self.sums.items()))


class _Reading:
    """Iterates batches, and knows the place: that of the batch it gave last, and the one before."""

    def __init__(self, batches: Iterator[Sample], batched_inputs: frozenset[str]) -> None:
        self._batches = batches
        self._batched = batched_inputs
        self.before = self.place = _Checkpoint()

    def __iter__(self) -> _Reading:
        return self

    def __next__(self) -> Sample:
        batch = next(self._batches)
        self.before, self.place = self.place, self.place.after(batch, self._batched)
        return batch

    def give_back(self, batch: Sample, count: int) -> bool:
        """Only ``count`` samples of ``batch``, the last one, were read; False if it is in one piece."""
        if batch.joinable:
            rest = cut(batch, self._batched, count, batch.count)
            self.place = self.before.after(cut(batch, self._batched, 0, count), self._batched)
            self._batches = chain([rest], self._batches)
        return batch.joinable


def _unfinished(file: Path | None, model: ir.Model, tensors: Sequence[str]) -> Statistics | None:
    """What an interrupted run left in ``file``."""
    if file is None or not file.exists():
        return None
    try:
        known = Statistics.load(file)
    except calibrators.errors.CalibrationError as error:
        logger.warning("%s is going to be overwritten: %s", file, error)
        return None
    if known.complete:
        return None
    if known.fingerprint != fingerprint(model) or known.keys() != set(tensors):
        _refuse_to_go_on(file, known, "for another model or with other options")
    return known


def _refuse_to_go_on(file: Path | None, known: Statistics, how: str) -> NoReturn:
    raise CalibrationError(
        f"{file} holds {known.samples} samples of a calibration that was interrupted, {how}: "
        "repeat the command as it was to go on, or delete the file to begin anew"
    )


def _pass_over(
    known: Statistics, reading: _Reading, samples: Samples, config: QuantConfig, progress: Progress
) -> None:
    """Read what is in ``known`` already; samples are held out, and bad ones skipped, as they were then.

    Raises:
        CalibrationError: these are not the samples that ``known`` was made of.
    """
    file, goal = config.save_statistics, known.span[1]
    logger.warning("%s: going on after %d samples of an interrupted calibration", file, known.samples)
    if refused := goal - known.samples:
        if samples.refused is None:
            _refuse_to_go_on(file, known, "where bad samples were skipped (--skip-bad-samples)")
        samples.refused.count += refused
    while reading.place.samples < goal:
        batch = next(reading, None)
        extra = reading.place.samples - goal
        if batch is None or (extra > 0 and not reading.give_back(batch, batch.count - extra)):
            _refuse_to_go_on(file, known, "on other data")
        progress("passing over samples that are counted already", reading.place.samples, goal)
    if known.checksum and known.checksum != reading.place.checksum:
        _refuse_to_go_on(file, known, "on other data, or on the same in another order")
    progress("calibrating", goal + samples.not_calibrated, samples.total)


def _finished(collector: Collector, reading: _Reading, *, complete: bool) -> Statistics:
    statistics = collector.finish()
    place = next(p for p in (reading.place, reading.before) if p.samples == statistics.span[1])
    statistics.complete, statistics.checksum = complete, place.checksum
    return statistics


def _keep(collector: Collector, reading: _Reading, file: Path | None) -> None:
    """Save what was counted before an interrupt; of the first batch nobody knows whether it was."""
    if file is None or not reading.before.samples:
        return
    statistics = _finished(collector, reading, complete=False)
    statistics.save(file)
    logger.warning(
        "interrupted: %d samples are kept in %s, and the same command goes on from there",
        *(statistics.samples, file),
    )

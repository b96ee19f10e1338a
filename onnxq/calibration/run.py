"""Run a calibration: samples -> statistics. An interrupted run keeps its counts and can be resumed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NoReturn

import onnx_ir as ir

import calibrators.errors
from calibrators.collect import Collector
from calibrators.data.batching import cut
from calibrators.data.samples import Sample, batched, input_specs
from calibrators.fingerprint import fingerprint, sample_checksum, sum_text
from calibrators.statistics import Statistics
from calibrators.statistics.archive import read_header
from onnxq.calibration.sample_split import BLANK, Samples, in_batches
from onnxq.calibration.tables.table_files import is_statistics
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError
from onnxq.core.progress import Progress

logger = logging.getLogger(__name__)


def gather(
    model: ir.Model,
    tensors: Mapping[str, int | None],
    samples: Samples,
    config: QuantConfig,
    progress: Progress,
) -> Statistics:
    """Gather the statistics of tensors over samples, and save them in ``config.save_statistics`` if given.

    After an interrupt, that file holds the counts so far. With such a file and the same model and data, the
    run continues where it ended. It then gives the same statistics as an uninterrupted run.

    Args:
        model: the float model.
        tensors: name of each tensor to observe -> the axis along which the mean of each channel is gathered
            too; None: no means.
        samples: the samples to calibrate on.
        config: the options.
        progress: called with the number of samples done so far.

    Raises:
        CalibrationError: the samples cannot be used, or the file was begun with other samples.
    """
    known = _unfinished(config.save_statistics, model, tensors, samples)
    reading = _Reading(in_batches(samples, model, config), batched(input_specs(model)))
    with open_collector(model, tensors, samples, config, known) as collector:
        if known is not None:
            _pass_over(known, reading, samples, config, progress)
        try:
            for batch in reading:
                collector.observe(batch)
                progress("calibrating", reading.place.samples + samples.not_calibrated, samples.total)
            statistics = _finished(collector, reading, samples, complete=True)
            if config.save_statistics is not None:
                statistics.save(config.save_statistics)
        except KeyboardInterrupt:
            _keep(collector, reading, samples, config.save_statistics)
            raise
    return statistics


def open_collector(
    model: ir.Model,
    tensors: Mapping[str, int | None],
    samples: Samples,
    config: QuantConfig,
    known: Statistics | None = None,
) -> Collector:
    """Open a collector with the user's options.

    Args:
        model: the float model.
        tensors: name of each tensor to observe -> the axis of its channel means; None: no means.
        samples: decides what happens to samples that the model refuses.
        config: the options.
        known: statistics to add to.
    """
    return Collector(
        model,
        tuple(tensors),
        channels={name: axis for name, axis in tensors.items() if axis is not None},
        every_element=config.every_element,
        providers=config.providers,
        threads=config.threads,
        resume=known,
        on_bad=samples.on_refused,
    )


def statistics_warnings(statistics: Statistics, model: ir.Model) -> Iterator[str]:
    """Yield the warnings about ranges that come from these statistics for ``model``."""
    if not statistics.complete:
        yield (
            f"INCOMPLETE STATISTICS: calibration was interrupted after {statistics.samples} samples. "
            "Run the same command again to continue it."
        )
    if statistics.fingerprint and statistics.fingerprint != fingerprint(model):
        yield (
            "STATISTICS OF ANOTHER MODEL: its nodes or weights differ from this one's, so the ranges may be "
            "wrong and the accuracy is UNKNOWN. Calibrate this model."
        )
    names = {value.name or "" for value in model.graph.inputs}
    inputs = [tensor for name, tensor in statistics.items() if name in names]
    if inputs and all(tensor.count > tensor.samples and tensor.low == tensor.high for tensor in inputs):
        yield BLANK


def carries_inputs(config: QuantConfig) -> bool:
    """Whether the ranges come from statistics with which a sample of the inputs travels."""
    file = config.from_table
    return file is not None and is_statistics(file) and "inputs" in read_header(file)


@dataclass(frozen=True)
class Checkpoint:
    """How far the data was read.

    Attributes:
        samples: the number of samples.
        end: one more than the number of the last sample.
        total: the sum of the checksums of the samples.
    """

    samples: int = 0
    end: int = 0
    total: int = 0

    def after(self, batch: Sample, batched_inputs: frozenset[str]) -> Checkpoint:
        """The checkpoint after ``batch`` is read too. It does not depend on the batch size."""
        numbers = batch.numbers or range(self.end, self.end + batch.count)
        singles = (cut(batch, batched_inputs, i, i + 1) for i in range(batch.count))
        each = singles if batch.joinable else [batch]
        names = batch.feeds.keys() & batched_inputs if batch.joinable else batch.feeds.keys()
        sums = (
            sample_checksum({name: one.feeds[name] for name in names}, number)
            for one, number in zip(each, numbers, strict=False)
        )
        return Checkpoint(
            self.samples + batch.count, max(self.end, *numbers, numbers[-1] + 1), self.total + sum(sums)
        )

    @property
    def checksum(self) -> str:
        """The sum in digits."""
        return sum_text(self.total)


class _Reading:
    """An iterator over batches that knows the checkpoints before and after the last batch."""

    def __init__(self, batches: Iterator[Sample], batched_inputs: frozenset[str]) -> None:
        self._batches = batches
        self._batched = batched_inputs
        self.before = self.place = Checkpoint()

    def __iter__(self) -> _Reading:
        return self

    def __next__(self) -> Sample:
        batch = next(self._batches)
        self.before, self.place = self.place, self.place.after(batch, self._batched)
        return batch

    def give_back(self, batch: Sample, count: int) -> bool:
        """Return all but ``count`` samples of the last batch to the stream; False if it cannot be cut."""
        if batch.joinable:
            rest = cut(batch, self._batched, count, batch.count)
            self.place = self.before.after(cut(batch, self._batched, 0, count), self._batched)
            self._batches = chain([rest], self._batches)
        return batch.joinable


def _unfinished(
    file: Path | None, model: ir.Model, tensors: Collection[str], samples: Samples
) -> Statistics | None:
    """Load the statistics of an interrupted run from ``file``; None if there are none."""
    if file is None or not file.exists():
        return None
    try:
        known = Statistics.load(file)
    except calibrators.errors.CalibrationError as error:
        logger.warning("%s will be overwritten: %s", file, error)
        return None
    if known.complete:
        return None
    same = known.part == samples.part and (known.inputs is not None) == samples.travel
    if known.fingerprint != fingerprint(model) or known.keys() != set(tensors) or not same:
        _refuse_to_go_on(file, known, "for another model or with other options")
    return known


def _refuse_to_go_on(file: Path | None, known: Statistics, how: str) -> NoReturn:
    raise CalibrationError(
        f"{file} holds {known.samples} samples of a calibration that was interrupted, {how}: "
        "repeat the same command to continue it, or delete the file to start again"
    )


def _pass_over(
    known: Statistics, reading: _Reading, samples: Samples, config: QuantConfig, progress: Progress
) -> None:
    """Skip the samples that ``known`` has counted; samples are held out, and bad ones skipped, as before.

    Raises:
        CalibrationError: these are not the samples of ``known``.
    """
    file, goal = config.save_statistics, known.span[1]
    logger.warning("%s: continuing an interrupted calibration after %d samples", file, known.samples)
    while reading.place.end < goal:
        batch = next(reading, None)
        extra = reading.place.end - goal
        if batch is None or (extra > 0 and not reading.give_back(batch, batch.count - extra)):
            _refuse_to_go_on(file, known, "on other data")
        progress("skipping samples that are already counted", reading.place.end, goal)
    if refused := reading.place.samples - known.samples:
        if samples.refused is None:
            _refuse_to_go_on(file, known, "where bad samples were skipped (--skip-bad-samples)")
        samples.refused.count += refused
    if known.checksum and known.checksum != reading.place.checksum:
        _refuse_to_go_on(file, known, "on other data or in another order")
    progress("calibrating", goal + samples.not_calibrated, samples.total)


def _finished(collector: Collector, reading: _Reading, samples: Samples, *, complete: bool) -> Statistics:
    statistics = collector.finish(may_be_empty=samples.may_be_empty)
    statistics.part = samples.part
    if samples.travel:
        statistics.inputs = samples.kept
    place = next(p for p in (reading.place, reading.before) if p.end == statistics.span[1])
    statistics.complete, statistics.checksum = complete, place.checksum
    return statistics


def _keep(collector: Collector, reading: _Reading, samples: Samples, file: Path | None) -> None:
    """Save the counts after an interrupt, unless it came during the first batch, which may not be counted."""
    if file is None or not reading.before.samples:
        return
    statistics = _finished(collector, reading, samples, complete=False)
    statistics.save(file)
    logger.warning(
        "interrupted: %d samples are kept in %s; run the same command again to continue",
        *(statistics.samples, file),
    )

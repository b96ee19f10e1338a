"""A calibration on several workers: the same bytes as on one, whatever their number and their failures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

import calibrators.errors
from calibrators.collect import tell_nonfinite
from calibrators.data.samples import DataSource
from calibrators.fingerprint import fingerprint
from calibrators.statistics import Statistics
from onnxq.calibration.sample_split import Samples, open_samples
from onnxq.calibration.shards import WHOLE, Scope, Shard, part_of, usable_total
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.core.progress import Progress, silent
from onnxq.distributed.counting import Job, merge_units, pack, packed_model, units, unpack
from onnxq.distributed.scheduler import Backend, Piece, Schedule, WorkerLostError
from onnxq.distributed.worker_pool import Workers, opened
from onnxq.pipelines.calibrate import check_calibratable
from onnxq.pipelines.preflight import as_onnxq_errors
from onnxq.pipelines.prepare import ModelPath, prepare_for_all

logger = logging.getLogger(__name__)


def calibrate_on(
    model: ModelPath,
    config: QuantConfig,
    workers: Workers,
    progress: Progress = silent,
    scope: Scope = WHOLE,
) -> Statistics:
    """Collect statistics as `onnxq.calibrate` does, on several workers.

    An interrupt keeps the statistics so far in ``config.save_statistics``; the same call resumes from there,
    also with another number of workers.

    Args:
        model: path of the float model; only the caller reads it.
        config: the options; ``config.data`` is a path that every worker can read.
        workers: where to run.
        progress: called with the number of samples done.
        scope: a part of the samples (shard), and what travels with the statistics.

    Raises:
        OnnxqError: the model or the data cannot be used; the message says why.
    """
    check_calibratable(model, config.data, config)
    with as_onnxq_errors(model):
        progress("reading the model")
        simple, tensors = prepare_for_all(model, config, means=scope.moments)
        samples = open_samples(simple, config.data, config)
        if not isinstance(samples.source, DataSource) or samples.source.read_part is None:
            raise ConfigError("several workers read the data themselves: give its path (--data)")
        if samples.block > 1 and config.skip_bad_samples:
            raise ConfigError(
                f"the model takes batches of {samples.block} samples: several workers cannot skip bad samples"
            )
        job = Job(
            packed_model(simple),
            tensors,
            _readable_by_all(config),
            str(config.data),
            scope.moments,
            samples.total,
        )
        kept = _Kept(simple, samples, scope, config)
        with opened(job, workers, config.threads) as backend:
            statistics = _run(backend, kept.numbers, kept, progress)
        if scope.shard is not None:
            statistics.part = part_of(samples, scope, config)
        elif not statistics.samples:
            raise CalibrationError(f"{config.data}: no sample can be used")
        tell_nonfinite(statistics)
        if config.save_statistics is not None:
            statistics.save(config.save_statistics)
    return statistics


def _readable_by_all(config: QuantConfig) -> QuantConfig:
    """Workers have other working folders."""
    return config.model_copy(update={"data": Path.cwd() / str(config.data), "save_statistics": None})


def _run(backend: Backend, numbers: range, kept: _Kept, progress: Progress) -> Statistics:
    every = list(units(numbers, kept.block))
    done = kept.pieces()
    covered = {(unit.start, unit.stop) for piece in done for unit in piece.units}
    schedule = Schedule(backend, [u for u in every if (u.start, u.stop) not in covered], done)
    try:
        return unpack(backend.fetch(schedule.run(progress).packed))
    except KeyboardInterrupt:
        kept.keep(backend, schedule.rescued())
        raise
    finally:
        totals = schedule.totals
        if totals.skipped:
            logger.warning(
                "%d of %d samples were bad and skipped", totals.skipped, totals.given + totals.skipped
            )


class _Kept:
    """The statistics of an interrupted run, in the file that the whole will have.

    Attributes:
        numbers: the numbers of the samples to count.
        block: how many successive samples stay together.
    """

    def __init__(self, model: ir.Model, samples: Samples, scope: Scope, config: QuantConfig) -> None:
        self._file = config.save_statistics
        self._part = part_of(samples, scope, config)
        shard, self.block = scope.shard or Shard(1, 1), samples.block
        self.numbers = shard.numbers(usable_total(samples), samples.block)
        self._fingerprint = fingerprint(model)

    def pieces(self) -> list[Piece]:
        """Return what an interrupted run left; nothing if it left nothing.

        Raises:
            CalibrationError: the file was begun with another model, other options or other data.
        """
        if self._file is None or not self._file.exists():
            return []
        try:
            known = Statistics.load(self._file)
        except calibrators.errors.CalibrationError as error:
            logger.warning("%s will be overwritten: %s", self._file, error)
            return []
        if known.complete:
            return []
        part: dict[str, Any] = dict(known.part)
        counted = part.pop("units", None)
        if counted is None or part != self._part or known.fingerprint != self._fingerprint:
            raise CalibrationError(
                f"{self._file} holds {known.samples} samples of a calibration that was interrupted, of "
                "another model, with other options, or without workers: repeat the same command to continue "
                "it, or delete the file to start again"
            )
        logger.warning(
            "%s: continuing an interrupted calibration after %d samples", self._file, known.samples
        )
        known.part, known.complete = {}, True
        return [Piece(tuple(range(*unit) for unit in counted), pack(known))]

    def keep(self, backend: Backend, pieces: Sequence[Piece]) -> None:
        """Save the pieces after an interrupt; those that are lost meanwhile are left out."""
        if self._file is None:
            return
        found: list[Statistics] = []
        counted: list[list[int]] = []
        for piece in pieces:
            try:
                found.append(unpack(backend.fetch(piece.packed)))
            except WorkerLostError:
                continue
            counted += [[unit.start, unit.stop] for unit in piece.units]
        if not found:
            return
        statistics = merge_units(found)
        statistics.complete, statistics.part = False, {**self._part, "units": sorted(counted)}
        statistics.save(self._file)
        logger.warning(
            "interrupted: %d samples are kept in %s; run the same command again to continue",
            *(statistics.samples, self._file),
        )

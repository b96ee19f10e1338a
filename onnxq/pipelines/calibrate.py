"""``onnxq.calibrate`` collects statistics of a model; ``onnxq.Calibration``, in the user's own loop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import calibrators.errors
from calibrators.collect import Collector, tell_nonfinite
from calibrators.data.batching import batches, parts
from calibrators.data.iterables import from_item
from calibrators.data.samples import Sample, input_specs
from calibrators.statistics import Statistics
from onnxq.algorithms.autotune.apply import check_measurable
from onnxq.algorithms.mixed_precision.search import chosen_goal
from onnxq.calibration.merging import merge_parts
from onnxq.calibration.qparams import calibrator, from_statistics
from onnxq.calibration.run import gather, open_collector
from onnxq.calibration.sample_split import BadSampleCounter, Data, Samples, open_samples
from onnxq.calibration.shards import WHOLE, Scope, scoped_samples
from onnxq.calibration.tables.sources import check_plan
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.core.goal import Goal
from onnxq.core.progress import Progress, silent
from onnxq.core.unused import CALIBRATE, OWN_LOOP, Wanted, refuse, tell_unused
from onnxq.pipelines.given_model import is_module, is_path, write_given
from onnxq.pipelines.preflight import as_onnxq_errors, check_files, check_places, check_written
from onnxq.pipelines.prepare import ModelPath, prepare, prepare_for_all
from onnxq.pipelines.result import QuantResult
from onnxq.pipelines.static import Calibrated, observed, quantize_calibrated
from onnxq.verify.metrics.choice import find_metric, settled

logger = logging.getLogger(__name__)


def calibrate(
    model: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
    scope: Scope = WHOLE,
) -> Statistics:
    """Collect statistics, from which `quantize_static` gets the ranges of every method and target.

    Pass their file as ``from_table``. No samples are held out, unless ``scope.moments``. With
    ``config.save_statistics`` the statistics are written to that file, and after an interrupt the same call
    resumes from there. If ``config.target`` is set, they cover that target only.

    Args:
        model: path of a float ONNX model.
        data: as ``config.data``, or any iterable of ``{input name: array}`` batches.
        config: the options; defaults if None.
        progress: called with the progress of the work.
        scope: a part of the samples (shard), and what travels with the statistics.

    Raises:
        OnnxqError: the model or the data cannot be used; the message says why.
    """
    config = config or QuantConfig()
    data = config.data if data is None else data
    check_calibratable(model, data, config)
    with as_onnxq_errors(model):
        progress("reading the model")
        simple, tensors = prepare_for_all(model, config, means=scope.moments)
        samples = scoped_samples(open_samples(simple, data, config), scope, config)
        statistics = gather(simple, tensors, samples, config, progress)
    for doubt in samples.warnings:
        logger.warning("%s", doubt)
    if not statistics.samples:
        logger.warning("this part holds no samples")
    return statistics


def check_calibratable(model: ModelPath, data: object, config: QuantConfig) -> None:
    """Check before the work that the options suit a calibration.

    Raises:
        ConfigError: they do not.
        ModelError: the file to write cannot be written.
    """
    if config.mode != "static":
        raise ConfigError(f"mode {config.mode} finds ranges at run time: there is nothing to calibrate")
    if data is None or config.from_table is not None:
        raise ConfigError("calibration needs real samples: give them as data (--data), and no table")
    refuse(config, CALIBRATE, "statistics are all that calibrate gives, so it takes no {}: leave them out")
    if config.save_statistics is not None:
        check_written([config.save_statistics], model, data, config)


def merge(
    parts: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    allow_missing: bool = False,
    progress: Progress = silent,
) -> Statistics:
    """Merge the files of ``onnxq.calibrate(..., shard="I/N")`` and write ``output``, whole or not at all.

    The file has the same bytes as that of a calibration in one run.

    Args:
        parts: the files of all parts, in any order.
        output: the file to write (.npz).
        allow_missing: whether parts may be missing or incomplete; a warning then says what is lost.
        progress: told how many parts are done.

    Returns:
        The statistics of all parts.

    Raises:
        CalibrationError: a part is missing, doubled, incomplete or damaged, or belongs to another
            calibration; the message names it.
        ModelError: ``output`` would overwrite a part, or cannot be written.
    """
    files = [Path(part) for part in parts]
    check_places(files, [output])
    with as_onnxq_errors():
        statistics = merge_parts(files, allow_missing=allow_missing, progress=progress)
        tell_nonfinite(statistics)
        statistics.save(output)
    return statistics


class Calibration:
    """Calibrates a float model with batches from the user's own loop.

    ::

        calibration = onnxq.Calibration("model.onnx", QuantConfig(target="tensorrt"))
        for batch in loader:
            calibration.observe(batch)
        calibration.convert("model-int8.onnx")

    Every batch is run once and then discarded, except for a limited number of samples that corrections are
    fitted on. Every fifth sample is held out of calibration, to evaluate on. The statistics, and so the
    result, are those of `quantize_static` on the same samples.

    More batches may be observed after `convert`, and the model converted again.
    """

    def __init__(self, model: ModelPath | Any, config: QuantConfig | None = None) -> None:
        """Read ``model`` and make its quantization plan.

        Args:
            model: path of a float ONNX model, which is read again by `convert`; an `onnx.ModelProto` or an
                `onnx_ir.Model`.
            config: the options; defaults if None.

        Raises:
            OnnxqError: the model cannot be quantized with these options.
        """
        self.config = config or QuantConfig()
        self._folder = None if is_path(model) else _folder_for(model)
        self._path = os.fspath(model) if self._folder is None else str(write_given(model, self._folder.name))
        _refuse_sources(self.config)
        check_measurable(self.config)
        with as_onnxq_errors(self._path):
            self._simple, self._plan = prepare(self._path, self.config)
            self._inputs = input_specs(self._simple)
        check_plan(self._plan, self.config.tables)
        self._bad = (BadSampleCounter(), BadSampleCounter()) if self.config.skip_bad_samples else (None, None)
        self._samples = Samples((), None, unreadable=self._bad[0], refused=self._bad[1])
        self._collector: Collector | None = None
        self._known: Statistics | None = None
        self._batches = 0

    def __enter__(self) -> Calibration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Count the batches under way, so that `convert` may follow; after an error, discard them."""
        if kind is None and self._collector is not None:
            self.statistics()
        self.close()

    def close(self) -> None:
        """Release the threads, and discard batches that are not counted yet."""
        if self._collector is not None:
            self._collector.close()
            self._collector = None

    @property
    def samples(self) -> int:
        """The number of samples that were observed."""
        return self._samples.given

    def observe(self, batch: Any) -> None:
        """Observe one batch; do nothing after ``config.samples`` samples.

        Args:
            batch: ``{input name: array or tensor}``; for a model with one input also the array alone, or a
                pair of the array and a label, as data loaders yield.

        Raises:
            CalibrationError: the batch does not fit the inputs, or the model refuses it or a recent batch.
        """
        name = f"batch {self._batches}"
        self._batches += 1
        with as_onnxq_errors():
            try:
                sample = from_item(batch, self._inputs, name)
            except calibrators.errors.CalibrationError as error:
                if self._bad[0] is None:
                    raise
                self._bad[0](error)
                return
            self._take(sample)

    def _take(self, batch: Sample) -> None:
        """Hold out every fifth sample, and observe the others in batches of the given size."""
        left = None if self.config.samples is None else self.config.samples - self.samples
        singles = parts(batch, self._inputs)[:left]
        rest = [sample for sample in singles if self._samples.take(sample)]
        for joined in batches(rest, self._inputs, max(batch.count, 1)):
            self._open().observe(joined)

    def _open(self) -> Collector:
        if self._collector is None:
            self._collector = open_collector(
                self._simple, observed(self._simple, self._plan), self._samples, self.config, self._known
            )
        return self._collector

    def statistics(self) -> Statistics:
        """Return the statistics of all batches so far.

        Raises:
            CalibrationError: no batch was observed.
        """
        with as_onnxq_errors():
            if self._collector is not None:
                self._known, self._collector = self._collector.finish(), None
        if self._known is None:
            raise CalibrationError(
                f"{self._path}: no batch was observed yet, so there is nothing to convert with"
            )
        return self._known

    def convert(
        self,
        output: str | os.PathLike[str],
        progress: Progress = silent,
        goal: Goal | None = None,
    ) -> QuantResult:
        """Write the quantized model, as `quantize_static` does.

        Args:
            output: path of the model to write.
            progress: called with the progress of the work.
            goal: the accuracy that the model must reach, as ``config.goal``.

        Raises:
            OnnxqError: the model cannot be quantized; ``output`` is then left unchanged.
        """
        started = time.perf_counter()
        check_files(self._path, output, None, self.config)
        goal, config = settled(chosen_goal(goal, (), self.config), self.config)
        find_metric(config.metric, self._simple)
        tell_unused(Wanted(config, has_data=True, has_goal=goal is not None))
        statistics = self.statistics()
        if self.config.save_statistics is not None:
            statistics.save(self.config.save_statistics)
        calibrated = Calibrated(
            path=self._path,
            reference=self._simple,
            plan=self._plan,
            samples=self._samples,
            source=from_statistics(statistics, calibrator(self.config)),
            statistics=statistics,
            warnings=(),
            origin=f"{self._batches} batches from Python",
            started=started,
        )
        result = quantize_calibrated(calibrated, output, config, progress, goal)
        if self._folder is not None:
            _ = result.table  # it reads the file of the model, which goes with this object
        return result


def _folder_for(model: Any) -> TemporaryDirectory[str]:
    """Make a folder for a model in memory; it is removed with the object.

    Raises:
        ConfigError: the model is a PyTorch module.
    """
    if is_module(model):
        raise ConfigError(f"{type(model).__name__} is a PyTorch module: calibrate it with onnxq.torch.PTQ")
    return TemporaryDirectory(prefix="onnxq-", ignore_cleanup_errors=True)


def _refuse_sources(config: QuantConfig) -> None:
    """Refuse options that name another source of samples or ranges: samples come through `observe` only.

    Raises:
        ConfigError: the options name another source of ranges.
    """
    refuse(
        config,
        OWN_LOOP,
        "a calibration in one's own loop is static and takes batches as they are, so no {}: leave them out",
    )
    if config.data is not None or config.from_table is not None:
        raise ConfigError(
            "with a Calibration, samples are given to observe(): leave out data and from_table, or call "
            "quantize_static"
        )

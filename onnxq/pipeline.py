"""The whole flow, top to bottom: a float model in, a checked int8 model out."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from calibrators.methods import CALIBRATORS, Calibrator
from calibrators.percentile import percentile
from calibrators.statistics import Statistics
from onnxq.calibration import distrust, gather
from onnxq.config import QuantConfig
from onnxq.errors import ConfigError
from onnxq.evaluate import Quality
from onnxq.guards import check_files, our_errors
from onnxq.insert import insert_qdq
from onnxq.model import size_on_disk, write
from onnxq.plan import QuantPlan
from onnxq.prepare import prepare
from onnxq.progress import Progress, silent
from onnxq.ranges import from_statistics, solve
from onnxq.samples import Data, Samples, in_batches, open_samples
from onnxq.trial import Trial, doubts, float_weights


@dataclass(frozen=True)
class QuantResult:
    """What came out.

    Attributes:
        plan: every quantized edge with its parameters, every float node with its reason.
        statistics: what calibration saw; any method's ranges follow from it.
        quality: against the float model; None if there was no sample to judge by.
        judged_on: what kind of samples ``quality`` was measured on.
        skipped: bad samples that were left out.
        warnings: why the result should not be trusted, if so.
        float_bytes, int8_bytes: file sizes, external weights included.
        seconds: how long it took.
    """

    plan: QuantPlan
    statistics: Statistics
    quality: Quality | None
    judged_on: str
    skipped: int
    warnings: tuple[str, ...]
    float_bytes: int
    int8_bytes: int
    seconds: float


def quantize_static(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
) -> QuantResult:
    """Quantize ``model`` with ranges from ``data`` and write it to ``output``, whole or not at all.

    Args:
        model: path of a float ONNX model.
        output: path of the int8 model to write.
        data: as ``config.data``, or any iterable of ``{input name: array}`` batches.
        config: the options; defaults if None.
        progress: told how far the work is.

    Raises:
        OnnxqError: with one clear message; ``output`` is then as it was before.
    """
    started = time.perf_counter()
    config = config or QuantConfig()
    data = config.data if data is None else data
    if data is not None and config.from_table is not None:
        raise ConfigError("calibration data and a table (data, from_table) both give the ranges: use one")
    check_files(model, output, data, config)
    with our_errors():
        progress("reading the model")
        simple, plan = prepare(model, config)
        samples = open_samples(simple, data, config)
        statistics, warnings = _statistics(simple, plan, samples, config, progress)
        progress("choosing ranges")
        plan = solve(simple, plan, from_statistics(statistics, _calibrator(config)))
        progress("writing and checking the model")
        judge = list(in_batches(samples.to_judge, simple, config))
        trial = Trial(model, plan, judge, config.providers, config.threads, samples.refused)
        write(insert_qdq(simple, plan), output, validate=trial.run)
    return QuantResult(
        plan=plan,
        statistics=statistics,
        quality=trial.quality,
        judged_on=samples.judged_on,
        skipped=samples.skipped,
        warnings=(*warnings, *doubts(samples, trial, float_weights(simple, plan))),
        float_bytes=size_on_disk(model),
        int8_bytes=size_on_disk(output),
        seconds=time.perf_counter() - started,
    )


def _statistics(
    model: ir.Model, plan: QuantPlan, samples: Samples, config: QuantConfig, progress: Progress
) -> tuple[Statistics, tuple[str, ...]]:
    """What the ranges follow from, and why that should not be trusted, if so."""
    if config.from_table is None:
        return gather(model, plan.observed, samples, config, progress), ()
    statistics = Statistics.load(config.from_table)
    return statistics, tuple(distrust(statistics, model))


def _calibrator(config: QuantConfig) -> Calibrator:
    if config.method == "percentile":
        return partial(percentile, percentile=config.percentile)
    return CALIBRATORS[config.method]

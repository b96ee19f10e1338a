"""The whole flow, top to bottom: a float model in, a checked int8 model out."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from calibrators.collect import collect
from calibrators.methods import CALIBRATORS, Calibrator
from calibrators.percentile import percentile
from calibrators.statistics import Statistics
from onnxq.config import QuantConfig
from onnxq.errors import ConfigError, ModelError
from onnxq.evaluate import Quality
from onnxq.guards import blamed, check_files, check_is_float, check_patterns, our_errors
from onnxq.insert import insert_qdq
from onnxq.model import load, size_on_disk, write
from onnxq.passes import simplify
from onnxq.plan import QuantPlan
from onnxq.planner import make_plan
from onnxq.progress import Progress, silent
from onnxq.ranges import check_weights, from_statistics, solve
from onnxq.samples import Data, Samples, in_batches, open_samples
from onnxq.targets import get_target
from onnxq.trial import Trial, doubts, float_weights


@dataclass(frozen=True)
class QuantResult:
    """What came out.

    Attributes:
        plan: every quantized edge with its parameters, every float node with its reason.
        statistics: what calibration saw; any method's ranges follow from it.
        quality: against the float model; None if there was no sample to judge by.
        judged_on: what kind of samples ``quality`` was measured on.
        warnings: why the result should not be trusted, if so.
        float_bytes, int8_bytes: file sizes, external weights included.
        seconds: how long it took.
    """

    plan: QuantPlan
    statistics: Statistics
    quality: Quality | None
    judged_on: str
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
        statistics = _statistics(simple, plan, samples, config, progress)
        progress("choosing ranges")
        plan = solve(simple, plan, from_statistics(statistics, _calibrator(config)))
        progress("writing and checking the model")
        judge = list(in_batches(samples.to_judge, simple, config))
        trial = Trial(model, plan, judge, config.providers, config.threads)
        write(insert_qdq(simple, plan), output, validate=trial.run)
    return QuantResult(
        plan=plan,
        statistics=statistics,
        quality=trial.quality,
        judged_on=samples.judged_on,
        warnings=tuple(doubts(samples, trial, float_weights(simple, plan))),
        float_bytes=size_on_disk(model),
        int8_bytes=size_on_disk(output),
        seconds=time.perf_counter() - started,
    )


def prepare(model: str | os.PathLike[str], config: QuantConfig) -> tuple[ir.Model, QuantPlan]:
    """The cleaned model and the plan for it, still without parameters.

    Raises:
        ModelError: the model cannot be read, is quantized already, or has nothing to quantize.
        TargetError: the target is unknown or does not take the asked types.
    """
    target = get_target(config.target)
    original = load(model)
    check_is_float(original, model)
    with blamed(model):
        simple = simplify(original)
        check_patterns(simple, config)
        plan = make_plan(simple, target, config)
    if not plan.points:
        reasons = "; ".join(list(dict.fromkeys(node.reason for node in plan.floats.values()))[:3])
        raise ModelError(
            f"{model}: nothing to quantize for target {target.name}: "
            f"{reasons or 'no node computes real numbers'}."
        )
    check_weights(simple, plan)
    return simple, plan


def _statistics(
    model: ir.Model, plan: QuantPlan, samples: Samples, config: QuantConfig, progress: Progress
) -> Statistics:
    if config.from_table is not None:
        return Statistics.load(config.from_table)
    statistics = collect(
        model,
        plan.observed,
        in_batches(samples, model, config),
        providers=config.providers,
        threads=config.threads,
        on_batch=lambda done: progress("calibrating", done + samples.held, samples.total),
    )
    if config.save_statistics is not None:
        statistics.save(config.save_statistics)
    return statistics


def _calibrator(config: QuantConfig) -> Calibrator:
    if config.method == "percentile":
        return partial(percentile, percentile=config.percentile)
    return CALIBRATORS[config.method]

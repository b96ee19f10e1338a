"""Rank the quantization points of a model by the error that each alone causes: `onnxq sensitivity`."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace

from onnxq.algorithms.context import channel_means, make_context
from onnxq.algorithms.corrections import check_correctable, corrected
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.empty_tensors import float_where_empty
from onnxq.algorithms.sensitivity.analysis import Sensitivity, sensitivities
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics
from onnxq.calibration.run import gather
from onnxq.calibration.sample_split import open_samples
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.parallel import Executor
from onnxq.core.progress import Progress, silent
from onnxq.pipelines.preflight import as_onnxq_errors, check_written
from onnxq.pipelines.prepare import prepare
from onnxq.pipelines.static import observed
from onnxq.verify.metrics.choice import find_metric

logger = logging.getLogger(__name__)

METRIC_SAMPLES = 64
"""Samples to rank by a metric on: it changes less often than the outputs do."""


def rank(
    model: str | os.PathLike[str],
    config: QuantConfig,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> list[Sensitivity]:
    """Rank the quantization points of ``model`` by the error that each alone causes, worst first.

    With a metric, they are ranked by what it loses; those that lose the same, by their error.

    Ranges and corrections are those that `quantize_static` would use.

    Args:
        model: path of a float ONNX model.
        config: the options.
        progress: called with the progress of the work.
        executor: workers to rank on; None: this process does.

    Raises:
        OnnxqError: the model or the data cannot be used.
    """
    started = time.perf_counter()
    if config.mode != "static":
        raise ConfigError(f"mode {config.mode} has no quantization points to rank: use mode static")
    if config.save_statistics is not None:
        check_written([config.save_statistics], model, config.data, config)
    check_correctable(config)
    with as_onnxq_errors(model):
        progress("reading the model")
        simple, plan = prepare(model, config)
        find_metric(config.metric, simple)
        samples = open_samples(simple, config.data, config)
        statistics = gather(simple, observed(simple, plan), samples, config, progress)
        if samples.synthetic:
            logger.warning("ranked on synthetic inputs, which say little: give real samples as data")
        plan, config, empty = float_where_empty(simple, plan, statistics, config)
        for warning in empty:
            logger.warning("%s", warning)
        plan = compute_qparams(simple, plan, from_statistics(statistics, calibrator(config)))
        context = make_context(model, simple, samples, config, progress)
        context = replace(context, executor=executor)
        draft = Draft(simple, simple, plan, channel_means(statistics))
        draft = corrected(draft, context, time.perf_counter() - started).draft
        if context.metric is None:
            return sensitivities(draft, context)
        return sensitivities(draft, context, samples=METRIC_SAMPLES)

"""Compare an int8 model with its float original: accuracy and speed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from calibrators.data.samples import Sample
from onnxq.calibration.sample_split import in_batches, open_samples
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ModelError
from onnxq.core.progress import Progress, silent
from onnxq.graph.files import load
from onnxq.pipelines.acceptance import comparison_warnings
from onnxq.pipelines.preflight import as_onnxq_errors
from onnxq.verify.accuracy import AccuracyEvaluator, Quality
from onnxq.verify.latency import Speed, race
from onnxq.verify.metrics.choice import find_metric

logger = logging.getLogger(__name__)


def compare_files(
    float_path: str | os.PathLike[str],
    int8_path: str | os.PathLike[str],
    config: QuantConfig,
    progress: Progress = silent,
) -> tuple[Quality, Speed]:
    """Measure how close and how fast the int8 model is.

    Args:
        float_path: path of the float model.
        int8_path: path of the quantized model.
        config: the options; without ``config.data`` the inputs are synthetic, and no metric is measured.
        progress: called with the progress of the work.

    Raises:
        OnnxqError: a model or the data cannot be used.
    """
    with as_onnxq_errors(float_path, int8_path):
        model = load(float_path)
        metric = find_metric(config.metric, model)
        check_alike(model, load(int8_path))
        samples = open_samples(model, config.data, config)
        if samples.synthetic:
            logger.warning("compared on synthetic inputs, which say little: give real samples as data")
        batches = _Batches(in_batches(samples.source, model, config))

        def on_sample(done: int) -> None:
            batches.keep_first()
            progress("comparing", done + samples.skipped, samples.total)

        evaluator = AccuracyEvaluator(
            float_path,
            batches,
            providers=config.providers,
            threads=config.threads,
            on_bad=samples.on_refused,
        )
        if metric is not None and not samples.synthetic:
            evaluator = evaluator.judged_by(metric, pseudo=config.pseudo_labels)
        quality = evaluator.evaluate(int8_path, on_sample)
        for text in comparison_warnings(quality):
            logger.warning(text)
        if batches.first is None:
            raise CalibrationError(f"{float_path}: the model refuses every sample")
        progress("timing")
        return quality, race(
            (float_path, int8_path), batches.first, providers=config.providers, threads=config.threads or 1
        )


@dataclass
class _Batches:
    """Passes batches on, and keeps the first one that both models take, for the timing."""

    source: Iterable[Sample]
    newest: Sample | None = None
    first: Sample | None = None

    def __iter__(self) -> Iterator[Sample]:
        for batch in self.source:
            self.newest = batch
            yield batch

    def keep_first(self) -> None:
        """Record that the models took the newest batch."""
        self.first = self.first or self.newest


def check_alike(float_model: ir.Model, int8_model: ir.Model) -> None:
    """Check that two models can be compared: inputs are matched by name, outputs by position.

    Raises:
        ModelError: they differ in number, name, type or size.
    """
    ours, theirs = ({v.name: v for v in _inputs(model)} for model in (float_model, int8_model))
    if ours.keys() != theirs.keys() or not all(_fits(ours[name], theirs[name]) for name in ours):
        raise _different("inputs", ours.values(), theirs.values())
    one, other = float_model.graph.outputs, int8_model.graph.outputs
    if len(one) != len(other) or not all(map(_fits, one, other)):
        raise _different("outputs", one, other)


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _fits(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values have the same type, and no known sizes that differ."""
    if one.dtype != other.dtype:
        return False
    if one.shape is None or other.shape is None:
        return True
    sizes = zip(one.shape, other.shape, strict=False)
    known = [(a, b) for a, b in sizes if isinstance(a, int) and isinstance(b, int)]
    return len(one.shape) == len(other.shape) and all(a == b for a, b in known)


def _different(kind: str, ours: Iterable[ir.Value], theirs: Iterable[ir.Value]) -> ModelError:
    first, second = (
        ", ".join(f"'{v.name}' ({v.dtype} {v.shape})" for v in values) or "none" for values in (ours, theirs)
    )
    return ModelError(f"the models have different {kind} and cannot be compared: {first}; {second}")

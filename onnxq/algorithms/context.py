"""The context of corrections: samples to fit on, held-out samples to evaluate on, and models to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import collect
from calibrators.data.bad_samples import OnBad
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.session import Model
from calibrators.statistics import TensorStatistics
from onnxq.algorithms.budget import Budget
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.matrices import channel_axes
from onnxq.algorithms.watching import Arrays, Watcher
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics
from onnxq.calibration.sample_split import Samples, evenly, in_batches
from onnxq.core.config import QuantConfig
from onnxq.core.goal import Goal
from onnxq.core.parallel import Executor
from onnxq.core.progress import Progress, silent
from onnxq.graph.files import load
from onnxq.graph.half_precision.widen import computes_in_half
from onnxq.graph.passes.leftovers.training_mode import training_nodes
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target
from onnxq.verify.accuracy import AccuracyEvaluator, Quality
from onnxq.verify.metrics.choice import find_metric
from onnxq.verify.metrics.task_metric import TaskMetric

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class CorrectionContext:
    """The samples, options and evaluator that corrections, autotuning and the search for a goal share.

    Built once for each quantization.

    Attributes:
        fit: batches to fit on.
        evaluator: compares models with the float model on held-out samples.
        samples: the calibration and held-out samples that the batches come from.
        config: the options.
        progress: called with the name of a step and the number of batches done.
        on_bad: called for each batch that a model rejects; the batch is then skipped. If None, a rejected
            batch is an error.
        budget: the time that corrections may take; unlimited unless they are being chosen.
        metric: the metric of the task; None: only closeness to the float model counts.
        executor: ranks quantization points on several workers; None: this process does.
    """

    fit: Sequence[Sample]
    evaluator: AccuracyEvaluator
    samples: Samples = field(default_factory=lambda: Samples((), 0))
    config: QuantConfig = field(default_factory=QuantConfig)
    progress: Progress = silent
    on_bad: OnBad | None = None
    budget: Budget = field(default_factory=Budget)
    metric: TaskMetric | None = None
    executor: Executor | None = None

    def spread(self, most: int) -> CorrectionContext:
        """Return a copy with at most ``most`` batches to fit on, evenly spread."""
        return replace(self, fit=evenly(self.fit, most))

    def with_config(self, config: QuantConfig) -> CorrectionContext:
        """Return a copy with the same samples and other options."""
        return replace(self, config=config)

    @property
    def can_validate(self) -> bool:
        """Whether there are held-out samples, and they are real rather than synthetic."""
        return self.samples.has_held_out and not self.samples.synthetic

    def for_goal(self, goal: Goal) -> CorrectionContext:
        """Return a copy that measures the metric of ``goal``, if this one does not already."""
        if goal.is_against_float or self.metric is not None:
            return self
        return replace(self, metric=find_metric(goal.metric, _loaded(self.evaluator.float_model)))

    def check_metric(self) -> None:
        """Measure the metric of the task on the float model, before long work on the quantized one.

        A metric that takes a whole model may take long itself, so it is not tried.

        Raises:
            CalibrationError: labels are missing.
            ConfigError: the metric fails, or does not suit the model.
        """
        if self.metric is not None and self.metric.whole is None:
            self.judge.evaluate(self.evaluator.float_model)

    def without_metric(self) -> CorrectionContext:
        """Return a copy for measurements that only ask for closeness to the float model."""
        return replace(self, metric=None)

    @cached_property
    def judge(self) -> AccuracyEvaluator:
        """The evaluator that also measures the metric of the task, if there is one."""
        if self.metric is None:
            return self.evaluator
        return self.evaluator.judged_by(self.metric, pseudo=self.config.pseudo_labels)

    def recalibrate(self, model: ir.Model) -> Draft:
        """Plan ``model`` with the same options and calibrate it on the batches to fit on.

        Raises:
            CalibrationError: the model does not load, or rejects every batch.
        """
        config = self.config
        plan = make_plan(model, get_target(config.target), config)
        channels = channel_axes(model, plan)
        statistics = collect(
            model,
            [*plan.observed, *channels],
            self.fit,
            on_batch=lambda done: self.progress("calibrating again", done),
            channels=channels,
            every_element=config.every_element,
            providers=config.providers,
            threads=config.threads,
            on_bad=self.on_bad,
        )
        plan = compute_qparams(model, plan, from_statistics(statistics, calibrator(config)))
        return Draft(model, model, plan, channel_means(statistics), statistics)

    def error(self, draft: Draft) -> float:
        """Return the noise-to-signal ratio (power) at the outputs, on the held-out samples."""
        return self.evaluate(draft).noise

    def evaluate(self, draft: Draft) -> Quality:
        """Compare the outputs of the quantized draft and of the float model on the held-out samples."""
        return self.evaluator.evaluate(draft.quantized())

    def fitted(self, draft: Draft) -> Quality:
        """Do the same as `evaluate`, on about twice as many samples, which were fitted on."""
        return self._fitted.evaluate(draft.quantized())

    @cached_property
    def _fitted(self) -> AccuracyEvaluator:
        return self.on_fit(2 * len(self.evaluator.samples)).evaluator

    def on_fit(self, batches: int) -> CorrectionContext:
        """Return a copy that evaluates on the first ``batches`` to fit on."""
        evaluator = self.evaluator.on(self.fit[:batches])
        return replace(self, evaluator=evaluator.skipping(self.on_bad) if self.on_bad else evaluator)

    def watch(
        self,
        model: ir.Model,
        tensors: Sequence[str],
        look: Callable[[int, Arrays], _Found],
        samples: Iterable[Sample] | None = None,
    ) -> Iterator[_Found]:
        """Do as `Watcher.watch`; without ``samples``, on the batches to fit on."""
        return self.watcher.watch(model, tensors, look, self.fit if samples is None else samples)

    @property
    def watcher(self) -> Watcher:
        """What runs models on samples."""
        return Watcher(self.config.providers, self.config.threads, self.on_bad)


def make_evaluator(
    original: Model, reference: ir.Model, samples: Samples, config: QuantConfig
) -> AccuracyEvaluator:
    """Return an evaluator that compares models with ``original`` on the held-out samples.

    An original in training mode would give other outputs in every run, and ONNX Runtime has no kernels for
    one in bfloat16, so ``reference`` takes its place.

    Args:
        original: the float model as the user supplied it, or its path.
        reference: the simplified ``original``; its inputs determine how samples are batched.
        samples: calibration and held-out samples.
        config: the options.
    """
    loaded = _loaded(original)
    replaced = training_nodes(loaded) or computes_in_half(loaded, (ir.DataType.BFLOAT16,))
    return AccuracyEvaluator(
        reference if replaced else original,
        in_batches(samples.eval_samples, reference, config),
        providers=config.providers,
        threads=config.threads,
        on_bad=samples.on_refused,
    )


def _loaded(model: Model) -> ir.Model:
    return model if isinstance(model, ir.Model) else load(model)


def make_context(
    original: Model, reference: ir.Model, samples: Samples, config: QuantConfig, progress: Progress = silent
) -> CorrectionContext:
    """Return the context of one quantization. All calibration samples must have been read before.

    Args:
        original: the float model as the user supplied it, or its path.
        reference: the simplified ``original``.
        samples: calibration and held-out samples.
        config: the options.
        progress: called with the name of a step and the number of batches done.

    Raises:
        CalibrationError: the float model does not load.
        ConfigError: the metric does not exist.
    """
    return CorrectionContext(
        fit=list(in_batches(samples.fit_samples, reference, config)),
        evaluator=make_evaluator(original, reference, samples, config),
        samples=samples,
        config=config,
        progress=progress,
        on_bad=samples.on_refused if samples.refused is None else _skip,
        metric=None if samples.synthetic else find_metric(config.metric, reference),
    )


def _skip(error: CalibrationError, samples: int) -> None:
    """Skip a batch silently: calibration has already warned about it."""


def channel_means(statistics: Mapping[str, TensorStatistics]) -> dict[str, NDArray[np.float64]]:
    """Return the channel means, ``[C]``, of each tensor whose statistics were collected per channel."""
    return {name: t.channels.value for name, t in statistics.items() if t.channels is not None}

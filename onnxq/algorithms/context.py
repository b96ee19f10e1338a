"""What corrections work with: samples to fit on, held-out samples to evaluate on, and models to run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import collect, processors, run_batch
from calibrators.data.bad_samples import OnBad, refuse
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.session import open_session
from calibrators.statistics import TensorStatistics
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.matrices import channel_axes
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics
from onnxq.calibration.sample_split import Samples, in_batches
from onnxq.core.config import QuantConfig
from onnxq.core.progress import Progress, silent
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target
from onnxq.verify.accuracy import AccuracyEvaluator, Model, Quality

Arrays = Mapping[str, NDArray[np.generic]]


_Found = TypeVar("_Found")


@dataclass(frozen=True)
class CorrectionContext:
    """What corrections, autotuning and the search for a goal work with; built once for a quantization.

    Attributes:
        fit: batches to fit on.
        evaluator: compares models with the float model on held-out samples.
        samples: where both come from.
        config: the options.
        progress: told how far the work is.
        on_bad: called for batches that a model does not take, which are skipped; None: they are errors.
    """

    fit: Sequence[Sample]
    evaluator: AccuracyEvaluator
    samples: Samples = field(default_factory=lambda: Samples((), 0))
    config: QuantConfig = field(default_factory=QuantConfig)
    progress: Progress = silent
    on_bad: OnBad | None = None

    def with_config(self, config: QuantConfig) -> CorrectionContext:
        """The same samples with other options."""
        return replace(self, config=config)

    @property
    def can_validate(self) -> bool:
        """Whether there are real samples that nothing was fitted on."""
        return self.samples.has_held_out and not self.samples.synthetic

    def recalibrate(self, model: ir.Model) -> Draft:
        """Plan ``model`` as the original was planned, with ranges from the batches to fit on.

        Raises:
            CalibrationError: the model does not load, or takes no batch.
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
        return Draft(model, model, plan, channel_means(statistics))

    def error(self, draft: Draft) -> float:
        """Noise over signal at the outputs, on the held-out samples."""
        return self.evaluate(draft).noise

    def evaluate(self, draft: Draft) -> Quality:
        """How close the outputs come, on the held-out samples."""
        return self.evaluator.evaluate(draft.quantized())

    def fitted(self, draft: Draft) -> Quality:
        """The same on samples that were fitted on: about twice as many."""
        return self._fitted.evaluate(draft.quantized())

    @cached_property
    def _fitted(self) -> AccuracyEvaluator:
        return self.evaluator.on(self.fit[: 2 * len(self.evaluator.samples)])

    def watch(
        self,
        model: ir.Model,
        tensors: Sequence[str],
        look: Callable[[int, Arrays], _Found],
        samples: Iterable[Sample] | None = None,
    ) -> Iterator[_Found]:
        """Run ``model`` and give what ``look`` finds in some of its tensors, batch by batch, in order.

        Several batches run side by side, on one thread each; the same samples give the same bits.

        Args:
            model: what to run; tensors of its main graph may be looked at.
            tensors: their names.
            look: batch number, arrays by name -> what is wanted of them. Called on several threads.
            samples: the batches; those to fit on if None.

        Raises:
            CalibrationError: the model does not load, or does not take a batch.
        """
        names = list(dict.fromkeys(tensors))
        count = self.config.threads or processors()
        session = open_session(model, outputs=names, providers=self.config.providers, threads=1, alone=False)

        def one(number: int, batch: Sample) -> list[_Found]:
            try:
                arrays = run_batch(session, names, batch)
            except CalibrationError as error:
                if self.on_bad is None:
                    refuse(error)
                self.on_bad(error, batch.count)
                return []
            return [look(number, dict(zip(names, arrays, strict=True)))]

        with ThreadPoolExecutor(count) as pool:
            under_way: deque[Future[list[_Found]]] = deque()
            for number, batch in enumerate(self.fit if samples is None else samples):
                under_way.append(pool.submit(one, number, batch))
                if len(under_way) > count:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()


def make_evaluator(
    original: Model, reference: ir.Model, samples: Samples, config: QuantConfig
) -> AccuracyEvaluator:
    """An evaluator of accuracy on the samples that nothing is fitted on.

    Args:
        original: the float model as the user has it, or its path.
        reference: the same, cleaned: its inputs say how samples are batched.
        samples: calibration and held-out samples.
        config: the options.
    """
    return AccuracyEvaluator(
        original,
        in_batches(samples.eval_samples, reference, config),
        providers=config.providers,
        threads=config.threads,
        on_bad=samples.on_refused,
    )


def make_context(
    original: Model, reference: ir.Model, samples: Samples, config: QuantConfig, progress: Progress = silent
) -> CorrectionContext:
    """The context of one quantization; all calibration samples must have been read by now.

    Args:
        original: the float model as the user has it, or its path.
        reference: the same, cleaned.
        samples: calibration and held-out samples.
        config: the options.
        progress: told how far the work is.

    Raises:
        CalibrationError: the float model does not load.
    """
    return CorrectionContext(
        fit=list(in_batches(samples.fit_samples, reference, config)),
        evaluator=make_evaluator(original, reference, samples, config),
        samples=samples,
        config=config,
        progress=progress,
        on_bad=samples.on_refused if samples.refused is None else _skip,
    )


def _skip(error: CalibrationError, samples: int) -> None:
    """Calibration has warned of these samples already."""


def channel_means(statistics: Mapping[str, TensorStatistics]) -> dict[str, NDArray[np.float64]]:
    """The means of the channels of each tensor that they were gathered of, ``[C]``."""
    return {name: t.channels.value for name, t in statistics.items() if t.channels is not None}

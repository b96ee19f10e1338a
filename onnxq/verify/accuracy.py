"""Measure how far a quantized model is from its float original, output by output."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import onnxruntime as ort

from calibrators.collect import processors, run_batch
from calibrators.data.bad_samples import OnBad, refuse
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.session import Model, as_model, open_session
from onnxq.core.floor import Floor
from onnxq.core.parallel import in_order
from onnxq.graph.tensor_bytes import side_by_side
from onnxq.verify.metrics.judge import MetricJudge, Records
from onnxq.verify.metrics.task_metric import MetricResult, TaskMetric
from onnxq.verify.outputs.next_token import NextToken
from onnxq.verify.outputs.output_kinds import OutputKind, output_kinds
from onnxq.verify.outputs.tally import OutputQuality, Tally

__all__ = ["AccuracyEvaluator", "OutputQuality", "Quality", "outcome"]

KEPT_BYTES = 256 * 2**20
"""Bytes of float outputs to keep; for the samples beyond, the float model runs again in each evaluation."""

AT_ONCE = 4
"""The largest number of batches that run at a time.

Some parts of a run use one thread only, so a few batches together use the processors better than one. More
would only take more memory.
"""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Quality:
    """The quality of all outputs.

    Attributes:
        outputs: the quality of each output, by name.
        samples: the number of samples that it was measured on.
        each: the share of each batch in `noise`, if outputs hold float numbers; `noise` is their sum.
        metric: the value of the task's metric, if one was measured.
    """

    outputs: Mapping[str, OutputQuality]
    samples: int
    each: tuple[float, ...] = ()
    metric: MetricResult | None = None

    @property
    def sqnr(self) -> float:
        """The worst output's SQNR, in dB."""
        return min((o.sqnr for o in self.outputs.values() if not math.isnan(o.sqnr)), default=math.nan)

    def holds(self, floor: Floor) -> bool:
        """Whether all outputs are above the floor; what cannot be measured is."""
        return all(floor.holds(one.sqnr, one.agreement) for one in self.outputs.values())

    @property
    def next_token(self) -> NextToken | None:
        """How the distributions of the next token differ, at the worst output that gives one."""
        found = [o.next_token for o in self.outputs.values() if o.next_token is not None]
        return max(found, key=lambda each: each.kl, default=None)

    @property
    def noise(self) -> float:
        """The figure to rank models by, less is better: noise power over signal power, mean of all outputs.

        If no output holds float numbers, it is the mean share of different decisions instead.
        """
        ratios = [10 ** (-o.sqnr / 10) for o in self.outputs.values() if not math.isnan(o.sqnr)]
        if not ratios:
            ratios = [1 - o.agreement for o in self.outputs.values() if o.agreement is not None]
        return sum(ratios) / len(ratios) if ratios else math.nan

    @property
    def agreement(self) -> float | None:
        """The worst output's agreement, 0 … 1."""
        return min((o.agreement for o in self.outputs.values() if o.agreement is not None), default=None)


@dataclass(eq=False)
class _Known:
    """A sample with the float model's outputs, if they are kept."""

    sample: Sample
    outputs: list[Any] | None = None


class AccuracyEvaluator:
    """Compares quantized models with the float model on a set of samples.

    The float model runs once per sample, and its outputs are kept as long as they are small.

    Attributes:
        float_model: the float model, or its path.
        kinds: how each of its outputs is compared, by name.
    """

    def __init__(
        self,
        float_model: Model,
        samples: Iterable[Sample],
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
        on_bad: OnBad | None = None,
    ) -> None:
        """Prepare to run ``float_model`` on ``samples``.

        Args:
            float_model: a model, or the path of one.
            samples: read once, one after the other, in the first evaluation.
            providers: execution providers, the preferred one first.
            threads: threads within a node; 0 leaves the number to ONNX Runtime.
            on_bad: called for samples that the float model does not take, which are then skipped; None:
                they are errors.

        Raises:
            CalibrationError: the model does not load.
        """
        self.float_model = float_model
        self._open = partial(open_session, providers=providers, threads=threads, alone=False)
        self._reference: ort.InferenceSession | None = self._open(float_model)
        self.kinds = output_kinds(float_model)
        self._stream = iter(samples)
        self._at_once = min(threads or processors(), AT_ONCE)
        self._room: int | None = None
        self._on_bad = on_bad
        self._known: list[_Known] = []
        self._kept = 0
        self._judge: MetricJudge | None = None

    @property
    def samples(self) -> list[Sample]:
        """The samples that the float model takes, as far as they have been read."""
        return [known.sample for known in self._known]

    def on(self, samples: Iterable[Sample]) -> AccuracyEvaluator:
        """A copy of this evaluator that uses other ``samples``."""
        other = copy.copy(self)
        other._stream, other._known, other._kept = iter(samples), [], 0
        other._judge = None if self._judge is None else self._judge.again()
        return other

    def judged_by(self, metric: TaskMetric, *, pseudo: bool = False) -> AccuracyEvaluator:
        """A copy of this evaluator that also measures the metric of a task.

        Args:
            metric: the metric. The samples must be single ones, unless the model fixes the batch size.
            pseudo: whether the float model's own results are the labels.

        Raises:
            ConfigError: the metric makes no labels.
        """
        other = copy.copy(self)
        other._judge = MetricJudge(metric, tuple(self.kinds), pseudo)
        return other

    def skipping(self, on_bad: OnBad) -> AccuracyEvaluator:
        """A copy of this evaluator that calls ``on_bad`` for samples that the float model does not take."""
        other = copy.copy(self)
        other._on_bad = on_bad
        return other

    def release(self) -> None:
        """Free the memory of the float model and of its outputs; both come back when they are needed."""
        self._reference, self._kept = None, 0
        for known in self._known:
            known.outputs = None

    def as_deployed(self) -> AccuracyEvaluator:
        """A copy of this evaluator that runs models with the kernels that users run, exact or not."""
        other = copy.copy(self)
        other._open = partial(self._open, exact=False)
        return other

    def evaluate(
        self,
        model: Model,
        on_sample: Callable[[int], None] | None = None,
        look: Callable[[Sequence[Any], Sequence[Any]], None] | None = None,
    ) -> Quality:
        """Measure how close ``model`` is to the float model.

        Outputs are matched by position and named as in the float model.

        Args:
            model: a model, or the path of one.
            on_sample: called with the number of samples done so far.
            look: called for each batch with the outputs of the float model and those of ``model``.

        Raises:
            CalibrationError: ``model`` does not load, one of the two models does not take a sample, or labels
                are missing.
            ConfigError: the metric of the task fails, or does not suit the model.
        """
        reference = self._reference = self._reference or self._open(self.float_model)
        actual, both = self._open(model), partial(self._both, reference)
        records: Records | None = None if self._judge is None else self._judge.begin()
        tallies = {name: Tally(kind) for name, kind in self.kinds.items()}
        seen = 0
        for known, expected, given in self._in_order(partial(both, actual)):
            if isinstance(expected, CalibrationError):
                self._leave_out(known, expected)
                continue
            if known.outputs is None:
                known.outputs = self._if_small(expected)
            for tally, one, other in zip(tallies.values(), expected, given, strict=True):
                tally.add(one, other, known.sample.feeds)
            if look is not None:
                look(expected, given)
            if records is not None:
                records.add(known.sample, expected, given)
            seen += known.sample.count
            if on_sample is not None:
                on_sample(seen)
        quality = _quality(tallies, seen)
        if records is None or not seen:
            return quality
        found = records.result([(self.float_model, reference), (model, actual)])
        return replace(quality, metric=found)

    def _in_order(self, work: Callable[[_Known], _Result]) -> Iterator[_Result]:
        """Work on all samples, several at a time where their tensors fit into memory."""
        known = self._read()
        first = next(known, None)
        if first is None:
            return iter(())
        if self._room is None:
            self._room = side_by_side(as_model(self.float_model), first.sample.feeds, self._at_once)
        return in_order(work, chain([first], known), self._room)

    def _read(self) -> Iterator[_Known]:
        """Yield the samples read so far, then the others."""
        yield from tuple(self._known)
        for sample in self._stream:
            self._known.append(_Known(sample))
            yield self._known[-1]

    def _both(
        self, reference: ort.InferenceSession, actual: ort.InferenceSession, known: _Known
    ) -> tuple[_Known, list[Any] | CalibrationError, list[Any]]:
        """Run both models; where the float model does not take the sample, return its error."""
        try:
            expected = _run(reference, known.sample) if known.outputs is None else known.outputs
        except CalibrationError as error:
            return known, error, []
        return known, expected, _run(actual, known.sample)

    def _leave_out(self, known: _Known, error: CalibrationError) -> None:
        self._known.remove(known)
        if self._on_bad is None:
            refuse(error)
        self._on_bad(error, known.sample.count)

    def _if_small(self, outputs: list[Any]) -> list[Any] | None:
        """``outputs``, if there is room to keep them."""
        size = sum(getattr(array, "nbytes", 0) for array in outputs)
        if self._kept + size > KEPT_BYTES:
            return None
        self._kept += size
        return outputs


def outcome(
    kinds: Mapping[str, OutputKind], pairs: Iterable[tuple[Sequence[Any], Sequence[Any]]], samples: int
) -> Quality:
    """Measure how close outputs are to the expected ones.

    Args:
        kinds: how each output is compared, by name.
        pairs: for each batch, the expected outputs and the actual ones.
        samples: the number of samples in all batches.
    """
    tallies = {name: Tally(kind) for name, kind in kinds.items()}
    for expected, given in pairs:
        for tally, one, other in zip(tallies.values(), expected, given, strict=True):
            tally.add(one, other)
    return _quality(tallies, samples)


def _quality(tallies: Mapping[str, Tally], samples: int) -> Quality:
    real = [tally for tally in tallies.values() if tally.signal]
    shares = zip(*([noise / tally.signal for noise in tally.noise] for tally in real), strict=False)
    return Quality(
        outputs={name: tally.quality() for name, tally in tallies.items()},
        samples=samples,
        each=tuple(sum(share) / len(real) for share in shares),
    )


def _run(session: ort.InferenceSession, sample: Sample) -> list[Any]:
    return run_batch(session, [output.name for output in session.get_outputs()], sample)

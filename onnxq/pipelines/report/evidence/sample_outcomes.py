"""The samples that the quantized model decides otherwise, and those where it is furthest from float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import onnx_ir as ir

from calibrators.data.samples import Sample
from onnxq.core.numerics import decibels
from onnxq.pipelines.report.evidence.pictures import thumbnail
from onnxq.verify.accuracy import AccuracyEvaluator
from onnxq.verify.outputs.tally import class_axis

CHANGED, WORST = 40, 10
"""How many samples with other decisions, and with the largest errors, are shown."""


@dataclass(frozen=True)
class Decision:
    """A decision that changed.

    Attributes:
        output: the output that decides.
        before, after: the class that the float model and the quantized model choose.
        margin: what the float model's score of ``before`` is above its score of ``after``, as a share of the
            span of all its scores of this sample.
    """

    output: str
    before: int
    after: int
    margin: float


@dataclass(frozen=True)
class SampleOutcome:
    """One sample.

    Attributes:
        name: where it came from.
        sqnr: the SQNR of the worst output of this sample, in dB.
        changed: the decisions that changed.
        decisions: the number of all its decisions.
        picture: a thumbnail as a data URI; empty if the sample is no picture.
    """

    name: str
    sqnr: float
    changed: tuple[Decision, ...]
    decisions: int
    picture: str = ""


@dataclass(frozen=True)
class SampleOutcomes:
    """All samples.

    Attributes:
        count: the number of samples.
        decisions: the number of decisions in them.
        changes: (output, class in float, class quantized) -> how often; only changed ones.
        changed: samples with one decision, which changed, those with the largest margin first.
        worst: the samples with the largest errors, the worst first.
    """

    count: int
    decisions: int
    changes: Mapping[tuple[str, int, int], int]
    changed: tuple[SampleOutcome, ...]
    worst: tuple[SampleOutcome, ...]


def sample_outcomes(evaluator: AccuracyEvaluator, model: ir.Model) -> SampleOutcomes:
    """Compare the outputs of both models sample by sample.

    Args:
        evaluator: holds the float model and the samples.
        model: the quantized model.

    Raises:
        CalibrationError: the model does not load, or does not take a sample.
    """
    batches: list[list[_Judged]] = []
    names = list(evaluator.kinds)

    def look(expected: Sequence[Any], given: Sequence[Any]) -> None:
        batches.append([_judged(names, one) for one in _by_sample(expected, given)])

    quality = evaluator.evaluate(model, look=look)
    deciding = {name for name, output in quality.outputs.items() if output.agreement is not None}
    found = [
        (judged.outcome(_name(batch, index), deciding), batch, index)
        for batch, several in zip(evaluator.samples, batches, strict=True)
        for index, judged in enumerate(several)
    ]
    changes = Counter((d.output, d.before, d.after) for one, *_ in found for d in one.changed)
    changed = sorted((each for each in found if each[0].changed), key=lambda each: -_margin(each[0]))
    worst = sorted(found, key=lambda each: each[0].sqnr)[:WORST]
    return SampleOutcomes(
        count=sum(batch.count for batch in evaluator.samples),
        decisions=sum(one.decisions for one, *_ in found),
        changes=dict(changes.most_common()),
        changed=tuple(_pictured(*each) for each in changed[:CHANGED]),
        worst=tuple(_pictured(*each) for each in worst if each[0].sqnr < inf),
    )


def _by_sample(expected: Sequence[Any], given: Sequence[Any]) -> Iterator[list[tuple[Any, Any] | None]]:
    """Cut the outputs of a batch along axis 0, if all have the same size there; else keep them whole."""
    pairs = [
        (one, other) if isinstance(one, np.ndarray) and getattr(other, "shape", None) == one.shape else None
        for one, other in zip(expected, given, strict=True)
    ]
    sizes = {pair[0].shape[0] if pair[0].ndim else 0 for pair in pairs if pair is not None}
    count = sizes.pop() if len(sizes) == 1 else 0
    if count < 1:
        yield list(pairs)
        return
    for i in range(count):
        yield [None if pair is None else (pair[0][i : i + 1], pair[1][i : i + 1]) for pair in pairs]


@dataclass(frozen=True)
class _Judged:
    """The SQNR of one sample's worst output, the outputs with one largest entry, and those that changed."""

    sqnr: float
    changed: tuple[Decision, ...]
    compared: tuple[str, ...]

    def outcome(self, name: str, deciding: Collection[str]) -> SampleOutcome:
        """Leave out the outputs that do not decide."""
        changed = tuple(each for each in self.changed if each.output in deciding)
        return SampleOutcome(name, self.sqnr, changed, sum(each in deciding for each in self.compared))


def _judged(names: Sequence[str], pairs: Sequence[tuple[Any, Any] | None]) -> _Judged:
    worst, changed, compared = inf, list[Decision](), list[str]()
    for name, pair in zip(names, pairs, strict=True):
        if pair is None or pair[0].dtype.kind != "f":
            continue
        one, other = (array.astype(np.float64) for array in pair)
        known = np.isfinite(one)
        worst = min(worst, decibels(np.square(one[known]).sum(), np.square((one - other)[known]).sum()))
        axis = class_axis(one)
        if axis is not None and one.size == one.shape[axis]:  # one decision a sample
            compared.append(name)
            changed += _decision(name, one.reshape(-1), other.reshape(-1))
    return _Judged(worst, tuple(changed), tuple(compared))


def _decision(name: str, one: Any, other: Any) -> Iterator[Decision]:
    before, after = int(one.argmax()), int(other.argmax())
    if before != after:
        span = float(one.max() - one.min()) or 1.0
        yield Decision(name, before, after, float(one[before] - one[after]) / span)


def _margin(outcome: SampleOutcome) -> float:
    return max(decision.margin for decision in outcome.changed)


def _name(batch: Sample, index: int) -> str:
    return batch.name_of(index) if index < batch.count else batch.name


def _pictured(outcome: SampleOutcome, batch: Sample, index: int) -> SampleOutcome:
    return SampleOutcome(
        outcome.name, outcome.sqnr, outcome.changed, outcome.decisions, thumbnail(batch, index)
    )

"""Measure the sensitivity of quantization groups: the output error when only one group is quantized.

The float model runs once, and its tensors are kept. For each group only the downstream nodes run again, with
these tensors as inputs: first a piece of its own, then the rest of the model, which many groups share (see
`stages`). The error is measured at the outputs of the model, because the error of the tensor itself says
little about the accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeAlias

from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.subgraphs import Subgraph
from onnxq.algorithms.sensitivity.float_tensors import FloatTensors
from onnxq.algorithms.sensitivity.stages import Stage, by_stage, stages
from onnxq.algorithms.watching import Arrays, Watcher
from onnxq.core.config import QuantConfig
from onnxq.core.parallel import Executor
from onnxq.core.plan import GRAPH_OUTPUT, Group
from onnxq.graph.nodes import name_of
from onnxq.verify.accuracy import Quality, outcome
from onnxq.verify.metrics.choice import find_metric
from onnxq.verify.metrics.judge import MetricJudge
from onnxq.verify.metrics.task_metric import MetricResult
from onnxq.verify.outputs.output_kinds import output_kinds

RANKED_SAMPLES = 8
"""The default number of samples.

The noise is a mean over all values of the outputs, so few samples are enough to rank the groups.
"""

UNIT = 16
"""The largest number of groups that are sent to a worker together, so that all end at about the same time."""

STAGE = "ranking quantization points"

_Changed: TypeAlias = Sequence[Mapping[int, Any]]
"""The changed outputs of each batch, by position."""


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of a group: the tensors that share quantization parameters.

    Attributes:
        group: the group that was quantized alone.
        readers: the names of its integer consumers -> their operators.
        quality: the quality of the outputs, compared with the float model.
    """

    group: Group
    readers: Mapping[str, str]
    quality: Quality

    @property
    def kind(self) -> str:
        """The kind of tensors in the group: "weight" or "activation"."""
        return "weight" if self.group.constant else "activation"


def sensitivities(
    draft: Draft,
    context: CorrectionContext,
    groups: Collection[str] | None = None,
    samples: int = RANKED_SAMPLES,
    is_late: Callable[[], bool] = lambda: False,
) -> list[Sensitivity]:
    """Measure the sensitivity of the groups of ``draft.plan``, without biases.

    Args:
        draft: the plan with parameters, and the models.
        context: the samples to fit on and the options; its executor measures, but not where only some groups
            are asked for, which take less time than its start.
        groups: the names of the groups to measure; None: all.
        samples: the approximate number of samples to measure on.
        is_late: whether the time is over; the groups that are left then have no sensitivity.

    Returns:
        The sensitivities, the group with the largest noise first; with a metric, the one that loses most.

    Raises:
        CalibrationError: the model does not load, or accepts no sample.
    """
    chosen = [name for name in draft.plan.groups if groups is None or name in groups]
    executor = context.executor if groups is None else None
    ranker = _ranker(draft, context, samples, executor)
    made = ranker.rank(chosen) if executor is None else executor.map(ranker.rank, ranker.units(chosen))
    found = []
    for one in made:
        found.append(one)
        context.progress(STAGE, len(found), len(chosen))
        if is_late():
            break
    return sorted(found, key=lambda one: (-_loss(one.quality), -one.quality.noise, one.group.name))


def _loss(quality: Quality) -> float:
    return 0.0 if quality.metric is None else quality.metric.loss


def _ranker(draft: Draft, context: CorrectionContext, samples: int, executor: Executor | None) -> Ranker:
    taken, expected = _taken(draft, context, [name_of(v) for v in draft.reference.graph.outputs], samples)
    if not taken:
        raise CalibrationError("the model accepts none of the samples: no sensitivity can be measured")
    watcher = Watcher(context.config.providers, executor.threads if executor else context.config.threads)
    config = context.config if context.metric else context.config.model_copy(update={"metric": None})
    return Ranker(replace(draft, statistics={}), watcher, config, taken, expected)


@dataclass(frozen=True)
class Ranker:
    """Measures groups. It has all that a worker needs.

    Attributes:
        draft: the plan with parameters, and the models.
        watcher: runs models.
        config: the options; their metric is measured too.
        samples: the batches to measure on.
        expected: the outputs of the float model for each batch.
    """

    draft: Draft
    watcher: Watcher
    config: QuantConfig
    samples: Sequence[Sample]
    expected: Sequence[Sequence[Any]]

    def units(self, names: Collection[str]) -> list[tuple[str, ...]]:
        """Share out groups: those of a unit share the rest of the model. The longest units come first."""
        members = by_stage(self.draft, self._groups(names)).values()
        return [
            tuple(group.name for group in groups[start : start + UNIT])
            for groups in members
            for start in range(0, len(groups), UNIT)
        ]

    def _groups(self, names: Collection[str]) -> list[Group]:
        return [self.draft.plan.groups[name] for name in names]

    def rank(self, names: Collection[str]) -> Iterator[Sensitivity]:
        """Yield the sensitivity of each group; it does not depend on the others.

        Raises:
            CalibrationError: a part of the model does not load, or rejects a sample.
        """
        reference, plan, expected = self.draft.reference, self.draft.plan, self.expected
        operators = {name_of(node): node.op_type for node in reference.graph}
        kinds, judge = output_kinds(reference), self._judge()
        for group, changed in _changes(self.draft, self._groups(names), self._tensors):
            given = [
                [new.get(i, a) for i, a in enumerate(old)] for old, new in zip(expected, changed, strict=True)
            ]
            count = sum(sample.count for sample in self.samples)
            quality = outcome(kinds, zip(expected, given, strict=True), count)
            if judge:
                quality = replace(quality, metric=_measured(judge, self.samples, expected, given))
            readers = dict.fromkeys(point.consumer for point in plan.points_of(group.name))
            yield Sensitivity(group, {n: operators.get(n, GRAPH_OUTPUT) for n in readers}, quality)

    @cached_property
    def _tensors(self) -> FloatTensors:
        return FloatTensors(self.draft.reference, self.watcher, self.samples)

    def _judge(self) -> MetricJudge | None:
        reference = self.draft.reference
        metric = find_metric(self.config.metric, reference)
        names = [name_of(value) for value in reference.graph.outputs]
        return MetricJudge(metric, names, self.config.pseudo_labels) if metric else None


def _measured(
    judge: MetricJudge,
    samples: Sequence[Sample],
    expected: Sequence[Sequence[Any]],
    given: Sequence[Sequence[Any]],
) -> MetricResult:
    """Measure the metric of the task on outputs."""
    records = judge.begin()
    for each in zip(samples, expected, given, strict=True):
        records.add(*each)
    return records.result(())


def _taken(
    draft: Draft, context: CorrectionContext, names: Sequence[str], samples: int
) -> tuple[list[Sample], list[list[Any]]]:
    """Return the first batches that the float model accepts, and its outputs for them."""
    taken: list[Sample] = []
    outputs: list[list[Any]] = []
    left = list(context.fit)
    while left and (missing := samples - sum(batch.count for batch in taken)) > 0:
        few = _few(left, missing)
        left = left[len(few) :]
        for number, made in context.watch(
            draft.reference, names, lambda number, arrays: (number, [arrays[n] for n in names]), few
        ):
            taken.append(few[number])
            outputs.append(made)
    return taken, outputs


def _few(batches: Sequence[Sample], samples: int) -> list[Sample]:
    """Return the first batches that together hold enough samples."""
    chosen: list[Sample] = []
    for batch in batches:
        if sum(one.count for one in chosen) >= samples:
            break
        chosen.append(batch)
    return chosen


def _changes(
    draft: Draft, groups: Sequence[Group], tensors: FloatTensors
) -> Iterator[tuple[Group, _Changed]]:
    """Yield the changed outputs of each group; as many stages run at a time as fit into memory."""
    waiting: list[Stage] = []
    for stage in stages(draft, groups):
        if waiting and not tensors.fit(stage.feeds.union(*(one.feeds for one in waiting))):
            yield from _run(waiting, tensors)
            waiting = []
        waiting.append(stage)
    yield from _run(waiting, tensors)


def _run(waiting: Sequence[Stage], tensors: FloatTensors) -> Iterator[tuple[Group, _Changed]]:
    kept = tensors.of(set().union(*(stage.feeds for stage in waiting)))
    for stage in waiting:
        yield from _run_stage(stage, tensors.watcher, tensors.samples, kept)


def _as_they_are(_: int, arrays: Arrays) -> Arrays:
    return arrays


def _run_stage(
    stage: Stage, watcher: Watcher, samples: Sequence[Sample], kept: Sequence[Arrays]
) -> Iterator[tuple[Group, _Changed]]:
    """Run each piece on all samples, and the rest of the model on its outputs."""
    direct: list[Mapping[int, Any]] = []

    def pieces() -> Iterator[Sample]:
        for piece in stage.pieces:
            part = piece.part
            feeds = [_fed(sample, part, known) for sample, known in zip(samples, kept, strict=True)]
            runs = watcher.watch(part.model, part.gives, _as_they_are, feeds)
            for sample, known, arrays in zip(samples, kept, runs, strict=True):
                direct.append({position: arrays[name] for position, name in piece.outputs.items()})
                yield _fed(sample, stage.rest, {**known, **arrays}) if stage.rest else sample

    from_rest: Iterable[Arrays] = ({} for _ in pieces())
    if stage.rest is not None:
        from_rest = watcher.watch(stage.rest.model, stage.rest.gives, _as_they_are, pieces())
    changed = (
        {**{i: arrays[name] for i, name in stage.outputs.items()}, **direct[number]}
        for number, arrays in enumerate(from_rest)
    )
    for piece in stage.pieces:
        yield piece.group, list(islice(changed, len(samples)))


def _fed(sample: Sample, part: Subgraph, known: Arrays) -> Sample:
    return replace(sample, feeds={name: known[name] for name in part.feeds})

"""Which quantization points cost most: what each does to the outputs when it alone is quantized.

The float model runs once; its tensors are kept, and for each point only what lies behind it runs again, fed
with them: a piece of its own, and then the rest of the model, which many points share (see `stages`). So the
errors are those at the outputs, after all that the network makes of them, and not those at the tensor itself,
which tell little.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from onnxq.algorithms.context import Arrays, CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.subgraphs import Subgraph
from onnxq.algorithms.sensitivity.stages import Stage, stages
from onnxq.core.plan import GRAPH_OUTPUT, Group
from onnxq.graph.nodes import name_of
from onnxq.verify.accuracy import Quality, outcome

RANKED_SAMPLES = 8
"""Noise is a mean over all values of the outputs: few samples give its order."""

KEPT_BYTES = 512 * 2**20
"""Of the float model's tensors at a time; beyond, it runs again."""

STAGE = "ranking quantization points"

_Changed: TypeAlias = Sequence[Mapping[int, Any]]
"""For each batch, by position, the outputs that are not what they were."""


@dataclass(frozen=True)
class Sensitivity:
    """One group of points: the tensors that share parameters are quantized together.

    Attributes:
        group: what was quantized, all else being float.
        readers: the nodes that read it in integers, and their operators.
        quality: against the float model.
    """

    group: Group
    readers: Mapping[str, str]
    quality: Quality

    @property
    def kind(self) -> str:
        """What the group holds."""
        return "weight" if self.group.constant else "activation"


def sensitivities(
    draft: Draft,
    context: CorrectionContext,
    groups: Collection[str] | None = None,
    samples: int = RANKED_SAMPLES,
) -> list[Sensitivity]:
    """Every group of ``draft.plan`` (biases aside), the one that does most harm first; or some, by name.

    Measured on about so many ``samples``.

    Raises:
        CalibrationError: the model does not load, or takes no sample.
    """
    names = [name_of(value) for value in draft.reference.graph.outputs]
    taken, expected = _taken(draft, context, names, samples)
    if not taken:
        raise CalibrationError("the model takes none of the samples: there is nothing to rank points by")
    operators = {name_of(node): node.op_type for node in draft.reference.graph}
    found = []
    chosen = [group for name, group in draft.plan.groups.items() if groups is None or name in groups]
    for group, changed in _changes(draft, chosen, context, taken):
        given = (
            [new.get(i, a) for i, a in enumerate(old)] for old, new in zip(expected, changed, strict=True)
        )
        quality = outcome(names, zip(expected, given, strict=True), sum(s.count for s in taken))
        readers = dict.fromkeys(p.consumer for p in draft.plan.points if p.group == group.name)
        found.append(Sensitivity(group, {n: operators.get(n, GRAPH_OUTPUT) for n in readers}, quality))
        context.progress(STAGE, len(found), len(chosen))
    return sorted(found, key=lambda one: (-one.quality.noise, one.group.name))


def _taken(
    draft: Draft, context: CorrectionContext, names: Sequence[str], samples: int
) -> tuple[list[Sample], list[list[Any]]]:
    """A few batches that the float model takes, and what it makes of them."""
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
    """The first batches that together hold enough samples."""
    chosen: list[Sample] = []
    for batch in batches:
        if sum(one.count for one in chosen) >= samples:
            break
        chosen.append(batch)
    return chosen


def _changes(
    draft: Draft, groups: Sequence[Group], context: CorrectionContext, samples: Sequence[Sample]
) -> Iterator[tuple[Group, _Changed]]:
    """For each of ``groups`` the outputs that it changes: as many stages at a time as there is room for."""
    sizes = _sizes(draft, context, samples)
    waiting: list[Stage] = []
    for stage in stages(draft, groups):
        needed = set(stage.feeds).union(*(one.feeds for one in waiting))
        if waiting and sum(sizes.get(name, 0) for name in needed) > KEPT_BYTES:
            yield from _run(waiting, draft, context, samples)
            waiting = []
        waiting.append(stage)
    yield from _run(waiting, draft, context, samples)


def _sizes(draft: Draft, context: CorrectionContext, samples: Sequence[Sample]) -> Mapping[str, int]:
    """About how many bytes each tensor of the main graph takes, of all ``samples``."""
    names = [out.name for node in draft.reference.graph for out in node.outputs if out.name]
    (sizes,) = context.watch(draft.reference, names, _bytes, samples[:1])
    return {name: size * len(samples) for name, size in sizes.items()}


def _bytes(_: int, arrays: Arrays) -> dict[str, int]:
    return {name: getattr(array, "nbytes", 0) for name, array in arrays.items()}


def _run(
    waiting: Iterable[Stage], draft: Draft, context: CorrectionContext, samples: Sequence[Sample]
) -> Iterator[tuple[Group, _Changed]]:
    given = {name_of(value) for value in draft.reference.graph.inputs}
    waiting = list(waiting)
    names = sorted(set().union(*(stage.feeds for stage in waiting)) - given)
    kept = [
        {**sample.feeds, **arrays}
        for sample, arrays in zip(
            samples, context.watch(draft.reference, names, _as_they_are, samples), strict=True
        )
    ]
    for stage in waiting:
        yield from _run_stage(stage, context, samples, kept)


def _as_they_are(_: int, arrays: Arrays) -> Arrays:
    return arrays


def _run_stage(
    stage: Stage, context: CorrectionContext, samples: Sequence[Sample], kept: Sequence[Arrays]
) -> Iterator[tuple[Group, _Changed]]:
    """Each piece runs on all samples; what it gives goes on to the rest, at once."""
    direct: list[Mapping[int, Any]] = []

    def pieces() -> Iterator[Sample]:
        for piece in stage.pieces:
            part = piece.part
            feeds = [_fed(sample, part, known) for sample, known in zip(samples, kept, strict=True)]
            runs = context.watch(part.model, part.gives, _as_they_are, feeds)
            for sample, known, arrays in zip(samples, kept, runs, strict=True):
                direct.append({position: arrays[name] for position, name in piece.outputs.items()})
                yield _fed(sample, stage.rest, {**known, **arrays}) if stage.rest else sample

    behind: Iterable[Arrays] = ({} for _ in pieces())
    if stage.rest is not None:
        behind = context.watch(stage.rest.model, stage.rest.gives, _as_they_are, pieces())
    changed = (
        {**{i: arrays[name] for i, name in stage.outputs.items()}, **direct[number]}
        for number, arrays in enumerate(behind)
    )
    for piece in stage.pieces:
        yield piece.group, list(islice(changed, len(samples)))


def _fed(sample: Sample, part: Subgraph, known: Arrays) -> Sample:
    return replace(sample, feeds={name: known[name] for name in part.feeds})

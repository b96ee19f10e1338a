"""Which quantization points cost most: what each does to the outputs when it alone is quantized.

The float model runs once; its tensors are kept, and for each point only the part behind it runs again, fed
with them. So the errors are those at the outputs, after all that the network makes of them, and not those at
the tensor itself, which tell little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from calibrators.samples import Sample
from onnxq.algorithms.alone import quantize_alone
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.partial import Part, part_behind
from onnxq.algorithms.workbench import Arrays, Workbench
from onnxq.evaluate import Quality, outcome
from onnxq.plan import GRAPH_OUTPUT, Group

RANKED_SAMPLES = 8
"""Noise is a mean over all values of the outputs: few samples give its order."""

KEPT_BYTES = 512 * 2**20
"""Of the float model's tensors at a time; beyond, it runs again."""

STAGE = "ranking quantization points"


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


def sensitivities(draft: Draft, bench: Workbench) -> list[Sensitivity]:
    """Every group of ``draft.plan`` (biases aside), the one that does most harm first.

    Raises:
        CalibrationError: the model does not load, or does not take a sample.
    """
    names = [value.name or "" for value in draft.exact.graph.outputs]
    samples, expected = _taken(draft, bench, names)
    operators = {node.name or "": node.op_type for node in draft.exact.graph}
    found = []
    for part, group, feeds in _parts(draft, bench, samples):
        given = _outputs(part, feeds, bench, expected)
        quality = outcome(names, zip(expected, given, strict=True), sum(s.count for s in samples))
        readers = dict.fromkeys(p.consumer for p in draft.plan.points if p.group == group.name)
        found.append(Sensitivity(group, {n: operators.get(n, GRAPH_OUTPUT) for n in readers}, quality))
        bench.progress(STAGE, len(found), len(draft.plan.groups))
    return sorted(found, key=lambda one: (-one.quality.noise, one.group.name))


def _taken(draft: Draft, bench: Workbench, names: Sequence[str]) -> tuple[list[Sample], list[list[Any]]]:
    """A few batches that the float model takes, and what it makes of them."""
    few = _few(bench.fit)
    runs = bench.watch(draft.exact, names, lambda number, arrays: (number, _in_order(arrays, names)), few)
    taken = dict(runs)
    return [few[number] for number in taken], list(taken.values())


def _few(batches: Sequence[Sample]) -> list[Sample]:
    """The first batches that together hold enough samples."""
    chosen: list[Sample] = []
    for batch in batches:
        if sum(one.count for one in chosen) >= RANKED_SAMPLES:
            break
        chosen.append(batch)
    return chosen


def _in_order(arrays: Arrays, names: Sequence[str]) -> list[Any]:
    return [arrays[name] for name in names]


def _parts(
    draft: Draft, bench: Workbench, samples: Sequence[Sample]
) -> Iterator[tuple[Part, Group, list[Sample]]]:
    """For each group what must run, and what it reads: as many groups at a time as there is room for."""
    sizes = _sizes(draft, bench, samples)
    waiting: list[tuple[Part, Group]] = []
    needed: set[str] = set()
    for group in draft.plan.groups.values():
        alone = quantize_alone(draft, group)
        part = part_behind(alone.model, alone.seeds)
        if waiting and sum(sizes.get(name, 0) for name in needed.union(part.feeds)) > KEPT_BYTES:
            yield from _fed(waiting, needed, draft, bench, samples)
            waiting, needed = [], set()
        waiting.append((part, group))
        needed.update(part.feeds)
    yield from _fed(waiting, needed, draft, bench, samples)


def _sizes(draft: Draft, bench: Workbench, samples: Sequence[Sample]) -> Mapping[str, int]:
    """About how many bytes each tensor of the main graph takes, of all ``samples``."""
    names = [out.name for node in draft.exact.graph for out in node.outputs if out.name]
    (sizes,) = bench.watch(draft.exact, names, _bytes, samples[:1])
    return {name: size * len(samples) for name, size in sizes.items()}


def _bytes(_: int, arrays: Arrays) -> dict[str, int]:
    return {name: getattr(array, "nbytes", 0) for name, array in arrays.items()}


def _fed(
    parts: Iterable[tuple[Part, Group]],
    needed: Iterable[str],
    draft: Draft,
    bench: Workbench,
    samples: Sequence[Sample],
) -> Iterator[tuple[Part, Group, list[Sample]]]:
    given = {value.name or "" for value in draft.exact.graph.inputs}
    names = sorted(set(needed) - given)
    kept = list(bench.watch(draft.exact, names, lambda _, arrays: arrays, samples))
    for part, group in parts:
        yield (
            part,
            group,
            [
                replace(sample, feeds={n: known[n] if n in known else sample.feeds[n] for n in part.feeds})
                for sample, known in zip(samples, kept, strict=True)
            ],
        )


def _outputs(
    part: Part, feeds: Sequence[Sample], bench: Workbench, expected: Sequence[list[Any]]
) -> Iterator[list[Any]]:
    """All outputs of the whole model, batch by batch; those that the part does not give are as expected."""
    names = [value.name or "" for value in part.model.graph.outputs]
    given = bench.watch(part.model, names, lambda _, arrays: _in_order(arrays, names), feeds)
    for known, arrays in zip(expected, given, strict=True):
        changed = dict(zip(part.outputs, arrays, strict=True))
        yield [changed.get(position, array) for position, array in enumerate(known)]

"""Which weights to widen next and which nodes to keep in float next, in stages.

In which order weights get wider: those first that take the most noise along for each byte that they cost.

Rounding noise goes with the square of the step between two levels, so what is left of it in a wider format
follows from that of the narrow one.

In which order layers become float: those first that take the most noise along for each node.

A group of points is rid of its noise only when every node is float that quantizes it: those that read it in
integers, and what makes it, where its kernel gives nothing but integers. Noises of single points add up, so
the order follows from the sensitivities alone.

All steps up from a plan, in stages: weights wider, rung by rung, and in the end float.

Wider weights cost bytes, float costs time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import onnx_ir as ir

from onnxq.algorithms.mixed_precision.steps import Precision, Steps, keep_float, wider_formats
from onnxq.core.plan import Group, QuantPlan, QuantSpec
from onnxq.graph.nodes import name_of
from onnxq.graph.operators import WEIGHTED, clip_range
from onnxq.graph.walks import producer_of
from onnxq.targets.lookup import get_target
from onnxq.targets.target import Output, Target


@dataclass(frozen=True)
class Widening:
    """A group of weights in a wider format.

    Attributes:
        group: its name.
        nodes: those that read it.
        form: the type that it gets.
        left: its noise over signal, at the outputs, in that type.
        gain: the noise that goes.
        cost: the bytes that come.
    """

    group: str
    nodes: tuple[str, ...]
    form: ir.DataType
    left: float
    gain: float
    cost: float

    @property
    def worth(self) -> float:
        """Noise for each byte."""
        return self.gain / self.cost


def widenings(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[list[Widening]]:
    """Rung by rung, all that the target takes in wider formats, those that are worth most first.

    Args:
        model: the model of ``plan``.
        plan: what is quantized.
        noises: of its groups, what each alone does to the outputs (noise over signal).
    """
    readers, target = _readers(model, plan), get_target(plan.target)
    ladders = [
        list(_ladder(plan.groups[name], nodes, noises[name], _elements(model, plan.groups[name]), target))
        for name, nodes in readers.items()
    ]
    rungs = [[one for one in rung if one is not None] for rung in zip_longest(*ladders)]
    return [sorted(rung, key=lambda one: -one.worth) for rung in rungs]


def _ladder(
    group: Group, nodes: tuple[str, ...], noise: float, elements: int, target: Target
) -> Iterator[Widening]:
    before = group.spec
    for spec in wider_formats(before, target):
        left = noise * (_span(before) / _span(spec)) ** 2
        cost = max(elements, 1) * (spec.dtype.bitwidth - before.dtype.bitwidth) / 8
        yield Widening(group.name, nodes, spec.dtype, left, noise - left, cost)
        noise, before = left, spec


def _readers(model: ir.Model, plan: QuantPlan) -> Mapping[str, tuple[str, ...]]:
    """Groups of weights -> the nodes that read them, if nobody reads them as something else."""
    operators = {name_of(node): WEIGHTED.get(node.op_type) for node in model.graph}
    readers: dict[str, list[str]] = {}
    others = set[str]()
    for point in plan.points:
        operator = operators.get(point.consumer)
        if plan.groups[point.group].constant and operator and point.input_index == operator.weight:
            readers.setdefault(point.group, []).append(point.consumer)
        else:
            others.add(point.group)
    return {name: tuple(nodes) for name, nodes in readers.items() if name not in others}


def _span(spec: QuantSpec) -> int:
    """From the lowest level to the highest, in steps."""
    return spec.limits[1] - spec.limits[0]


def _elements(model: ir.Model, group: Group) -> int:
    tensors = (model.graph.initializers[name].const_value for name in group.tensors)
    return sum(tensor.size for tensor in tensors if tensor is not None)


@dataclass(frozen=True)
class Candidate:
    """Nodes that become float together.

    Attributes:
        nodes: their names, in graph order.
        gain: noise over signal, at the outputs, that goes with them.
    """

    nodes: tuple[str, ...]
    gain: float


@dataclass(frozen=True)
class _Point:
    """What must be float so that this much noise goes away."""

    nodes: frozenset[str]
    noise: float


def candidates(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[Candidate]:
    """All nodes of ``plan``, each once, those that are worth most first.

    Args:
        model: the model of ``plan``.
        plan: what is quantized.
        noises: of its groups, what each alone does to the outputs (noise over signal).
    """
    points = _points(model, plan, noises)
    touching = _touching(points)
    order = {name: position for position, name in enumerate(plan.integer_nodes)}
    done, result = set[str](), list[Candidate]()
    while left := [point for point in points if not point.nodes <= done]:
        found = {point.nodes - done: _gain(point.nodes - done, done, touching) for point in left}
        nodes = max(found, key=lambda nodes: (found[nodes] / len(nodes), [-order[n] for n in sorted(nodes)]))
        result.append(Candidate(tuple(sorted(nodes, key=order.__getitem__)), found[nodes]))
        done |= nodes
    result += [Candidate((name,), 0.0) for name in plan.integer_nodes if name not in done]
    return result


def _points(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[_Point]:
    values = ir.convenience.create_value_mapping(model.graph)
    nodes: dict[str, set[str]] = {name: set() for name in plan.groups}
    for point in plan.points:
        nodes[point.group].add(point.consumer)
    for group in plan.groups.values():
        if not group.constant:
            nodes[group.name].update(_maker(values[tensor], plan) for tensor in group.tensors)
    planned = {name: frozenset(found & plan.integer_nodes.keys()) for name, found in nodes.items()}
    return [_Point(found, noises[name]) for name, found in planned.items() if found]


def _maker(value: ir.Value, plan: QuantPlan) -> str:
    """The planned node that has to give ``value`` in integers, if any; Relu and Clip fuse with it."""
    node = value.producer()
    while node is not None and node.name not in plan.integer_nodes and clip_range(node) is not None:
        node = producer_of(node.inputs[0])
    if node is None or node.name not in plan.integer_nodes:
        return ""
    free = get_target(plan.target).rules[node.op_type].output is Output.FREE
    return "" if free else name_of(node)


def _touching(points: Sequence[_Point]) -> Mapping[str, list[_Point]]:
    touching: dict[str, list[_Point]] = {}
    for point in points:
        for name in point.nodes:
            touching.setdefault(name, []).append(point)
    return touching


def _gain(nodes: frozenset[str], done: set[str], touching: Mapping[str, list[_Point]]) -> float:
    """The noise that goes when ``nodes`` become float, those of ``done`` being so."""
    near = {id(point): point for name in nodes for point in touching[name]}
    return sum(point.noise for point in near.values() if point.nodes <= done | nodes)


TRIFLE = 0.01
"""Of the bytes of a rung: what saves less is not taken back alone. Of many trials on the same samples some
pass by luck, and for a few bytes that is not worth it."""


@dataclass(frozen=True)
class PrecisionChange:
    """Steps that are taken together.

    Attributes:
        steps: one a node.
        back: what to try to do without later, one after the other; nothing where that would save too little.
    """

    steps: Steps
    back: tuple[Steps, ...]


SearchStage = Sequence[PrecisionChange]
"""Those that are worth most first."""


def stages(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[SearchStage]:
    """All stages, the cheap ones first.

    Args:
        model: the model of ``plan``.
        plan: what is quantized.
        noises: of its groups, what each alone does to the outputs (noise over signal).
    """
    rungs = widenings(model, plan, noises)
    left = {**noises, **{one.group: one.left for rung in rungs for one in rung}}
    return [*map(_wider, rungs), [_float(one) for one in candidates(model, plan, left)]]


def _wider(rung: Sequence[Widening]) -> SearchStage:
    """Nodes that share weights stay together: else these would be in the file twice."""
    least = TRIFLE * sum(one.cost for one in rung)
    steps = [Steps(Precision(node, one.form) for node in one.nodes) for one in rung]
    return [
        PrecisionChange(own, (own,) if one.cost >= least else ())
        for own, one in zip(steps, rung, strict=True)
    ]


def _float(candidate: Candidate) -> PrecisionChange:
    """All nodes may be taken back together, or else some of them."""
    steps = keep_float(candidate.nodes)
    return PrecisionChange(steps, tuple(dict.fromkeys((steps, *map(Steps, zip(sorted(steps)))))))


def taken(moves: SearchStage) -> Steps:
    """The steps of all ``moves``."""
    return Steps().union(*(move.steps for move in moves))

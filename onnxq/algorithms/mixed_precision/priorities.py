"""The order in which weights and activations get wider formats and nodes are kept in float, in stages.

The first stages give weights wider formats, which costs bytes. Then activations get wider formats, if the
target has some, which costs time. The last stage keeps nodes in float, which costs more time.

Weights are ordered by the noise that a wider format removes per additional byte. The power of the rounding
noise is proportional to the square of the scale, so the noise of a wider format follows from that of the
current one.

Nodes are ordered by the noise that is removed per float node. The noise of a group disappears only if all
nodes that quantize it are in float: its integer consumers, and its producer if the kernel of that gives only
integers. The noises of the groups are taken as additive, so the order follows from the sensitivities alone.

Wider activations are ordered likewise: a tensor keeps more bits only if the node that gives it and all that
read it have wider activations. The noise of weights remains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import zip_longest

import onnx_ir as ir

from onnxq.algorithms.mixed_precision.steps import (
    FLOAT,
    Precision,
    Steps,
    steps_to,
    wider_activations,
    wider_formats,
)
from onnxq.core.plan import Group, QuantPlan, QuantSpec
from onnxq.graph.nodes import name_of
from onnxq.graph.operators import WEIGHTED, clip_range
from onnxq.graph.walks import producer_of
from onnxq.targets.lookup import get_target
from onnxq.targets.target import Output, Target


@dataclass(frozen=True)
class Widening:
    """A wider format for a group of weights.

    Attributes:
        group: the name of the group.
        nodes: the names of its consumers.
        form: the wider type.
        left: the noise over signal at the outputs with this type.
        gain: the noise over signal that this type removes.
        cost: the number of additional bytes.
    """

    group: str
    nodes: tuple[str, ...]
    form: ir.DataType
    left: float
    gain: float
    cost: float

    @property
    def worth(self) -> float:
        """The removed noise per additional byte."""
        return self.gain / self.cost


def widenings(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[list[Widening]]:
    """List the wider formats that the target supports for the weights of a plan.

    Args:
        model: the model of ``plan``.
        plan: the quantization plan.
        noises: the noise over signal at the outputs, for each group quantized alone.

    Returns:
        Tiers: the first one has the next wider format of each group, the second one the format after that,
        and so on. Each tier is in decreasing order of the noise removed per byte.
    """
    readers, target = _readers(model, plan), get_target(plan.target)
    by_group = [
        list(_widenings(plan.groups[name], nodes, noises[name], _elements(model, plan.groups[name]), target))
        for name, nodes in readers.items()
    ]
    tiers = [[one for one in tier if one is not None] for tier in zip_longest(*by_group)]
    return [sorted(tier, key=lambda one: -one.worth) for tier in tiers]


def _widenings(
    group: Group, nodes: tuple[str, ...], noise: float, elements: int, target: Target
) -> Iterator[Widening]:
    before = group.spec
    for spec in wider_formats(before, target):
        left = noise * (_span(before) / _span(spec)) ** 2
        cost = max(elements, 1) * (spec.dtype.bitwidth - before.dtype.bitwidth) / 8
        yield Widening(group.name, nodes, spec.dtype, left, noise - left, cost)
        noise, before = left, spec


def _readers(model: ir.Model, plan: QuantPlan) -> Mapping[str, tuple[str, ...]]:
    """Map groups that are only read as weights to their consumers."""
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
    """Return the difference of the highest and the lowest level."""
    return spec.limits[1] - spec.limits[0]


def _elements(model: ir.Model, group: Group) -> int:
    tensors = (model.graph.initializers[name].const_value for name in group.tensors)
    return sum(tensor.size for tensor in tensors if tensor is not None)


@dataclass(frozen=True)
class Candidate:
    """Nodes that become float together.

    Attributes:
        nodes: their names, in graph order.
        gain: the noise over signal at the outputs that this removes.
    """

    nodes: tuple[str, ...]
    gain: float


@dataclass(frozen=True)
class _Point:
    """The nodes that must be float to remove the noise of a group."""

    nodes: frozenset[str]
    noise: float


def candidates(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[Candidate]:
    """Order the nodes of a plan for the stage that keeps nodes in float.

    Args:
        model: the model of ``plan``.
        plan: the quantization plan.
        noises: the noise over signal at the outputs, for each group quantized alone.

    Returns:
        Candidates that contain each node once, in decreasing order of the noise removed per node.
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
        if point.converted_from is not None:
            nodes[point.converted_from].add(point.consumer)
    for group in plan.groups.values():
        if not group.constant:
            nodes[group.name].update(_maker(values[tensor], plan) for tensor in group.tensors)
    planned = {name: frozenset(found & plan.integer_nodes.keys()) for name, found in nodes.items()}
    return [_Point(found, noises[name]) for name, found in planned.items() if found]


def _maker(value: ir.Value, plan: QuantPlan) -> str:
    """Return the name of the planned node that must produce ``value`` in integers; empty if there is none.

    A Relu or Clip in between is fused into that node.
    """
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
    """Return the noise that is removed if ``nodes`` become float in addition to ``done``."""
    near = {id(point): point for name in nodes for point in touching[name]}
    return sum(point.noise for point in near.values() if point.nodes <= done | nodes)


TRIFLE = 0.01
"""The share of the bytes of a tier below which a widening is not undone alone.

If many candidates are tried on the same samples, some pass by chance. A few bytes do not justify that risk.
"""


@dataclass(frozen=True)
class PrecisionChange:
    """Steps that are taken together.

    Attributes:
        steps: one step for each node.
        back: the sets of steps that the search later tries to undo, in this order; empty if that would save
            too little.
    """

    steps: Steps
    back: tuple[Steps, ...]


SearchStage = Sequence[PrecisionChange]
"""Changes in decreasing order of their benefit."""


def stages(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[SearchStage]:
    """List the stages of the search, the cheap ones first.

    Args:
        model: the model of ``plan``.
        plan: the quantization plan.
        noises: the noise over signal at the outputs, for each group quantized alone.
    """
    tiers = widenings(model, plan, noises)
    left = {**noises, **{one.group: one.left for tier in tiers for one in tier}}
    above = rungs(model, plan, left)
    return [
        *map(_wider, tiers),
        *([_together(steps_to(one.nodes, rung.form)) for one in rung.candidates] for rung in above),
    ]


@dataclass(frozen=True)
class Rung:
    """A wider format of whole nodes.

    Attributes:
        form: the type of their activations, or `FLOAT`.
        candidates: the nodes that may take it, in decreasing order of the noise removed per node.
    """

    form: ir.DataType
    candidates: tuple[Candidate, ...]


def rungs(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[Rung]:
    """List the wider formats of whole nodes, the cheap ones first: wider activations, if any, then float.

    Args:
        model: the model of ``plan``.
        plan: the quantization plan.
        noises: the noise over signal at the outputs, for each group quantized alone.
    """
    found, left = list[Rung](), dict(noises)
    for form in _wider_activations(model, plan):
        gains = _gains(model, plan, left, form)
        narrow = {name for name, dtype in plan.activation_types.items() if dtype.bitwidth < form.bitwidth}
        able = (_only(one, narrow) for one in candidates(model, plan, gains))
        found.append(Rung(form, tuple(one for one in able if one.nodes)))
        left = {name: noise - gains[name] for name, noise in left.items()}
    return [*found, Rung(FLOAT, tuple(candidates(model, plan, left)))]


def _wider_activations(model: ir.Model, plan: QuantPlan) -> list[ir.DataType]:
    """List the wider types that the target has for the narrowest activations of a plan."""
    weights, target = _readers(model, plan), get_target(plan.target)
    specs = [group.spec for name, group in plan.groups.items() if name not in weights]
    if not specs:
        return []
    narrowest = min(specs, key=lambda spec: spec.dtype.bitwidth)
    return [spec.dtype for spec in wider_activations(narrowest, target)]


def _gains(
    model: ir.Model, plan: QuantPlan, noises: Mapping[str, float], form: ir.DataType
) -> dict[str, float]:
    """Map each group to the noise that it loses if its tensors get the type ``form``; weights lose none."""
    weights = _readers(model, plan)
    left = {
        name: (_span(group.spec) / _span(replace(group.spec, dtype=form))) ** 2
        for name, group in plan.groups.items()
        if name not in weights and group.spec.dtype.bitwidth < form.bitwidth
    }
    return {name: noise * (1 - left.get(name, 1.0)) for name, noise in noises.items()}


def _only(candidate: Candidate, nodes: Set[str]) -> Candidate:
    return replace(candidate, nodes=tuple(name for name in candidate.nodes if name in nodes))


def _wider(tier: Sequence[Widening]) -> SearchStage:
    """Make the stage of a tier.

    Nodes that share weights change together, because otherwise the file would hold the weights twice.
    """
    least = TRIFLE * sum(one.cost for one in tier)
    steps = [Steps(Precision(node, one.form) for node in one.nodes) for one in tier]
    return [
        PrecisionChange(own, (own,) if one.cost >= least else ())
        for own, one in zip(steps, tier, strict=True)
    ]


def _together(steps: Steps) -> PrecisionChange:
    """Make the change of a candidate; it is undone as a whole, or else node by node."""
    return PrecisionChange(steps, tuple(dict.fromkeys((steps, *map(Steps, zip(sorted(steps)))))))


def taken(moves: SearchStage) -> Steps:
    """Return the steps of all ``moves``."""
    return Steps().union(*(move.steps for move in moves))

"""In which order layers become float: those first that take the most noise along for each node.

A group of points is rid of its noise only when every node is float that quantizes it: those that read it in
integers, and what makes it, where its kernel gives nothing but integers. Noises of single points add up, so
the order follows from the sensitivities alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.operators import clip_range
from onnxq.plan import QuantPlan
from onnxq.targets import get_target
from onnxq.targets.target import Output


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
    order = {name: position for position, name in enumerate(plan.nodes)}
    done, result = set[str](), list[Candidate]()
    while left := [point for point in points if not point.nodes <= done]:
        found = {point.nodes - done: _gain(point.nodes - done, done, touching) for point in left}
        nodes = max(found, key=lambda nodes: (found[nodes] / len(nodes), [-order[n] for n in sorted(nodes)]))
        result.append(Candidate(tuple(sorted(nodes, key=order.__getitem__)), found[nodes]))
        done |= nodes
    result += [Candidate((name,), 0.0) for name in plan.nodes if name not in done]
    return result


def _points(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[_Point]:
    values = ir.convenience.create_value_mapping(model.graph)
    nodes: dict[str, set[str]] = {name: set() for name in plan.groups}
    for point in plan.points:
        nodes[point.group].add(point.consumer)
    for group in plan.groups.values():
        if not group.constant:
            nodes[group.name].update(_maker(values[tensor], plan) for tensor in group.tensors)
    planned = {name: frozenset(found & plan.nodes.keys()) for name, found in nodes.items()}
    return [_Point(found, noises[name]) for name, found in planned.items() if found]


def _maker(value: ir.Value, plan: QuantPlan) -> str:
    """The planned node that has to give ``value`` in integers, if any; Relu and Clip fuse with it."""
    node = value.producer()
    while node is not None and node.name not in plan.nodes and clip_range(node) is not None:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.name not in plan.nodes:
        return ""
    free = get_target(plan.target).rules[node.op_type].output is Output.FREE
    return "" if free else node.name or ""


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

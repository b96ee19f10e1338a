"""Fused groups: parts of a model that ONNX Runtime runs as a whole, in float, in integers, or in both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from onnxq.algorithms.autotune.kernel_trace import Traced
from onnxq.core.plan import QuantPlan
from onnxq.graph.nodes import name_of


@dataclass(frozen=True)
class FusionGroup:
    """Nodes that are run in integers together or not at all.

    Attributes:
        nodes: their names.
        planned: those of them that the plan has in integers; where there are none, the group is float anyway.
    """

    nodes: frozenset[str]
    planned: frozenset[str]


@dataclass(frozen=True)
class Boundary:
    """A tensor that passes from one group to others, where some of them may be in integers.

    Attributes:
        tensor: its name.
        source: the group that gives it in integers when it is itself in integers; None: it always comes in
            float, from the graph's inputs or from a kernel that has no integers to give.
        integers: the groups that read it in integers when they are in integers.
        floats: the others that read it; None for a reader outside the graph.
    """

    tensor: str
    source: FusionGroup | None
    integers: tuple[FusionGroup, ...]
    floats: tuple[FusionGroup | None, ...]


@dataclass(frozen=True)
class Parts:
    """The model, cut into fused groups.

    Attributes:
        units: all of them.
        ties: what passes between them in integers, if both ends are.
        makers: every other computed tensor -> the group that makes it.
    """

    units: tuple[FusionGroup, ...]
    ties: tuple[Boundary, ...]
    makers: Mapping[str, FusionGroup]

    @cached_property
    def of_node(self) -> Mapping[str, FusionGroup]:
        """The group of each node."""
        return {name: unit for unit in self.units for name in unit.nodes}


def cut_up(graph: ir.Graph, plan: QuantPlan, in_float: Traced, in_integers: Traced) -> Parts:
    """Groups in which the kernels of both models lie.

    Args:
        graph: the float model.
        plan: what is in integers in the model that ``in_integers`` is of.
        in_float: how the float model is run.
        in_integers: how that one is run.
    """
    units = _units(graph, plan, (in_float.owners, in_integers.owners))
    of_node = {name: unit for unit in units for name in unit.nodes}
    points = {(point.tensor, point.consumer) for point in plan.points if point.consumer in plan.integer_nodes}
    quantized = {point.tensor for point in plan.points} - in_integers.quantized
    ties, makers = [], {}
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        maker, name = value.producer(), name_of(value)
        source = of_node[name_of(maker)] if maker is not None else None
        nodes = [name_of(use.node) for use in value.uses() if use.node.name in of_node]
        readers = dict.fromkeys(of_node[n] for n in nodes if of_node[n] is not source)
        reads = {of_node[node] for node in nodes if (name, node) in points}
        integers = tuple(unit for unit in readers if unit in reads)
        floats = [unit for unit in readers if unit not in reads]
        made = source if name in quantized and source is not None and source.planned else None
        if integers or (made is not None and (floats or value.is_graph_output())):
            ends = (*floats, *([None] if value.is_graph_output() else []))
            ties.append(Boundary(name, made, integers, ends))
        elif source is not None:
            makers[name] = source
    return Parts(units, tuple(ties), makers)


def _units(graph: ir.Graph, plan: QuantPlan, covers: Iterable[Mapping[str, str]]) -> tuple[FusionGroup, ...]:
    """What any of ``covers`` (node -> the node that stands for it) joins."""
    roots = {name_of(node): name_of(node) for node in graph}

    def root(name: str) -> str:
        while roots[name] != name:
            name = roots[name]
        return name

    for owners in covers:
        for node, owner in owners.items():
            roots[root(node)] = root(owner)
    members: dict[str, list[str]] = {}
    for name in roots:
        members.setdefault(root(name), []).append(name)
    return tuple(
        FusionGroup(frozenset(names), frozenset(plan.integer_nodes.keys() & names))
        for names in members.values()
    )

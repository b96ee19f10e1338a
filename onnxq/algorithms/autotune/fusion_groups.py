"""Find fused groups: nodes that ONNX Runtime runs as one kernel in the float or in the integer model."""

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
    """Nodes that are all in integers or all in float.

    Attributes:
        nodes: the names of the nodes.
        planned: the names of those that the plan has in integers; without any, the group is always float.
    """

    nodes: frozenset[str]
    planned: frozenset[str]


@dataclass(frozen=True)
class Boundary:
    """A tensor between groups that may need Q or DQ.

    Attributes:
        tensor: the name of the tensor.
        source: the group that produces the tensor in integers if the group is in integers; None: the tensor
            is always float, because it is a graph input or its kernel gives only float.
        integers: the consumer groups that read the tensor in integers if they are in integers.
        floats: the other consumer groups; None stands for a graph output.
    """

    tensor: str
    source: FusionGroup | None
    integers: tuple[FusionGroup, ...]
    floats: tuple[FusionGroup | None, ...]


@dataclass(frozen=True)
class Parts:
    """A model, split into fused groups.

    Attributes:
        units: all groups.
        ties: the tensors between groups that are integers if both ends are in integers.
        makers: all other computed tensors -> the groups that produce them.
    """

    units: tuple[FusionGroup, ...]
    ties: tuple[Boundary, ...]
    makers: Mapping[str, FusionGroup]

    @cached_property
    def of_node(self) -> Mapping[str, FusionGroup]:
        """The group of each node."""
        return {name: unit for unit in self.units for name in unit.nodes}


def cut_up(graph: ir.Graph, plan: QuantPlan, in_float: Traced, in_integers: Traced) -> Parts:
    """Split a model into the smallest groups such that each kernel of both models lies in one group.

    Args:
        graph: the float model.
        plan: the plan of the integer model.
        in_float: the traced profile of the float model.
        in_integers: the traced profile of the integer model.
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
    """Join the nodes that any of ``covers`` (node -> the node that represents its kernel) joins."""
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

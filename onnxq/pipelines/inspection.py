"""Outline which nodes of a model run in integers, and why others run in float: `onnxq inspect`.

A node that is fused with the node before it (Relu, Clip, the Add of a bias) belongs to that node's group.
Consecutive groups that run in the same type make a region.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import onnx_ir as ir

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.core.plan import GRAPH_OUTPUT, QuantPlan, QuantSpec
from onnxq.graph.files import load
from onnxq.graph.nodes import all_nodes, input_at, name_of
from onnxq.graph.operators import WEIGHTED
from onnxq.graph.qdq.read_qdq import (
    DEQUANTIZE,
    QUANTIZE,
    QdqEdge,
    called,
    computing,
    dequantizer,
    edges,
    layers,
    links,
    readers_quantize,
)
from onnxq.graph.walks import clips_after, sole_producer, unclipped
from onnxq.pipelines.dynamic import prepare_dynamic
from onnxq.pipelines.preflight import QUANTIZED, as_onnxq_errors
from onnxq.pipelines.prepare import prepare
from onnxq.pipelines.weight_only import prepare_weights
from onnxq.planner.eligibility import computes_reals

Runs = Literal["integers", "float", "neighbours"]
"""What a group runs in; "neighbours": a pass-through node, which runs in the type of its neighbours."""


@dataclass(frozen=True)
class FusedGroup:
    """A node and what is fused with it.

    Attributes:
        runs: what the group runs in.
        nodes: (name, operator type) of each, in the order of the graph.
        told: in integers: the types of its inputs; in float: the reason.
    """

    runs: Runs
    nodes: tuple[tuple[str, str], ...]
    told: str = ""

    @property
    def operators(self) -> tuple[str, ...]:
        """The operator types of the nodes."""
        return tuple(op_type for _, op_type in self.nodes)


@dataclass(frozen=True)
class Inspection:
    """A model's outline.

    Attributes:
        title: the name of the model.
        groups: in the order of the graph.
        plan: the plan; None for a model that has Q/DQ already.
    """

    title: str
    groups: tuple[FusedGroup, ...]
    plan: QuantPlan | None = None

    @property
    def regions(self) -> Iterator[tuple[Runs, tuple[FusedGroup, ...]]]:
        """Consecutive groups that run in the same."""
        for runs, groups in groupby(self.groups, key=lambda group: group.runs):
            yield runs, tuple(groups)

    def count(self, runs: Runs) -> int:
        """Count the groups that run in ``runs``."""
        return sum(group.runs == runs for group in self.groups)


def inspect(path: str | os.PathLike[str], config: QuantConfig) -> Inspection:
    """Outline the plan for a float model, or the quantized nodes of a model with Q/DQ.

    Raises:
        OnnxqError: the model cannot be read or has nothing to quantize, or there is no such target.
    """
    with as_onnxq_errors(path):
        model = load(path)
        if not any(QUANTIZED.fullmatch(node.op_type) for node in all_nodes(model)):
            return of_plan(os.fspath(path), *_planned(path, config))
        if not any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in model.graph):
            raise ModelError(f"{path}: quantized in another way than with QuantizeLinear: nothing to inspect")
        return Inspection(f"{os.fspath(path)}, quantized already", tuple(_as_it_is(model.graph)))


def planned(path: str | os.PathLike[str], config: QuantConfig) -> tuple[ir.Model, QuantPlan]:
    """Clean the model and make its plan, in the requested mode.

    Raises:
        OnnxqError: as `inspect`.
    """
    with as_onnxq_errors(path):
        return _planned(path, config)


def _planned(path: str | os.PathLike[str], config: QuantConfig) -> tuple[ir.Model, QuantPlan]:
    modes = {"dynamic": prepare_dynamic, "weight-only": prepare_weights}
    return modes.get(config.mode, prepare)(path, config)


# --- a plan ---------------------------------------------------------------------------------------


def of_plan(title: str, model: ir.Model, plan: QuantPlan) -> Inspection:
    """Outline a plan.

    Args:
        title: the name of the model.
        model: the cleaned model.
        plan: its plan.
    """
    heads: dict[str, list[ir.Node]] = {}
    head_of: dict[ir.Node, str] = {}
    known = {*plan.integer_nodes, *plan.float_nodes, *plan.passthrough_nodes}
    for node in model.graph:
        name = name_of(node)
        if name not in known:
            name = _head(node, head_of)
        if name:
            heads.setdefault(name, []).append(node)
            head_of[node] = name
    types = _types(plan)
    groups = [_group(name, nodes, plan, types.get(name, "")) for name, nodes in heads.items()]
    inside = [(n, f) for n, f in plan.float_nodes.items() if n not in heads]
    bodies = [
        FusedGroup("integers", ((name, op),)) for name, op in plan.integer_nodes.items() if name not in heads
    ]
    bodies += [FusedGroup("float", ((name, node.op_type),), node.reason) for name, node in inside]
    return Inspection(f"{title} for {plan.target}", (*groups, *bodies), plan)


def _head(node: ir.Node, head_of: dict[ir.Node, str]) -> str:
    """Name the node that this one is fused with; empty if it computes no float numbers."""
    if not computes_reals(node):
        return ""
    makers = (value.producer() for value in node.inputs if value is not None)
    return next((head_of[maker] for maker in makers if maker in head_of), "")


def _group(name: str, nodes: Iterable[ir.Node], plan: QuantPlan, types: str) -> FusedGroup:
    named = tuple((name_of(node), node.op_type) for node in nodes)
    if name in plan.integer_nodes:
        return FusedGroup("integers", named, types)
    if name in plan.float_nodes:
        return FusedGroup("float", named, plan.float_nodes[name].reason)
    return FusedGroup("neighbours", named)


def _types(plan: QuantPlan) -> dict[str, str]:
    """Describe the integer types that each node reads."""
    found: dict[str, dict[str, None]] = {}
    for point in plan.points:
        if point.consumer != GRAPH_OUTPUT:
            found.setdefault(point.consumer, {})[_type(point.spec)] = None
    return {name: " x ".join(types) for name, types in found.items()}


def _type(spec: QuantSpec) -> str:
    name = spec.dtype.name.lower()
    if spec.block_size is not None:
        return f"{name} in blocks of {spec.block_size}"
    return name if spec.axis is None else f"{name} per channel"


# --- a model that has Q/DQ ------------------------------------------------------------------------


def _as_it_is(graph: ir.Graph) -> Iterator[FusedGroup]:
    """Group each node with the Relu and Clip that runtimes fuse with it; other fusions are not known here."""
    integers = {*layers(graph), *links(graph)}
    integers |= {node for node in computing(graph) if _is_fused_sum(node, integers)}
    fused: set[ir.Node] = set()
    for node in computing(graph):
        if node in fused or not computes_reals(node):
            continue
        able = node in integers or node.op_type in WEIGHTED
        group = (node, *(clips_after(node.outputs[0]) if able else ()))
        fused.update(group)
        named = tuple((called(one), one.op_type) for one in group)
        if node in integers:
            types = dict.fromkeys(_read(edge) for edge in edges(node) if edge.kind != "bias")
            yield FusedGroup("integers", named, " x ".join(types))
        else:
            yield FusedGroup("float", named, _why(node))


def _is_fused_sum(node: ir.Node, integers: Set[ir.Node]) -> bool:
    """Whether the node adds a quantized tensor to the output of a layer, which is not rounded in between."""
    if node.op_type != "Add" or not readers_quantize(unclipped(node.outputs[0])):
        return False
    direct = [value for value in node.inputs if dequantizer(value) is None]
    return len(direct) == 1 and sole_producer(direct[0]) in integers


def _read(edge: QdqEdge) -> str:
    name = edge.dtype.name.lower() if edge.dtype is not None else "unknown"
    if edge.in_blocks:
        return f"{name} in blocks"
    return name if edge.axis is None else f"{name} per channel"


def _why(node: ir.Node) -> str:
    """Say what is missing for the node to run in integers."""
    operator = WEIGHTED.get(node.op_type)
    if operator is not None:
        sides = {"data": operator.data, "weights": operator.weight}
        missing = [side for side, i in sides.items() if dequantizer(input_at(node, i)) is None]
        return f"no DequantizeLinear before its {' and '.join(missing)}"
    if any(value is not None and value.is_graph_input() for value in node.inputs):
        return "it reads an input of the model, in float"
    if not any(dequantizer(value) for value in node.inputs):
        return "it reads no integers"
    return "it reads integers, but not all of its inputs and outputs are quantized"

"""Make a `QuantPoint` for each quantized edge and a `BiasPoint` for each int32 bias."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set

import onnx_ir as ir

from onnxq.core.plan import GRAPH_OUTPUT, BiasPoint, Group, QuantPoint
from onnxq.graph.nodes import name_of
from onnxq.graph.operators import INPUT_CHANNELS, WEIGHTED, clip_range
from onnxq.planner.context import (
    PlanningContext,
    sole_reader,
)
from onnxq.planner.edges import Edge, Key, bias_inputs, input_spec, is_constant, make_edge
from onnxq.targets.target import BiasStyle

# --- Points -----------------------------------------------------------------------------------


def find_points(
    edges: Sequence[Edge], groups: Mapping[Key, Group], planned: Collection[ir.Node], context: PlanningContext
) -> Iterator[QuantPoint]:
    """Make a `QuantPoint` of each edge.

    Args:
        edges: all quantized edges.
        groups: the group of each tensor.
        planned: the nodes to quantize.
        context: the planning context.
    """
    quantized = {edge.value for edge in edges}
    for edge in edges:
        consumer = GRAPH_OUTPUT if edge.node is None else name_of(edge.node)
        guarded = _has_float_constants(edge, planned, context) and _is_guarded(edge, quantized, context)
        yield QuantPoint(
            tensor=name_of(edge.value),
            consumer=consumer,
            input_index=edge.index,
            spec=edge.spec,
            group=groups[edge.key].name,
            replicated_scale=_spread(edge) if guarded else None,
            converted_from=None if edge.source is None else groups[edge.source].name,
        )


def _has_float_constants(edge: Edge, planned: Collection[ir.Node], context: PlanningContext) -> bool:
    """Whether the node that reads this edge has weights or a bias that must be kept in float."""
    if edge.node is None or edge.node not in planned:
        return True
    return context.target.bias is BiasStyle.FLOAT and any(bias_inputs(edge.node, context))


def _is_guarded(edge: Edge, quantized: Set[ir.Value], context: PlanningContext) -> bool:
    """Whether the runtime would by itself quantize the weights or the bias of the node that reads this edge.

    It does so if the node's output has a Q too, possibly after Relu or Clip.
    """
    node = edge.node
    if node is None or node not in context.position or node.op_type not in context.target.keep_float_weights:
        return False
    operator = WEIGHTED[node.op_type]
    if edge.index != operator.data or not is_constant(node, operator.weight):
        return False
    output = node.outputs[0]
    while output not in quantized:
        reader = sole_reader(output, context)
        if reader is None or clip_range(reader) is None:
            return False
        output = reader.outputs[0]
    return True


def _spread(edge: Edge) -> tuple[int, int]:
    assert edge.node is not None
    weight = edge.node.inputs[WEIGHTED[edge.node.op_type].weight]
    assert weight is not None
    assert weight.shape is not None
    return INPUT_CHANNELS[edge.node.op_type](edge.node, tuple(weight.shape.numpy()))


def find_biases(
    planned: Iterable[ir.Node], groups: Mapping[Key, Group], context: PlanningContext
) -> Iterator[BiasPoint]:
    """Yield the int32 biases of the planned nodes.

    Args:
        planned: the nodes to quantize.
        groups: the group of each tensor.
        context: the planning context.
    """
    if context.target.bias is not BiasStyle.INT32:
        return
    for node in planned:
        for holder, index in bias_inputs(node, context):
            operator, bias = WEIGHTED.get(node.op_type), holder.inputs[index]
            assert bias is not None
            data, weight = (operator.data, operator.weight) if operator is not None else (0, 1)
            edges = [make_edge(node, i, input_spec(node, i, context)) for i in (data, weight)]
            data_group, weight_group = (groups[edge.key].name for edge in edges)
            yield BiasPoint(name_of(bias), name_of(holder), index, data_group, weight_group)

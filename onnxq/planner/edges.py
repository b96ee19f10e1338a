"""The quantized edges of the planned nodes, and their number formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxq.core.plan import QuantSpec
from onnxq.graph.nodes import constant_value, input_at, name_of
from onnxq.graph.operators import SUMMED_AXIS, WEIGHTED
from onnxq.planner.apply_overrides import block_spec, is_per_tensor, weight_spec
from onnxq.planner.context import (
    PlanningContext,
    bias_add,
    integer_inputs,
    integer_outputs,
    mixed_consumers,
)
from onnxq.targets.target import BiasStyle

Key = tuple[str, QuantSpec]
"""A tensor in one number format."""


@dataclass(frozen=True)
class Edge:
    """A quantized edge from a tensor to one of its readers.

    Attributes:
        value: the tensor.
        node: the node that reads it; None for a graph output.
        index: the input index of ``node``, or the position of the graph output.
        spec: the number format.
        written: the format in which the tensor is written, if that has another width: it is converted.
    """

    value: ir.Value
    node: ir.Node | None
    index: int
    spec: QuantSpec
    written: QuantSpec | None = None

    @property
    def key(self) -> Key:
        """The tensor in the edge's number format."""
        return name_of(self.value), self.spec

    @property
    def source(self) -> Key | None:
        """The tensor in the format in which it is written, if it is converted."""
        return None if self.written is None else (name_of(self.value), self.written)


def find_edges(planned: Iterable[ir.Node], context: PlanningContext) -> list[Edge]:
    """List every quantized edge once: inputs of planned nodes, and all readers of their integer outputs.

    A node gives its outputs in the format of its activations, and readers of another width convert them.
    """
    edges: dict[tuple[ir.Node | None, int], Edge] = {}
    for node in planned:
        for index in integer_inputs(node, context):
            edges[node, index] = make_edge(node, index, input_spec(node, index, context))
        if context.target.bias is BiasStyle.OWN:
            edges |= {place: make_edge(*place, _bias_spec(context)) for place in bias_inputs(node, context)}
    read = {edge.value for edge in edges.values()}
    written: dict[ir.Value, QuantSpec] = {}
    for node in planned:
        for value in dict.fromkeys((*integer_outputs(node, context), *mixed_consumers(node, read, context))):
            written[value] = context.activation_of(node)
            for reader, index in _readers(value, context.graph):
                edges.setdefault((reader, index), Edge(value, reader, index, written[value]))
    return [_converting(edge, written.get(edge.value, edge.spec)) for edge in edges.values()]


def _converting(edge: Edge, written: QuantSpec) -> Edge:
    """Note in ``edge`` that it converts its tensor, if that is ``written`` with another width."""
    return edge if written.dtype.bitwidth == edge.spec.dtype.bitwidth else replace(edge, written=written)


def make_edge(node: ir.Node, index: int, spec: QuantSpec) -> Edge:
    """Make the edge into input ``index`` of ``node``, in the number format ``spec``.

    Args:
        node: the node that reads the tensor.
        index: which of its inputs.
        spec: the number format.
    """
    value = node.inputs[index]
    assert value is not None
    return Edge(value, node, index, spec)


def _readers(value: ir.Value, graph: ir.Graph) -> Iterator[tuple[ir.Node | None, int]]:
    yield from ((use.node, use.idx) for use in value.uses())
    yield from ((None, i) for i, output in enumerate(graph.outputs) if output is value)


def input_spec(node: ir.Node, index: int, context: PlanningContext) -> QuantSpec:
    """The number format of input ``index`` of ``node``, as a weight or as an activation.

    Args:
        node: a planned node.
        index: which of its inputs.
        context: the planning context.
    """
    operator, ends = (
        WEIGHTED.get(node.op_type),
        context.target.first_last_formats if node in context.ends else None,
    )
    if operator is None or index != operator.weight or not is_constant(node, index):
        return ends.activation if ends else _activation_spec(node, context)
    if node in context.in_blocks:
        blocks = block_spec(node, context)
        assert blocks is not None
        return replace(blocks, axis=SUMMED_AXIS[node.op_type](node))
    weight = node.inputs[index]
    assert weight is not None
    assert weight.shape is not None
    spec = weight_spec(node, context) or (ends.weight if ends else context.formats.weight)
    assert spec is not None
    return replace(
        spec,
        axis=operator.channel_axis(node, len(weight.shape)) if _per_channel(node, spec, context) else None,
    )


def _activation_spec(node: ir.Node, context: PlanningContext) -> QuantSpec:
    """The number format of the inputs that ``node`` computes with; a rule of the target has precedence."""
    rule, operator = context.target.rules.get(node.op_type), WEIGHTED.get(node.op_type)
    if rule is None:
        return context.activation_of(node)
    dynamic = operator is not None and not is_constant(node, operator.weight)
    return (rule.dynamic_inputs if dynamic else None) or rule.inputs or context.activation_of(node)


def _per_channel(node: ir.Node, spec: QuantSpec, context: PlanningContext) -> bool:
    types = context.target.per_channel_types
    allowed = types is None or spec.dtype in types
    return allowed and context.target.rules[node.op_type].per_channel and not is_per_tensor(node, context)


def _bias_spec(context: PlanningContext) -> QuantSpec:
    """The number format of biases that have a scale of their own."""
    assert context.formats.weight is not None
    return context.formats.weight


def is_constant(node: ir.Node, index: int) -> bool:
    """Whether input ``index`` of ``node`` is an initializer."""
    return constant_value(input_at(node, index)) is not None


def bias_inputs(node: ir.Node, context: PlanningContext) -> Iterator[tuple[ir.Node, int]]:
    """Yield where the bias of ``node`` is read, as (node, input index): by itself, or by the Add after it."""
    operator = WEIGHTED.get(node.op_type)
    if node in context.in_blocks:
        return
    index = context.target.rules[node.op_type].bias if operator is None else operator.bias
    if index is not None and input_at(node, index) is not None:
        yield node, index
    if found := bias_add(node, context):
        yield found

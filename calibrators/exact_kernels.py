"""Copies of a model that ONNX Runtime's exact 8-bit kernels take: that option has faults of its own."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

ZERO_POINT = 2
"""The position of the zero point of a DequantizeLinear."""


def has_blocks(model: ir.Model) -> bool:
    """Whether int8 weights have per-block scales: their kernels are exact, and the option breaks them."""
    return any(
        node.op_type == "DequantizeLinear"
        and "block_size" in node.attributes
        and node.inputs[0] is not None
        and node.inputs[0].dtype == ir.DataType.INT8
        for graph in model.graphs()
        for node in graph
    )


def with_zero_points(model: ir.Model) -> ir.Model:
    """Give int8 weights with a scale per channel the zero points that are left out, in a copy of the model.

    They are 0. For exact kernels ONNX Runtime makes the weights unsigned, and adds one zero point for all
    channels, which DequantizeLinear then refuses. If nothing is left out, the model itself is returned.
    """
    if not any(_lacks_zero_points(node) for graph in model.graphs() for node in graph):
        return model
    copy = model.clone()
    for graph in copy.graphs():
        for node in filter(_lacks_zero_points, graph):
            size, name = _size_of_scale(node), f"{node.outputs[0].name}/zeros"
            value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT8), shape=ir.Shape([size]))
            value.const_value = ir.tensor(np.zeros(size, np.int8), name=name)
            graph.register_initializer(value)
            node.resize_inputs(ZERO_POINT + 1)
            node.replace_input_with(ZERO_POINT, value)
    return copy


def _lacks_zero_points(node: ir.Node) -> bool:
    if node.op_type != "DequantizeLinear" or not _is_int8_weight(node.inputs[0]):
        return False
    given = len(node.inputs) > ZERO_POINT and node.inputs[ZERO_POINT] is not None
    return not given and "block_size" not in node.attributes and _size_of_scale(node) > 1


def _size_of_scale(node: ir.Node) -> int:
    scale = node.inputs[1].const_value if node.inputs[1] is not None else None
    return 0 if scale is None else scale.size


def with_own_weights(model: ir.Model) -> ir.Model:
    """Copy the model so that each reader of int8 weights has an initializer of its own; data stay shared.

    For exact kernels ONNX Runtime converts the weights to unsigned ones, once per reader. It uses the same
    name each time, which fails if two readers share an initializer, or a QuantizeLinear or DequantizeLinear
    of one.
    """
    copy = model.clone()
    for graph in copy.graphs():
        for node in reversed(list(graph)):
            if _is_weight_pair(node):
                _repeat_for_each_reader(node)
        for value in list(graph.initializers.values()):
            if _is_int8_weight(value) or any(_is_weight_pair(use.node) for use in value.uses()):
                for use in list(value.uses())[1:]:
                    use.node.replace_input_with(use.idx, _own_initializer(value, graph))
    return copy


def _is_weight_pair(node: ir.Node) -> bool:
    """Whether the node quantizes or dequantizes a weight."""
    source: ir.Node | None = node
    while source is not None and source.op_type in ("QuantizeLinear", "DequantizeLinear"):
        value = source.inputs[0]
        if value is None or value.is_initializer():
            return value is not None
        source = value.producer()
    return False


def _is_int8_weight(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.dtype == ir.DataType.INT8


def _repeat_for_each_reader(node: ir.Node) -> None:
    """Give each reader of ``node`` a node of its own with the same inputs and attributes."""
    output, graph = node.outputs[0], node.graph
    for number, use in enumerate(list(output.uses())[1:]):
        attributes = list(node.attributes.values())
        again = ir.Node(node.domain, node.op_type, node.inputs, attributes, name=f"{node.name}/{number}")
        again.outputs[0].name = f"{output.name}/{number}"
        again.outputs[0].type, again.outputs[0].shape = output.type, output.shape
        use.node.replace_input_with(use.idx, again.outputs[0])
        if graph is not None:
            graph.insert_after(node, again)


def _own_initializer(value: ir.Value, graph: ir.Graph) -> ir.Value:
    """Register a copy of an initializer under a name of its own."""
    number = next(n for n in itertools.count() if f"{value.name}/{n}" not in graph.initializers)
    name = f"{value.name}/{number}"
    own = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
    graph.register_initializer(own)
    return own

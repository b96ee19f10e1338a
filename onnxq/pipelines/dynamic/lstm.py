"""Quantize LSTM: ONNX Runtime's DynamicQuantizeLSTM quantizes data and state by itself.

It needs both weights transposed, ``[directions, K, 4 * hidden]``, with one scale per column and direction.
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import constant_value, input_at, int_attribute
from onnxq.pipelines.dynamic.input_checks import needs_float
from onnxq.pipelines.dynamic.rewriter import Array, Layout, ModelRewriter, pack_rows
from onnxq.pipelines.dynamic.weight_only import stored_obstacle

INPUTS = 8
"""The number of inputs of an LSTM; scales and zero points of the weights follow after them."""


def lstm_obstacle(node: ir.Node) -> str | None:
    """Say why this LSTM is kept in float; None if it can be quantized."""
    if int_attribute(node, "layout", 0):
        return "its layout is 1, the integer kernel needs 0"
    return needs_float(node.inputs[0]) or stored_obstacle(node)


def rewrite_lstm(node: ir.Node, rewriter: ModelRewriter) -> None:
    """Replace the node by DynamicQuantizeLSTM."""
    inputs = [input_at(node, index) for index in range(INPUTS)]
    for index in (1, 2):
        weight = inputs[index]
        assert weight is not None
        inputs[index], scale = rewriter.packed(weight, 1, _LAYOUT)
        inputs += [scale, _zeros(scale, rewriter)]
    attributes = {name: value for name, value in node.attributes.items() if name != "layout"}
    rewriter.substitute(node, "DynamicQuantizeLSTM", inputs, attributes)


def _transposed(array: Array) -> Array:
    return np.swapaxes(array, 1, 2)


def _per_direction(scale: Array) -> Array:
    """Reshape scales to ``[directions, 4 * hidden]``, or to ``[directions]`` if they are per tensor."""
    return scale[:, :, 0] if scale.shape[1] > 1 else scale.reshape(-1)


_LAYOUT = Layout(pack_rows, _transposed, _per_direction)


def _zeros(scale: ir.Value, rewriter: ModelRewriter) -> ir.Value:
    array = constant_value(scale)
    assert array is not None
    return rewriter.constant(f"{scale.name}_zero_point", np.zeros(array.shape, np.int8))

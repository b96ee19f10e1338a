"""Rewrite operators that compute in integers (QOperator form) as float operators between Q and DQ.

    QLinearConv(x, w)  ->  QuantizeLinear(Conv(DequantizeLinear(x), DequantizeLinear(w)))

That is their definition, up to rounding: https://onnx.ai/onnx/operators/onnx__QLinearConv.html and
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import (
    add_initializer,
    all_nodes,
    input_at,
    int_attribute,
    name_of,
    rank,
    replace_value,
)
from onnxq.graph.operators import WEIGHTED
from onnxq.graph.qdq.read_qdq import DEQUANTIZE, QUANTIZE, SCALE, constant

Accepts = Callable[[ir.Node], bool]


@dataclass(frozen=True)
class IntegerOperator:
    """The roles of the inputs of an operator in integers.

    Attributes:
        op_type: the float operator.
        data: positions of the integers; scale and zero point follow each.
        output: position of the scale of the output; its zero point follows. The output is float without it.
        bias: position of the int32 bias; None if there is none.
        others: positions of inputs that are passed on before the data.
        dropped: attributes that the float operator does not have.
        accepts: whether the float operator computes the same as this node.
    """

    op_type: str
    data: tuple[int, ...]
    output: int
    bias: int | None = None
    others: tuple[int, ...] = ()
    dropped: tuple[str, ...] = ()
    accepts: Accepts = lambda node: True


def _channels_first(node: ir.Node) -> bool:
    return int_attribute(node, "channels_last", 0) == 0


OPSET_OF_SOFTMAX_ALONG_ONE_AXIS = 13


def _along_one_axis(node: ir.Node) -> bool:
    return int_attribute(node, "opset", 0) >= OPSET_OF_SOFTMAX_ALONG_ONE_AXIS


def _pool(op_type: str) -> IntegerOperator:
    return IntegerOperator(op_type, (0,), 3, dropped=("channels_last",), accepts=_channels_first)


INTEGER_OPERATORS: Mapping[str, IntegerOperator] = {
    "QLinearConv": IntegerOperator("Conv", (0, 3), 6, bias=8),
    "QLinearMatMul": IntegerOperator("MatMul", (0, 3), 6),
    "QGemm": IntegerOperator("Gemm", (0, 3), 7, bias=6),
    "QLinearAdd": IntegerOperator("Add", (0, 3), 6),
    "QLinearMul": IntegerOperator("Mul", (0, 3), 6),
    "QLinearSigmoid": IntegerOperator("Sigmoid", (0,), 3),
    "QLinearLeakyRelu": IntegerOperator("LeakyRelu", (0,), 3),
    "QLinearSoftmax": IntegerOperator("Softmax", (0,), 3, dropped=("opset",), accepts=_along_one_axis),
    "QLinearAveragePool": _pool("AveragePool"),
    "QLinearGlobalAveragePool": _pool("GlobalAveragePool"),
    "QLinearWhere": IntegerOperator("Where", (1, 4), 7, others=(0,)),
}
"""Operator -> its roles. The list of QLinearConcat depends on the node, see `_roles`."""


def use_pairs(model: ir.Model) -> None:
    """Rewrite the operators of `INTEGER_OPERATORS`, and QLinearConcat, in place; others stay."""
    for node in list(all_nodes(model)):
        roles = _roles(node)
        if roles is not None and roles.accepts(node):
            _rewrite(model, node, roles)


def _roles(node: ir.Node) -> IntegerOperator | None:
    if node.op_type == "QLinearConcat":
        return IntegerOperator("Concat", tuple(range(2, len(node.inputs), 3)), 0)
    return INTEGER_OPERATORS.get(node.op_type)


def _rewrite(model: ir.Model, node: ir.Node, roles: IntegerOperator) -> None:
    assert node.graph is not None
    inputs = [node.inputs[index] for index in roles.others]
    before = [_dequantize(model, node, index, roles) for index in roles.data]
    bias = None if roles.bias is None else input_at(node, roles.bias)
    if bias is not None:
        before.append(_dequantize_bias(model, node, bias, roles))
    attributes = [each for name, each in node.attributes.items() if name not in roles.dropped]
    inputs += [each.outputs[0] for each in before]
    real = ir.Node("", roles.op_type, inputs, attributes, name=node.name)
    node.graph.insert_before(node, [*before, real])
    old, new = node.outputs[0], real.outputs[0]
    if (scale := input_at(node, roles.output)) is not None:
        again = ir.node(QUANTIZE, [new, scale, node.inputs[roles.output + 1]], name=f"{node.name}_quantize")
        node.graph.insert_before(node, again)
        new.name, new.type, new.shape = f"{old.name}_real", ir.TensorType(ir.DataType.FLOAT), old.shape
        new = again.outputs[0]
    replace_value(old, new)
    node.graph.remove(node, safe=True)


def _dequantize(model: ir.Model, node: ir.Node, index: int, roles: IntegerOperator) -> ir.Node:
    """Make the DequantizeLinear of an input, with the axis of the weight if there is a scale per channel."""
    value, scale, zero = node.inputs[index : index + 3]
    scales, zeros = constant(scale), constant(zero)
    attributes = {}
    if scales is not None and scales.size > 1:
        attributes = {"axis": _axis(node, value, roles)}
        if zeros is not None and zeros.shape != scales.shape:
            zero = add_initializer(model, f"{name_of(value or node)}_zeros", np.full(scales.shape, zeros))
    return _named(ir.node(DEQUANTIZE, [value, scale, zero], attributes=attributes), node, index)


def _axis(node: ir.Node, weight: ir.Value | None, roles: IntegerOperator) -> int:
    """Find the axis of a scale per channel: that of the output channels, or the last one."""
    operator, known = WEIGHTED.get(roles.op_type), rank(weight)
    axis = None if operator is None or known is None else operator.channel_axis(node, known)
    return (known or 0) - 1 if axis is None else axis


def _dequantize_bias(model: ir.Model, node: ir.Node, bias: ir.Value, roles: IntegerOperator) -> ir.Node:
    """Make the DequantizeLinear of an int32 bias, whose scale is data scale x weight scale."""
    scales = list(_scales(node, roles))
    inputs: list[ir.Value | None] = [bias]
    if len(scales) == len(roles.data):
        product = np.prod(np.broadcast_arrays(*scales), axis=0).astype(np.float32)
        inputs.append(add_initializer(model, f"{bias.name}_scale", product))
    axis = max((rank(bias) or 1) - 1, 0)
    return _named(ir.node(DEQUANTIZE, inputs, attributes={"axis": axis}), node, roles.bias or 0)


def _scales(node: ir.Node, roles: IntegerOperator) -> Iterator[NDArray[np.generic]]:
    for index in roles.data:
        if (scale := constant(node.inputs[index + SCALE])) is not None:
            yield scale.reshape(()) if scale.size == 1 else scale


def _named(dequantize: ir.Node, node: ir.Node, index: int) -> ir.Node:
    dequantize.name = f"{node.name}_dequantize_{index}"
    dequantize.outputs[0].name = f"{node.outputs[0].name}_input_{index}"
    return dequantize

"""Take apart what ONNX Runtime's optimizer has fused, in models that were written after it.

::

    FusedConv(x, w, b, z)  ->  Conv(x, w, b), Add of z, activation
    FusedGemm(a, b, c)     ->  Gemm(a, b, c), activation
    FusedMatMul(a, b)      ->  Transpose of a and b, MatMul(a, b), Mul by alpha

Targets have kernels for the parts, and the runtime fuses them again where they stay in float.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import (
    STANDARD_DOMAIN,
    add_initializer,
    all_nodes,
    input_at,
    insert_after,
    int_attribute,
    rank,
    replace_value,
    unused_name,
)

DOMAIN = "com.microsoft"

PARAMETERS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Clip": ("min", "max"),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
"""The activations of FusedConv, and what its list ``activation_params`` has for each."""

PREFIX = "activation_"
"""Beginning of the names of those attributes of FusedGemm that belong to the activation."""


class UnfuseRuntimeFusionsPass(ir.passes.InPlacePass):
    """Replace FusedConv, FusedGemm and FusedMatMul by the operators that they were fused from.

    The node keeps its name and becomes the weighted operator, and the last part gives the output. A node of a
    form that is not known here stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Take apart the nodes of all graphs."""
        rewrites = {"FusedConv": _unfuse_conv, "FusedGemm": _unfuse_gemm, "FusedMatMul": _unfuse_matmul}
        fused = [node for node in all_nodes(model) if node.domain == DOMAIN and node.op_type in rewrites]
        changed = [rewrites[node.op_type](model, node) for node in fused]
        return ir.passes.PassResult(model, modified=any(changed))


def _unfuse_conv(model: ir.Model, node: ir.Node) -> bool:
    activation = node.attributes.get_string("activation", "")
    values = node.attributes.get_floats("activation_params", ())
    parameters = PARAMETERS.get(activation) if activation else ()
    if parameters is None or len(values) < len(parameters):
        return False
    summand = input_at(node, 3)
    node.resize_inputs(min(len(node.inputs), 3))
    _become(node, "Conv", "activation")
    last = node if summand is None else _append(node, "Add", [summand])
    if activation == "Clip":  # since opset 11 its bounds are inputs
        _append(last, activation, [_constant(model, node, value) for value in values])
    elif activation:
        pairs = zip(parameters, values, strict=False)
        _append(last, activation, [], [ir.AttrFloat32(name, value) for name, value in pairs])
    return True


def _unfuse_gemm(model: ir.Model, node: ir.Node) -> bool:
    activation = node.attributes.get_string("activation", "")
    own = [attribute for name, attribute in node.attributes.items() if name.startswith(PREFIX)]
    _become(node, "Gemm", "activation")
    if activation:
        _append(node, activation, [], [ir.Attr(a.name.removeprefix(PREFIX), a.type, a.value) for a in own])
    return True


def _unfuse_matmul(model: ir.Model, node: ir.Node) -> bool:
    """Rewrite the product, unless batch axes are moved or the rank of an operand to transpose is unknown."""
    flipped = [index for index, name in enumerate(("transA", "transB")) if int_attribute(node, name, 0)]
    ranks = {index: rank(node.inputs[index]) or 0 for index in flipped}
    moved = any(int_attribute(node, name, 0) for name in ("transBatchA", "transBatchB"))
    if moved or any(number < 2 for number in ranks.values()) or node.graph is None:
        return False
    alpha = node.attributes.get_float("alpha", 1.0)
    _become(node, "MatMul", "trans", "alpha")
    for index, number in ranks.items():
        perm = ir.AttrInt64s("perm", [*range(number - 2), number - 1, number - 2])
        flip = ir.Node("", "Transpose", [node.inputs[index]], [perm], name=f"{node.name}_transpose_{index}")
        flip.outputs[0].name = f"{node.outputs[0].name}_operand_{index}"
        node.graph.insert_before(node, flip)
        node.replace_input_with(index, flip.outputs[0])
    if alpha != 1:
        _append(node, "Mul", [_constant(model, node, alpha)])
    return True


def _become(node: ir.Node, op_type: str, *prefixes: str) -> None:
    """Make the node a standard operator, without attributes whose names begin with one of the prefixes."""
    node.domain, node.op_type = STANDARD_DOMAIN, op_type
    for name in [name for name in node.attributes if name.startswith(prefixes)]:
        del node.attributes[name]


def _append(
    last: ir.Node, op_type: str, more: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()
) -> ir.Node:
    """Insert an operator after a node; it takes over the output.

    Args:
        last: the node, whose output is the first input of the operator.
        op_type: the operator.
        more: its further inputs.
        attributes: its attributes.
    """
    assert last.graph is not None
    output, name = last.outputs[0], last.outputs[0].name
    part = ir.Node("", op_type, [None, *more], attributes, name=f"{last.name}_{op_type}")
    replace_value(output, part.outputs[0])
    output.name, output.type, output.shape = f"{name}_{op_type}", part.outputs[0].type, part.outputs[0].shape
    part.replace_input_with(0, output)
    insert_after(output, part, last.graph)
    return part


def _constant(model: ir.Model, node: ir.Node, number: float) -> ir.Value:
    kind = node.outputs[0].dtype or ir.DataType.FLOAT
    return add_initializer(model, unused_name(f"{node.name}_constant", model), np.array(number, kind.numpy()))

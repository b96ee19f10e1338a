"""HardSwish and HardSigmoid, recognized in any spelling.

HardSwish, written as several nodes, into the operator of that name.

    x * clip(x + 3, 0, 6) / 6,  (x / 6) * relu6(x + 3),  x * HardSigmoid(x)  ->  HardSwish(x)

with the slope 1/6 and the offset 1/2. One node with one input: ONNX Runtime and OpenVINO fuse it with a float
convolution; between integers it needs one DequantizeLinear, and its parts two.

A line between 0 and 1, written as several nodes, into HardSigmoid.

    clip(x + 3, 0, 6) / 6,  clip(x / 6 + 0.5, 0, 1),  min(relu(0.2 * x + 0.5), 1)  ->  HardSigmoid(x)

What is no shorter that way stays: Add and Clip have integer kernels where HardSigmoid has none.

A node that computes something else from now on, under its own name.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.graph.nodes import all_nodes, is_op
from onnxq.graph.passes._piecewise import Ramp, multiples, ramps, same
from onnxq.graph.passes.opset import OPSET_OF_HARD_SWISH

_SLOPE, _OFFSET = 1 / 6, 1 / 2


class FuseHardSwishPass(ir.passes.InPlacePass):
    """A value times its own HardSigmoid becomes HardSwish, where the opset has that."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the last node of every such group; what only that node read falls away later."""
        known = model.graph.opset_imports.get("", 0) >= OPSET_OF_HARD_SWISH
        found = list(_found(model)) if known else []
        for node, source in found:
            compute_instead(node, "HardSwish", source)
        return ir.passes.PassResult(model, modified=bool(found))


def has_hard_swish(model: ir.Model) -> bool:
    """Whether several nodes together are a HardSwish."""
    return any(_found(model))


def _found(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    """The last nodes, and what they are the HardSwish of."""
    for node in all_nodes(model):
        if is_op(node, "Mul", "Div") and node.outputs[0].dtype in FLOATS:
            source = _hard_swish(node.outputs[0])
            if source is not None:
                yield node, source


def _hard_swish(value: ir.Value) -> ir.Value | None:
    for multiple in multiples(value):
        node = multiple.source.producer()
        if node is not None and is_op(node, "Mul") and len(node.inputs) == 2:
            for source, factor in (*_products(*node.inputs), *_products(*reversed(node.inputs))):
                if same(factor * multiple.slope, 1, value.dtype):
                    return source
    return None


def _products(first: ir.Value | None, second: ir.Value | None) -> Iterator[tuple[ir.Value, float]]:
    """Pairs (x, factor): the product of both is ``factor`` times the HardSwish of ``x``."""
    if first is None or second is None:
        return
    for line in multiples(first):
        for ramp in ramps(second):
            fits = same(ramp.slope, _SLOPE, first.dtype) and same(ramp.offset, _OFFSET, first.dtype)
            if ramp.source is line.source and fits:
                yield ramp.source, line.slope * ramp.height


FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""The types that runtimes have kernels for."""


FEWEST = 3
"""Nodes that one must replace."""


class FuseHardSigmoidPass(ir.passes.InPlacePass):
    """Arithmetic with constants around a Clip becomes HardSigmoid, named after the last node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the last node of every such group; what only that node read falls away later."""
        found = [(node, ramp) for node in all_nodes(model) if (ramp := _hard_sigmoid(node)) is not None]
        for node, ramp in found:
            slope, offset = ir.AttrFloat32("alpha", ramp.slope), ir.AttrFloat32("beta", ramp.offset)
            compute_instead(node, "HardSigmoid", ramp.source, slope, offset)
        return ir.passes.PassResult(model, modified=bool(found))


def _hard_sigmoid(node: ir.Node) -> Ramp | None:
    """The longest group that ends here and has the height 1."""
    value = node.outputs[0]
    if is_op(node, "HardSigmoid") or value.dtype not in FLOATS:
        return None
    fitting = [r for r in ramps(value) if r.nodes >= FEWEST and same(r.height, 1, value.dtype) and r.offset]
    return max(fitting, key=lambda ramp: ramp.nodes, default=None)


def compute_instead(node: ir.Node, op_type: str, source: ir.Value, *attributes: ir.Attr) -> None:
    """Make this node ``op_type`` of ``source``; what it read may then have no readers."""
    node.op_type = op_type
    node.attributes.clear()
    node.attributes.update({attribute.name: attribute for attribute in attributes})
    node.resize_inputs(1)
    node.replace_input_with(0, source)

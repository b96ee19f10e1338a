"""Recognize HardSwish and HardSigmoid that are written as several nodes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.graph.nodes import all_nodes, is_op
from onnxq.graph.passes._piecewise import Ramp, multiples, ramps, same
from onnxq.graph.passes.opset import OPSET_OF_HARD_SWISH

_SLOPE, _OFFSET = 1 / 6, 1 / 2


class FuseHardSwishPass(ir.passes.InPlacePass):
    """Fuse several nodes that compute HardSwish to that operator, if the opset has it.

        x * clip(x + 3, 0, 6) / 6,  (x / 6) * relu6(x + 3),  x * HardSigmoid(x)  ->  HardSwish(x)

    The HardSigmoid must have the slope 1/6 and the offset 1/2. ONNX Runtime and OpenVINO fuse a HardSwish
    with a float convolution. Between integers a HardSwish needs one DequantizeLinear, the separate nodes two.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the last node of every such group; nodes that are then not read are removed later."""
        known = model.graph.opset_imports.get("", 0) >= OPSET_OF_HARD_SWISH
        found = list(_found(model)) if known else []
        for node, source in found:
            compute_instead(node, "HardSwish", source)
        return ir.passes.PassResult(model, modified=bool(found))


def has_hard_swish(model: ir.Model) -> bool:
    """Whether the model has several nodes that together compute HardSwish."""
    return any(_found(model))


def _found(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Yield the last node of each group that computes HardSwish, and the input of that HardSwish."""
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
    """Yield pairs (x, factor) for which the product of both values is ``factor`` times HardSwish(x)."""
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
"""Least number of nodes that a HardSigmoid must replace."""


class FuseHardSigmoidPass(ir.passes.InPlacePass):
    """Fuse arithmetic with constants around a Clip to a HardSigmoid, named after the last node.

        clip(x + 3, 0, 6) / 6,  clip(x / 6 + 0.5, 0, 1),  min(relu(0.2 * x + 0.5), 1)  ->  HardSigmoid(x)

    Groups of fewer than three nodes stay, because Add and Clip have integer kernels and HardSigmoid has none.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the last node of every such group; nodes that are then not read are removed later."""
        found = [(node, ramp) for node in all_nodes(model) if (ramp := _hard_sigmoid(node)) is not None]
        for node, ramp in found:
            slope, offset = ir.AttrFloat32("alpha", ramp.slope), ir.AttrFloat32("beta", ramp.offset)
            compute_instead(node, "HardSigmoid", ramp.source, slope, offset)
        return ir.passes.PassResult(model, modified=bool(found))


def _hard_sigmoid(node: ir.Node) -> Ramp | None:
    """Return the longest group of nodes that ends here and has the height 1; else None."""
    value = node.outputs[0]
    if is_op(node, "HardSigmoid") or value.dtype not in FLOATS:
        return None
    fitting = [r for r in ramps(value) if r.nodes >= FEWEST and same(r.height, 1, value.dtype) and r.offset]
    return max(fitting, key=lambda ramp: ramp.nodes, default=None)


def compute_instead(node: ir.Node, op_type: str, source: ir.Value, *attributes: ir.Attr) -> None:
    """Turn a node into another one that keeps its name; its former inputs may then have no readers.

    Args:
        node: the node; it is changed.
        op_type: the new operator.
        source: its only input.
        attributes: its attributes.
    """
    node.op_type = op_type
    node.attributes.clear()
    node.attributes.update({attribute.name: attribute for attribute in attributes})
    node.resize_inputs(1)
    node.replace_input_with(0, source)

"""Reshape that only merges everything behind the batch axis into Flatten.

    Reshape(x[n, d1 … dk], (n, d1·…·dk))  ->  Flatten(x, axis=1)

whether the shape is a constant such as (0, -1) or computed from the input. A Flatten needs no shape
computation, so the chain of Shape, Gather and Concat that exporters write around it disappears.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxq.graph import all_nodes, constant_value, int_attribute, is_op


class ReshapeToFlattenPass(ir.passes.InPlacePass):
    """[n, …] → [n, k] by Reshape becomes a Flatten."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Reshape that provably keeps the first axis and has two axes left."""
        matches = [node for node in all_nodes(model) if is_op(node, "Reshape") and _keeps_batch(node)]
        for node in matches:
            node.op_type = "Flatten"
            node.attributes.clear()
            node.attributes["axis"] = ir.AttrInt64("axis", 1)
            node.resize_inputs(1)
        return ir.passes.PassResult(model, modified=bool(matches))


def _keeps_batch(node: ir.Node) -> bool:
    source, shape = node.inputs[0], constant_value(node.inputs[1])
    before = None if source is None else source.shape
    if shape is None:
        after = node.outputs[0].shape
        return after is not None and before is not None and _same_batch(before, after)
    target = [int(d) for d in shape.reshape(-1)]
    if len(target) != 2 or 0 in target[1:]:
        return False
    if target[0] == 0:  # copied from the input, whose elements are then all in the second axis
        return not int_attribute(node, "allowzero", 0) and before is not None and len(before) >= 2
    return before is not None and len(before) >= 2 and _same_sizes(before, target)


def _same_batch(before: ir.Shape, after: ir.Shape) -> bool:
    """The same known size, or the same named one, comes first."""
    if len(after) != 2 or len(before) < 2:
        return False
    first, second = before[0], after[0]
    if isinstance(first, ir.SymbolicDim) and first.value is None:
        return False
    return first == second


def _same_sizes(before: ir.Shape, target: list[int]) -> bool:
    """A constant target whose second size is what the input holds behind the batch axis."""
    if target[0] > 0:
        return before[0] == target[0]
    rest = before[1:]
    return ir.Shape(rest).is_static() and target[1] == math.prod(ir.Shape(rest).numpy())

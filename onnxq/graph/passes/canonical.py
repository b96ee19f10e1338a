"""ReduceMean as GlobalAveragePool, Sum as Add, Reshape as Flatten.

ReduceMean over all spatial axes into GlobalAveragePool.

ReduceMean(x[N, C, d1 … dn], axes=2…n+1, keepdims=1)  ->  GlobalAveragePool(x)
ReduceMean(x[N, C, d1 … dn], axes=2…n+1, keepdims=0)  ->  Flatten(GlobalAveragePool(x), axis=1)

Sum of two into Add: ``Sum(a, b) = a + b``, the form that targets know.

Reshape that only merges everything behind the batch axis into Flatten.

    Reshape(x[n, d1 … dk], (n, d1·…·dk))  ->  Flatten(x, axis=1)

whether the shape is a constant such as (0, -1) or computed from the input. A Flatten needs no shape
computation, so the chain of Shape, Gather and Concat that exporters write around it disappears.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxq.graph.nodes import all_nodes, constant_value, input_at, int_attribute, ints_attribute, is_op, rank
from onnxq.graph.passes._weighted import FLOATS


class ReduceMeanToPoolPass(ir.passes.InPlacePass):
    """A spatial mean, however it was written, becomes a GlobalAveragePool."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every ReduceMean over exactly the spatial axes of a tensor of known rank."""
        means = [node for node in all_nodes(model) if _is_spatial_mean(node)]
        for node in means:
            _rewrite(node)
        return ir.passes.PassResult(model, modified=bool(means))


def _is_spatial_mean(node: ir.Node) -> bool:
    if not is_op(node, "ReduceMean") or node.inputs[0] is None or node.inputs[0].dtype not in FLOATS:
        return False
    dims, axes = rank(node.inputs[0]), _axes(node)
    return dims is not None and dims >= 3 and sorted(a % dims for a in axes) == list(range(2, dims))


def _axes(node: ir.Node) -> tuple[int, ...]:
    """The axes as attribute (opset below 18) or input; empty when not constant, or when it means all."""
    stored = constant_value(input_at(node, 1))
    return ints_attribute(node, "axes", ()) if stored is None else tuple(int(a) for a in stored.reshape(-1))


def _rewrite(node: ir.Node) -> None:
    flat = not int_attribute(node, "keepdims", 1)
    node.op_type = "GlobalAveragePool"
    node.attributes.clear()
    node.resize_inputs(1)
    if flat and node.graph is not None:
        _flatten(node, node.graph)


def _flatten(node: ir.Node, graph: ir.Graph) -> None:
    """Put a Flatten behind the node, which leaves its output's name to the Flatten's output."""
    pooled, source = node.outputs[0], node.inputs[0]
    flatten = ir.node("Flatten", inputs=[pooled], attributes={"axis": 1}, name=f"{node.name}_flatten")
    flat = flatten.outputs[0]
    flat.name, flat.shape, flat.type = pooled.name, pooled.shape, pooled.type
    users = [use for use in pooled.uses() if use.node is not flatten]
    for user, index in users:
        user.replace_input_with(index, flat)
    for i, output in enumerate(graph.outputs):
        if output is pooled:
            graph.outputs[i] = flat
    pooled.name = f"{flat.name}_pooled"
    if source is not None and source.shape is not None:
        pooled.shape = ir.Shape([*source.shape[:2], *[1] * (len(source.shape) - 2)])
    graph.insert_after(node, flatten)


class SumToAddPass(ir.passes.InPlacePass):
    """Sum(a, b) becomes Add(a, b); a Sum of one becomes Identity; more operands stay."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename every Sum that has one or two operands."""
        names = {1: "Identity", 2: "Add"}
        sums = [node for node in all_nodes(model) if is_op(node, "Sum") and len(node.inputs) in names]
        for node in sums:
            node.op_type = names[len(node.inputs)]
        return ir.passes.PassResult(model, modified=bool(sums))


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

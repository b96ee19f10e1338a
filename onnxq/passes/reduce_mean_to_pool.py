"""ReduceMean over all spatial axes into GlobalAveragePool.

ReduceMean(x[N, C, d1 … dn], axes=2…n+1, keepdims=1)  ->  GlobalAveragePool(x)
ReduceMean(x[N, C, d1 … dn], axes=2…n+1, keepdims=0)  ->  Flatten(GlobalAveragePool(x), axis=1)
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import all_nodes, constant_value, input_at, int_attribute, ints_attribute, is_op, rank
from onnxq.passes._layer import FLOATS


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

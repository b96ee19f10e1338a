"""Normalizations in primitives, in the form that runtimes know.

PyTorch writes RMS normalization with ``rsqrt``, which becomes a product with Reciprocal. ONNX Runtime makes
one kernel (SimplifiedLayerNormalization) of the form with a quotient, and none of the other. On a CPU that
kernel takes less than half the time, for one position and for 256 (576 channels).
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.nodes import all_nodes, constant_value, input_at, is_op
from onnxq.graph.walks import producer_of


class DivideByRootPass(ir.passes.InPlacePass):
    """Divide by the root of a mean, instead of multiplying with its inverse.

    ::

        x * Reciprocal(Sqrt(v))   ->  x / Sqrt(v)
        x * (1 / Sqrt(v))         ->  x / Sqrt(v)
        x * Pow(v, -0.5)          ->  x / Sqrt(v)        v = ReduceMean(…) + eps
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such product with data; the inverse goes where nothing else reads it."""
        inverses = [node for node in all_nodes(model) if _is_inverse(node) and _multiplies_data(node)]
        for node in inverses:
            _divide(node)
        return ir.passes.PassResult(model, modified=bool(inverses))


def _is_inverse(node: ir.Node) -> bool:
    """Whether a node computes the inverse root of a mean."""
    if is_op(node, "Pow"):
        return _is_all(input_at(node, 1), -0.5) and _is_mean(input_at(node, 0))
    if is_op(node, "Reciprocal"):
        root = producer_of(input_at(node, 0))
    elif is_op(node, "Div") and _is_all(input_at(node, 0), 1):
        root = producer_of(input_at(node, 1))
    else:
        return False
    return root is not None and is_op(root, "Sqrt") and _is_mean(input_at(root, 0))


def _is_all(value: ir.Value | None, number: float) -> bool:
    stored = constant_value(value)
    return stored is not None and stored.size == 1 and float(stored.reshape(-1)[0]) == number


def _is_mean(value: ir.Value | None) -> bool:
    """Whether a value is a mean, to which a constant may be added."""
    node = producer_of(value)
    if is_op(node, "Add") and node is not None:
        means = [each for each in node.inputs if constant_value(each) is None]
        node = producer_of(means[0]) if len(means) == 1 else None
    return is_op(node, "ReduceMean")


def _multiplies_data(node: ir.Node) -> bool:
    inverse = node.outputs[0]
    uses = list(inverse.uses())
    return (
        bool(uses)
        and not inverse.is_graph_output()
        and all(_is_scaled(reader, index, inverse) for reader, index in uses)
    )


def _is_scaled(reader: ir.Node, index: int, inverse: ir.Value) -> bool:
    """Whether a reader multiplies something that is computed, other than the inverse itself."""
    if not is_op(reader, "Mul"):
        return False
    other = reader.inputs[1 - index]
    return other is not inverse and constant_value(other) is None


def _divide(node: ir.Node) -> None:
    """Let the readers of an inverse divide by the root."""
    if is_op(node, "Pow"):
        node.op_type = "Sqrt"
        node.resize_inputs(1)
        root: ir.Value | None = node.outputs[0]
    else:
        root = input_at(node, 1 if is_op(node, "Div") else 0)
    for reader, index in list(node.outputs[0].uses()):
        data = reader.inputs[1 - index]
        reader.op_type = "Div"
        reader.replace_input_with(0, data)
        reader.replace_input_with(1, root)
    if not is_op(node, "Sqrt") and node.graph is not None:
        node.graph.remove(node, safe=True)

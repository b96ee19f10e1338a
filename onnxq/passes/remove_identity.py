"""Identity, and Dropout at inference, pass their input on unchanged: they go.

The reader takes the input directly. Where the output is one of the graph, the input's producer takes
over the output's name; an input that is an output too, or that comes from outside the graph, needs
the Identity as a second name and keeps it.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import all_nodes, constant_value, input_at, is_op, supplant


class RemoveIdentityPass(ir.passes.InPlacePass):
    """x → Identity → f becomes x → f."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove every Identity and idle Dropout that is not needed for a name."""
        removed = [_remove(node) for node in list(all_nodes(model)) if _is_idle(node)]
        return ir.passes.PassResult(model, modified=any(removed))


def _is_idle(node: ir.Node) -> bool:
    if is_op(node, "Identity"):
        return True
    if not is_op(node, "Dropout") or _mask_is_used(node):
        return False
    training = input_at(node, 2)  # since opset 12; before, Dropout only knew inference
    stored = constant_value(training)
    return training is None or (stored is not None and not stored.any())


def _mask_is_used(node: ir.Node) -> bool:
    return any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:])


def _remove(node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or node.graph is None:
        return False
    if not output.is_graph_output():
        output.replace_all_uses_with(source)
    elif _may_be_renamed(source, node.graph):
        supplant(output, source)
    else:
        return False
    node.graph.remove(node, safe=True)
    return True


def _may_be_renamed(value: ir.Value, graph: ir.Graph) -> bool:
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()

"""Remove what is redundant: identities, equal nodes, constant states of loops, and what nothing needs."""

from __future__ import annotations

from collections.abc import Collection, Hashable

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.graph.nodes import (
    STANDARD_DOMAIN,
    all_nodes,
    bodies,
    constant_value,
    input_at,
    int_attribute,
    is_op,
    replace_value,
)
from onnxq.graph.passes.constants import NOT_DETERMINED
from onnxq.graph.walks import is_read


class RemoveIdentityPass(ir.passes.InPlacePass):
    """Remove what passes on its input unchanged: Identity, Dropout at inference, and Max of one tensor.

        x → Identity → f  ->  x → f

    If the output is a graph output, the input's producer takes over its name. If the input is a graph output
    too, or comes from outside the graph, the Identity stays, because the value needs two names.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove each such node that is not needed for a name."""
        removed = [_remove(node) for node in list(all_nodes(model)) if _is_idle(node)]
        return ir.passes.PassResult(model, modified=any(removed))


def _is_idle(node: ir.Node) -> bool:
    if is_op(node, "Identity") or (is_op(node, "Max") and len(node.inputs) == 1):
        return True
    if not is_op(node, "Dropout") or _mask_is_used(node):
        return False
    training = input_at(node, 2)  # since opset 12; before, Dropout only knew inference
    stored = constant_value(training)
    return training is None or (stored is not None and not stored.any())


def _mask_is_used(node: ir.Node) -> bool:
    return any(map(is_read, node.outputs[1:]))


def _remove(node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or node.graph is None:
        return False
    if not output.is_graph_output():
        output.replace_all_uses_with(source)
    elif _may_be_renamed(source, node.graph):
        replace_value(output, source)
    else:
        return False
    node.graph.remove(node, safe=True)
    return True


def _may_be_renamed(value: ir.Value, graph: ir.Graph) -> bool:
    producer = value.producer()
    return producer is not None and producer.graph is graph and not value.is_graph_output()


SCALAR_ATTRIBUTES = (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING)


LIST_ATTRIBUTES = (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS)


class EliminateCommonSubexpressionsPass(ir.passes.InPlacePass):
    """Merge nodes that compute the same from the same inputs; the first one stays.

    Only operators of the standard domain are merged whose result is determined by inputs and attributes, and
    only within one graph. A later node that produces a graph output stays, because that name must be kept.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Visit every graph in order and merge each node with an equal one before it."""
        seen: dict[Hashable, ir.Node] = {}
        modified = False
        for node in list(all_nodes(model)):
            key = _key(node)
            if key is None:
                continue
            first = seen.setdefault(key, node)
            if first is not node and not any(output.is_graph_output() for output in node.outputs):
                _merge(first, node)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _key(node: ir.Node) -> Hashable | None:
    """Make a key that is equal for nodes that compute the same; None if the node must not be merged."""
    if node.domain != STANDARD_DOMAIN or node.op_type in NOT_DETERMINED:
        return None
    attributes = [(name, _attribute_key(a)) for name, a in sorted(node.attributes.items())]
    if any(value is None for _, value in attributes):
        return None
    outputs = tuple(bool(output.name) for output in node.outputs)
    return (id(node.graph), node.op_type, tuple(id(v) for v in node.inputs), tuple(attributes), outputs)


def _attribute_key(attribute: ir.Attr) -> Hashable | None:
    if attribute.is_ref() or attribute.type not in (*SCALAR_ATTRIBUTES, *LIST_ATTRIBUTES):
        return None
    value = tuple(attribute.value) if attribute.type in LIST_ATTRIBUTES else attribute.value
    return (attribute.type, value)


def _merge(first: ir.Node, second: ir.Node) -> None:
    for kept, gone in zip(first.outputs, second.outputs, strict=True):
        gone.replace_all_uses_with(kept)
    if second.graph is not None:
        second.graph.remove(second, safe=True)


class FreeLoopConstantsPass(ir.passes.InPlacePass):
    """Let bodies of Loop and Scan read constants from outside, instead of carrying them from run to run.

        Loop(m, c, W) <(i, k, V) => (k, V) { … f(x, V) … }>  ->  Loop(m, c) <(i, k) => (k) { … f(x, W) … }>

    Some exporters pass weights to a body as a state that never changes. Only constants of the graph can be
    quantized, and are stored once.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Loop and Scan with such a state."""
        freed = [_free_constants(node) for node in list(all_nodes(model)) if is_op(node, *_FIRST_STATE)]
        return ir.passes.PassResult(model, modified=any(freed))


_FIRST_STATE = {"Loop": (2, 1), "Scan": (0, 0)}
"""Operator -> the index of its first state among inputs, its own and its body's, and among body outputs."""


def _free_constants(node: ir.Node) -> bool:
    (body,), (first, first_out) = bodies(node), _FIRST_STATE[node.op_type]
    if len(node.inputs) != len(body.inputs):  # Scan of opset 8 has one more
        return False
    count = len(node.inputs) - first - int_attribute(node, "num_scan_inputs", 0)
    states = [i for i in range(count) if _is_constant_state(node, body, first + i, first_out + i)]
    states = [i for i in states if not node.outputs[i].is_graph_output()]
    for i in states:
        outer = node.inputs[first + i]
        assert outer is not None
        for use in tuple(body.inputs[first + i].uses()):
            use.node.replace_input_with(use.idx, outer)
        node.outputs[i].replace_all_uses_with(outer)
    if not states or not any(map(is_read, node.outputs)):
        return bool(states)
    for i in reversed(states):
        del body.inputs[first + i], body.outputs[first_out + i]
    _without(node, [first + i for i in states], states)
    return True


def _is_constant_state(node: ir.Node, body: ir.Graph, index: int, index_out: int) -> bool:
    """Whether a state begins as a constant, and the body gives it back as it got it, and nowhere else."""
    given, inner, out = node.inputs[index], body.inputs[index], body.outputs[index_out]
    producer = out.producer()
    source = producer.inputs[0] if producer is not None and is_op(producer, "Identity") else out
    return constant_value(given) is not None and source is inner and list(body.outputs).count(out) == 1


def _without(node: ir.Node, inputs: Collection[int], outputs: Collection[int]) -> None:
    """Replace a node by one without the inputs and outputs at these positions."""
    assert node.graph is not None
    kept = [output for i, output in enumerate(node.outputs) if i not in outputs]
    sources = [value for i, value in enumerate(node.inputs) if i not in inputs]
    new = ir.node(node.op_type, sources, node.attributes, num_outputs=len(kept), name=node.name)
    node.graph.insert_before(node, new)
    for old, output in zip(kept, new.outputs, strict=True):
        replace_value(old, output)
    node.graph.remove(node, safe=True)


class RemoveUnusedPass(ir.passes.InPlacePass):
    """Remove nodes and initializers that no output needs, with the bodies of removed If, Loop and Scan.

    Other passes leave the nodes in such bodies among the readers of outer tensors.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove all of them."""
        modified = _forget_removed_readers(model)
        modified |= common.RemoveUnusedNodesPass()(model).modified
        modified |= _forget_removed_readers(model)
        return ir.passes.PassResult(model, modified=modified)


def _forget_removed_readers(model: ir.Model) -> bool:
    """Take nodes that are in no graph of the model from the readers of its tensors."""
    nodes = set(all_nodes(model))
    values = [out for node in nodes for out in node.outputs]
    for graph in model.graphs():
        values += [*graph.inputs, *graph.initializers.values()]
    removed = {use.node for value in values for use in value.uses()} - nodes
    for node in removed:
        node.resize_inputs(0)
    return bool(removed)

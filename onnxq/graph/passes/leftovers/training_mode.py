"""Put Dropout and BatchNormalization that were exported in training mode into inference mode.

In training mode Dropout draws its zeros anew in every run, and BatchNormalization normalizes with the
statistics of whatever batch it sees. Such a model was exported by accident: it cannot be calibrated, and
nobody runs it so. The modes in ONNX::

    Dropout               opset 12 on: the third input is true; below 7: the attribute is_test is 0
    BatchNormalization    opset 14 on: the attribute training_mode is 1; 7 to 13: it has five outputs;
                          below 7: the attribute is_test is 0
"""

from __future__ import annotations

import logging

import onnx_ir as ir

from calibrators.errors import shorten
from calibrators.onnx_files import root_graphs
from onnxq.graph.nodes import input_at, int_attribute, is_op, replace_value
from onnxq.graph.walks import is_read

logger = logging.getLogger(__name__)

TELLS = range(7, 14)
"""The opsets in which the number of outputs of a BatchNormalization tells the mode."""

STATISTICS = (3, 4)
"""The inputs of a BatchNormalization that its second and third output replace in training."""


def training_nodes(model: ir.Model) -> list[ir.Node]:
    """List the nodes in training mode, in bodies and functions too."""
    opset = model.graph.opset_imports.get("", 0)
    nodes = (node for root in root_graphs(model) for node in ir.traversal.RecursiveGraphIterator(root))
    return [node for node in nodes if _is_training(node, opset)]


def _is_training(node: ir.Node, opset: int) -> bool:
    if not is_op(node, "Dropout", "BatchNormalization"):
        return False
    if opset < TELLS.start:
        return not int_attribute(node, "is_test", 0)
    if node.op_type == "Dropout":
        value = input_at(node, 2)
        mode = None if value is None else ir.convenience.get_const_tensor(value)
        return mode is not None and bool(mode.numpy().any())
    tells = opset in TELLS and any(output.name for output in node.outputs[1:])
    return tells or bool(int_attribute(node, "training_mode", 0))


class InferenceModePass(ir.passes.InPlacePass):
    """Put every node in training mode into inference mode, with a warning.

    The running statistics that a BatchNormalization gives beside its result are then those that it reads.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change the nodes of the main graph and of all bodies."""
        nodes = training_nodes(model)
        for node in nodes:
            _put_into_inference_mode(node, model.graph.opset_imports.get("", 0))
        if nodes:
            logger.warning(
                "%d nodes were exported in training mode (%s): they are put into inference mode. Call "
                "model.eval() before the export.",
                len(nodes),
                shorten([f"{node.op_type} {node.name!r}" for node in nodes], 3),
            )
        return ir.passes.PassResult(model, modified=bool(nodes))


def _put_into_inference_mode(node: ir.Node, opset: int) -> None:
    node.attributes.pop("training_mode", None)
    if opset < TELLS.start:
        node.attributes["is_test"] = ir.AttrInt64("is_test", 1)
    if node.op_type == "Dropout":
        node.resize_inputs(min(len(node.inputs), 2))
        return
    for output, index in zip(node.outputs[1:], STATISTICS, strict=False):
        if is_read(output):
            _pass_on(node, output, index)
    if not any(map(is_read, node.outputs[1:])):
        node.resize_outputs(1)


def _pass_on(node: ir.Node, output: ir.Value, index: int) -> None:
    """Give the input at ``index`` in place of an output of the node."""
    assert node.graph is not None
    identity = ir.Node("", "Identity", [node.inputs[index]], name=f"{node.name}_statistics_{index}")
    replace_value(output, identity.outputs[0])
    node.graph.insert_after(node, identity)

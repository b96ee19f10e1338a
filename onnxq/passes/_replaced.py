"""A node that computes something else from now on, under its own name."""

from __future__ import annotations

import onnx_ir as ir


def compute_instead(node: ir.Node, op_type: str, source: ir.Value, *attributes: ir.Attr) -> None:
    """Make this node ``op_type`` of ``source``; what it read may then have no readers."""
    node.op_type = op_type
    node.attributes.clear()
    node.attributes.update({attribute.name: attribute for attribute in attributes})
    node.resize_inputs(1)
    node.replace_input_with(0, source)

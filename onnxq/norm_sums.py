"""Sums in front of LayerNormalization, written so that a runtime does not fuse the two.

ONNX Runtime makes SkipLayerNormalization of them, whose kernel on the CPU takes several times as long as an
addition and a LayerNormalization (1.31: five times for 128 x 384, more for larger ones). It knows the
addition as Add; Sum computes the same and is left alone.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxq.graph import all_nodes, constant_value, is_op

_NORMS = (["LayerNormalization"], ["ReduceMean", "Sub"])
"""What reads such a sum, and nothing else does: the operator, or what it was made of before opset 17."""


def sums_before_norms(model: ir.Model) -> frozenset[str]:
    """The names of the Adds of two computed tensors that only a LayerNormalization reads."""
    return frozenset(node.name or "" for node in all_nodes(model) if _is_before_norm(node))


def write_as_sums(model: ir.Model, names: Collection[str]) -> None:
    """Let the Adds of these names be Sums."""
    for node in all_nodes(model):
        if node.name in names:
            node.op_type = "Sum"


def _is_before_norm(node: ir.Node) -> bool:
    if not is_op(node, "Add") or any(constant_value(value) is not None for value in node.inputs):
        return False
    total = node.outputs[0]
    if total.dtype != ir.DataType.FLOAT or total.is_graph_output():  # Sum has no kernel for float16
        return False
    return sorted(use.node.op_type for use in total.uses()) in _NORMS

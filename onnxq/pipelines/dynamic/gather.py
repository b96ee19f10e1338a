"""Embedding tables: rows of integers are looked up, and only those become float.

``Gather(q, i) * Gather(s, i)`` with a scale a row: plain ONNX, which every runtime takes.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.nodes import constant_value, int_attribute
from onnxq.pipelines.dynamic.input_checks import half_obstacle, weight_obstacle
from onnxq.pipelines.dynamic.rewriter import FLOAT, ModelRewriter
from onnxq.pipelines.dynamic.scheme import WeightForm

LEAST_WEIGHTS = 2**14
"""Smaller tables take next to no room, and every look-up would cost three nodes more."""


def gather_obstacle(node: ir.Node) -> str | None:
    """Why this table stays float; None if it need not."""
    table = constant_value(node.inputs[0])
    assert table is not None
    if int_attribute(node, "axis", 0) != 0 or table.ndim != 2:
        return "what it looks up is not rows of a matrix"
    if table.size < LEAST_WEIGHTS:
        return f"with less than {LEAST_WEIGHTS} weights there is next to nothing to save"
    return weight_obstacle(table)


def gather_half_obstacle(node: ir.Node) -> str | None:
    """The same for float16."""
    table = constant_value(node.inputs[0])
    assert table is not None
    return gather_obstacle(node) or half_obstacle(table)


def rewrite_gather(node: ir.Node, rewriter: ModelRewriter) -> None:
    """Rows that are looked up, then unpacked."""
    table, indices = node.inputs
    assert table is not None
    if rewriter.scheme.form is WeightForm.FLOAT16:
        stored, scale = rewriter.half(table), None
    else:
        stored, scale = rewriter.packed(table, 0)
    (rows,) = rewriter.add("Gather", [stored, indices], node)
    (real,) = rewriter.add("Cast", [rows], node, FLOAT)
    if scale is not None:
        (scales,) = rewriter.add("Gather", [scale, indices], node) if _by_row(scale) else (scale,)
        (real,) = rewriter.add("Mul", [real, scales], node)
    rewriter.replace(node, real)


def _by_row(scale: ir.Value) -> bool:
    """Whether each row has a scale of its own."""
    array = constant_value(scale)
    return array is not None and array.size > 1

"""Quantize embedding tables: rows of integers are looked up, and only those rows become float.

``Gather(q, i) * Gather(s, i)`` with one scale per row: standard ONNX, which every runtime takes.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph.nodes import constant_value, int_attribute
from onnxq.pipelines.dynamic.input_checks import half_obstacle, weight_obstacle
from onnxq.pipelines.dynamic.rewriter import FLOAT, ModelRewriter
from onnxq.pipelines.dynamic.scheme import WeightForm

LEAST_WEIGHTS = 2**14
"""Smaller tables are not worth it: they save little, and each look-up would cost three more nodes."""


def gather_obstacle(node: ir.Node) -> str | None:
    """Say why this table is kept in float; None if it can be quantized."""
    table = constant_value(node.inputs[0])
    assert table is not None
    if int_attribute(node, "axis", 0) != 0 or table.ndim != 2:
        return "it does not look up rows of a matrix"
    if table.size < LEAST_WEIGHTS:
        return f"with less than {LEAST_WEIGHTS} weights there is little to save"
    return weight_obstacle(table)


def gather_half_obstacle(node: ir.Node) -> str | None:
    """Say why this table cannot be stored in float16; None if it can."""
    table = constant_value(node.inputs[0])
    assert table is not None
    return gather_obstacle(node) or half_obstacle(table)


def rewrite_gather(node: ir.Node, rewriter: ModelRewriter) -> None:
    """Look up rows of the stored table, then convert them to float."""
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
    """Whether there is one scale per row."""
    array = constant_value(scale)
    return array is not None and array.size > 1

"""Gemm's alpha and beta into its constants, and its constant bias into one number a column.

alpha * A·B + beta * C  =  A·(alpha * B) + (beta * C)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import all_nodes, constant_value, input_at, int_attribute, is_op
from onnxq.passes._layer import as_row, replace_constant


class FoldGemmScalarsPass(ir.passes.InPlacePass):
    """Gemm with constant B and C becomes Gemm with alpha = beta = 1 and a bias of shape [N]."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold what is constant in every Gemm; the rest stays."""
        gemms = [node for node in all_nodes(model) if is_op(node, "Gemm")]
        changed = [
            _fold(model, node, name, index) for node in gemms for name, index in (("alpha", 1), ("beta", 2))
        ]
        flattened = [_flatten_bias(model, node) for node in gemms]
        return ir.passes.PassResult(model, modified=any(changed) or any(flattened))


def _fold(model: ir.Model, node: ir.Node, name: str, index: int) -> bool:
    """One factor into the input it belongs to."""
    if name not in node.attributes:
        return False
    factor = node.attributes[name].as_float()
    target = input_at(node, index)
    if factor != 1 and target is not None:
        stored = constant_value(target)
        if stored is None:
            return False
        replace_constant(model, node, index, (stored.astype(np.float64) * factor).astype(stored.dtype))
    del node.attributes[name]
    return factor != 1


def _flatten_bias(model: ir.Model, node: ir.Node) -> bool:
    weight, bias = constant_value(input_at(node, 1)), constant_value(input_at(node, 2))
    if weight is None or bias is None:
        return False
    row = as_row(bias, weight.shape[0 if int_attribute(node, "transB", 0) else 1])
    if row is None or row.shape == bias.shape:
        return False
    replace_constant(model, node, 2, row)
    return True

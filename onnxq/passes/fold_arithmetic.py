"""A constant Mul, Div, Add or Sub into the weighted layer, or the BatchNormalization, before it.

    y = conv(x) * m + a   ->   W[c] *= m[c],  b[c] = b[c] * m[c] + a[c]

where the constant varies along the output channels alone: a scalar, [C, 1, 1] or [1, C, 1, 1] after a
Conv, [N] after a Gemm or MatMul. A layer without a bias gets one; a MatMul has no place for it, so an
Add stays behind it.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import all_nodes
from onnxq.passes._affine import absorb_into_producer, arithmetic_affine


class FoldArithmeticPass(ir.passes.InPlacePass):
    """Conv → Mul(constant) becomes Conv, whose output has the Mul's output name."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every constant arithmetic node whose producer allows it."""
        folded = [
            absorb_into_producer(model, node, arithmetic_affine(node)) for node in list(all_nodes(model))
        ]
        return ir.passes.PassResult(model, modified=any(folded))

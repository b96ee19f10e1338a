"""BatchNormalization into the weighted layer before it.

    y = gamma * (conv(x) - mean) / sqrt(var + eps) + beta
      = conv'(x)   with   scale = gamma / sqrt(var + eps),  shift = beta - mean * scale

Holds for Conv, ConvTranspose (grouped too), Gemm and a MatMul of rank 2 (which becomes a Gemm).
A node in training mode computes its statistics from the batch and stays.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import all_nodes
from onnxq.passes._affine import absorb_into_producer, batchnorm_affine


class FoldBatchNormPass(ir.passes.InPlacePass):
    """Conv → BatchNormalization becomes Conv, whose output has the BatchNormalization's output name."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every BatchNormalization whose producer allows it."""
        folded = [
            absorb_into_producer(model, node, batchnorm_affine(node)) for node in list(all_nodes(model))
        ]
        return ir.passes.PassResult(model, modified=any(folded))

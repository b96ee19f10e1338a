"""BatchNormalization into the weighted layer after it.

    conv(x * scale + shift)   ->   W[:, k] *= scale[k],  b += sum over k of W[:, k] * shift[k]

With zero padding the border of the convolution sees 0 instead of ``shift``, so a padded Conv takes a
BatchNormalization only when every shift is zero.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import all_nodes, int_attribute, ints_attribute, is_op
from onnxq.passes._affine import batchnorm_affine, is_private
from onnxq.passes._layer import layer_of, scale_inputs


class FoldBatchNormForwardPass(ir.passes.InPlacePass):
    """BatchNormalization → Conv or Gemm becomes Conv or Gemm, reading what the BatchNormalization read."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every BatchNormalization that only a weighted layer reads."""
        folded = [_fold(model, node) for node in list(all_nodes(model))]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold(model: ir.Model, node: ir.Node) -> bool:
    layer = layer_of(node) if is_op(node, "Conv", "Gemm") else None
    source = node.inputs[0] if layer is not None else None
    batchnorm = source.producer() if source is not None else None
    if layer is None or source is None or batchnorm is None or not is_private(source, node):
        return False
    affine = batchnorm_affine(batchnorm)
    if affine is None or int_attribute(node, "transA", 0) or (is_padded(node) and np.any(affine.shift != 0)):
        return False
    if not scale_inputs(model, layer, affine.scale, affine.shift):
        return False
    node.replace_input_with(0, affine.source)
    if batchnorm.graph is not None:
        batchnorm.graph.remove(batchnorm, safe=True)
    return True


def is_padded(node: ir.Node) -> bool:
    """Whether a convolution sees zeros around its input; a Gemm never does."""
    auto = node.attributes.get("auto_pad")
    if auto is not None and auto.as_string() not in ("NOTSET", "VALID"):
        return True
    return any(ints_attribute(node, "pads", ()))

"""A factor and a shift that are the same for all channels into the weighted layer after them.

    conv(x * k + s)   ->   W' = k * W,   b' = b + s * (sum of W)

With zero padding the border of the convolution sees 0 instead of ``s``. There the shift stays, and the factor
goes alone, where the shift can be divided by it:

    conv(x * k + s)   ->   conv'(x + s / k),   W' = k * W

Channels keep their proportions, so 8 bits are as good for either form.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import all_nodes, is_op
from onnxq.operators import INPUT_CHANNELS
from onnxq.passes._affine import Affine, is_private
from onnxq.passes._layer import FLOATS, Layer, layer_of, replace_constant, scale_inputs, stored_as
from onnxq.passes._ramps import scalar_affine
from onnxq.passes.fold_batchnorm_forward import is_padded


class FoldScalarsForwardPass(ir.passes.InPlacePass):
    """Mul(constant) → Add(constant) → Conv becomes Conv, or Add → Conv where it is padded."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every constant of one element that only a Conv or Gemm reads."""
        folded = [_fold(model, node) for node in list(all_nodes(model)) if is_op(node, "Conv", "Gemm")]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold(model: ir.Model, node: ir.Node) -> bool:
    layer, source = layer_of(node), node.inputs[0]
    if layer is None or source is None or source.dtype not in FLOATS or not is_private(source, node):
        return False
    producer = source.producer()
    affine = scalar_affine(producer)
    if producer is None or affine is None:
        return False
    if affine.shift.item() == 0 or not is_padded(node):
        return _into(model, layer, affine, producer)
    return _factor_alone(model, layer, producer, affine)


def _into(model: ir.Model, layer: Layer, affine: Affine, producer: ir.Node) -> bool:
    """All of ``producer`` into the layer."""
    if not _scaled(model, layer, affine.scale.item(), affine.shift.item()):
        return False
    layer.node.replace_input_with(0, affine.source)
    _remove(producer)
    return True


def _factor_alone(model: ir.Model, layer: Layer, add: ir.Node, shifted: Affine) -> bool:
    """The factor of what ``add`` reads into the layer; ``add`` adds less, or more, instead."""
    scaling, inner = shifted.source.producer(), scalar_affine(shifted.source.producer())
    if scaling is None or inner is None or not is_private(shifted.source, add) or not is_op(add, "Add"):
        return False
    factor, constant = inner.scale.item(), 1 - list(add.inputs).index(shifted.source)
    dtype = layer.stored.dtype
    lesser = (
        stored_as(dtype, np.asarray(shifted.shift / factor)) if factor and inner.shift.item() == 0 else None
    )
    if lesser is None or not _scaled(model, layer, factor, 0.0):
        return False
    replace_constant(model, add, constant, lesser)
    add.replace_input_with(1 - constant, inner.source)
    add.outputs[0].name = f"{add.outputs[0].name}_before_scaling"  # it is another tensor now
    _remove(scaling)
    return True


def _scaled(model: ir.Model, layer: Layer, scale: float, shift: float) -> bool:
    _, channels = INPUT_CHANNELS[layer.node.op_type](layer.node, layer.stored.shape)
    return scale_inputs(model, layer, np.full(channels, scale), np.full(channels, shift))


def _remove(node: ir.Node) -> None:
    if node.graph is not None:
        node.graph.remove(node, safe=True)

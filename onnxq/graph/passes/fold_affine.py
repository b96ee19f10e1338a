"""BatchNormalization, Mul, Div, Add and Sub by constants into weighted layers, backward and forward.

BatchNormalization into the weighted layer before it.

    y = gamma * (conv(x) - mean) / sqrt(var + eps) + beta
      = conv'(x)   with   scale = gamma / sqrt(var + eps),  shift = beta - mean * scale

Holds for Conv, ConvTranspose (grouped too), Gemm and a MatMul of rank 2 (which becomes a Gemm).
A node in training mode computes its statistics from the batch and stays.

BatchNormalization into the weighted layer after it.

    conv(x * scale + shift)   ->   W[:, k] *= scale[k],  b += sum over k of W[:, k] * shift[k]

With zero padding the border of the convolution sees 0 instead of ``shift``, so a padded Conv takes a
BatchNormalization only when every shift is zero.

A constant Mul, Div, Add or Sub into the weighted layer, or the BatchNormalization, before it.

    y = conv(x) * m + a   ->   W[c] *= m[c],  b[c] = b[c] * m[c] + a[c]

where the constant varies along the output channels alone: a scalar, [C, 1, 1] or [1, C, 1, 1] after a
Conv, [N] after a Gemm or MatMul. A layer without a bias gets one; a MatMul has no place for it, so an
Add stays behind it.

A factor and a shift that are the same for all channels into the weighted layer after them.

    conv(x * k + s)   ->   W' = k * W,   b' = b + s * (sum of W)

With zero padding the border of the convolution sees 0 instead of ``s``. There the shift stays, and the factor
goes alone, where the shift can be divided by it:

    conv(x * k + s)   ->   conv'(x + s / k),   W' = k * W

Channels keep their proportions, so 8 bits are as good for either form.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import all_nodes, int_attribute, ints_attribute, is_op
from onnxq.graph.operators import INPUT_CHANNELS
from onnxq.graph.passes._affine import (
    Affine,
    absorb_into_producer,
    arithmetic_affine,
    batchnorm_affine,
    is_private,
)
from onnxq.graph.passes._piecewise import scalar_affine
from onnxq.graph.passes._weighted import (
    FLOATS,
    WeightedNode,
    layer_of,
    replace_constant,
    scale_inputs,
    stored_as,
)


class FoldBatchNormPass(ir.passes.InPlacePass):
    """Conv → BatchNormalization becomes Conv, whose output has the BatchNormalization's output name."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every BatchNormalization whose producer allows it."""
        folded = [
            absorb_into_producer(model, node, batchnorm_affine(node)) for node in list(all_nodes(model))
        ]
        return ir.passes.PassResult(model, modified=any(folded))


class FoldBatchNormForwardPass(ir.passes.InPlacePass):
    """BatchNormalization → Conv or Gemm becomes Conv or Gemm, reading what the BatchNormalization read."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every BatchNormalization that only a weighted layer reads."""
        folded = [_fold_forward(model, node) for node in list(all_nodes(model))]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold_forward(model: ir.Model, node: ir.Node) -> bool:
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


class FoldArithmeticPass(ir.passes.InPlacePass):
    """Conv → Mul(constant) becomes Conv, whose output has the Mul's output name."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every constant arithmetic node whose producer allows it."""
        folded = [
            absorb_into_producer(model, node, arithmetic_affine(node)) for node in list(all_nodes(model))
        ]
        return ir.passes.PassResult(model, modified=any(folded))


class FoldScalarsForwardPass(ir.passes.InPlacePass):
    """Mul(constant) → Add(constant) → Conv becomes Conv, or Add → Conv where it is padded."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every constant of one element that only a Conv or Gemm reads."""
        folded = [
            _fold_scalars(model, node) for node in list(all_nodes(model)) if is_op(node, "Conv", "Gemm")
        ]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold_scalars(model: ir.Model, node: ir.Node) -> bool:
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


def _into(model: ir.Model, layer: WeightedNode, affine: Affine, producer: ir.Node) -> bool:
    """All of ``producer`` into the layer."""
    if not _scaled(model, layer, affine.scale.item(), affine.shift.item()):
        return False
    layer.node.replace_input_with(0, affine.source)
    _remove(producer)
    return True


def _factor_alone(model: ir.Model, layer: WeightedNode, add: ir.Node, shifted: Affine) -> bool:
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


def _scaled(model: ir.Model, layer: WeightedNode, scale: float, shift: float) -> bool:
    _, channels = INPUT_CHANNELS[layer.node.op_type](layer.node, layer.stored.shape)
    return scale_inputs(model, layer, np.full(channels, scale), np.full(channels, shift))


def _remove(node: ir.Node) -> None:
    if node.graph is not None:
        node.graph.remove(node, safe=True)

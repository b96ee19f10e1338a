"""Fold BatchNormalization, Mul, Div, Add and Sub by constants into the weighted layer before or after them.

Weighted layers are Conv, ConvTranspose, Gemm and MatMul. How the formulas of the passes apply to their
stored arrays is decided in `onnxq.graph.passes._weighted`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.batchnorm_statistics import MOST_LOST_BITS, lost_bits, read_batchnorm
from onnxq.graph.nodes import (
    all_nodes,
    int_attribute,
    ints_attribute,
    is_op,
    replace_constant,
)
from onnxq.graph.operators import INPUT_CHANNELS, WEIGHTED, groups_of
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
    Array,
    WeightedNode,
    layer_of,
    scale_inputs,
    stored_as,
)
from onnxq.graph.walks import producer_of, upstream


class FoldBatchNormPass(ir.passes.InPlacePass):
    """Fold a BatchNormalization into the weighted layer before it.

        y = gamma * (conv(x) - mean) / sqrt(var + eps) + beta
          = conv'(x)   with   scale = gamma / sqrt(var + eps),  shift = beta - mean * scale

    This holds for Conv, ConvTranspose (grouped too), Gemm and a MatMul of rank 2 (which becomes a Gemm). The
    layer's output takes over the name of the BatchNormalization's output. A BatchNormalization in training
    mode computes its statistics from the batch and stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every BatchNormalization whose producer allows it."""
        folded = [
            absorb_into_producer(model, node, batchnorm_affine(node)) for node in list(all_nodes(model))
        ]
        return ir.passes.PassResult(model, modified=any(folded))


class FoldBatchNormForwardPass(ir.passes.InPlacePass):
    """Fold a BatchNormalization into the Conv or Gemm after it.

        conv(x * scale + shift)   ->   W[:, k] *= scale[k],  b += sum over k of W[:, k] * shift[k]

    With zero padding the border of a convolution sees 0 instead of ``shift``. So a BatchNormalization is
    folded into a padded Conv only if every shift is zero.

    The layer then reads what the BatchNormalization read. If the channels of that differ much in size, as raw
    features do, no scale suits them all. Where no layer before it can make up for that, such a
    BatchNormalization stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every BatchNormalization that only a weighted layer reads."""
        folded = [_fold_forward(model, node) for node in list(all_nodes(model))]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold_forward(model: ir.Model, node: ir.Node) -> bool:
    layer = layer_of(node) if is_op(node, "Conv", "Gemm") else None
    source = node.inputs[0] if layer is not None else None
    batchnorm = producer_of(source)
    if layer is None or source is None or batchnorm is None or not is_private(source, node):
        return False
    affine, norm = batchnorm_affine(batchnorm), read_batchnorm(batchnorm)
    if affine is None or norm is None or int_attribute(node, "transA", 0):
        return False
    if is_padded(node) and np.any(affine.shift != 0):
        return False
    if lost_bits(norm, _power_of_inputs(layer)) > MOST_LOST_BITS and not _follows_layer(affine.source):
        return False
    if not scale_inputs(model, layer, affine.scale, affine.shift):
        return False
    node.replace_input_with(0, affine.source)
    if batchnorm.graph is not None:
        batchnorm.graph.remove(batchnorm, safe=True)
    return True


def _follows_layer(value: ir.Value) -> bool:
    """Whether a weighted layer computes the value, and could give its channels other factors."""
    return any(
        is_op(v.producer(), *WEIGHTED) for v in upstream(value, lambda node: is_op(node, *_KEEP_FACTORS))
    )


_KEEP_FACTORS = (
    *("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    *("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"),
)
"""Operators that multiply their output by a positive factor if their first input is multiplied by it."""


def _power_of_inputs(layer: WeightedNode) -> Array:
    """Return the sum of the squared weights of each input channel."""
    rows, groups = layer.rows(), groups_of(layer.node)
    taps = rows.reshape(groups, len(rows) // groups, rows.shape[1], -1)
    return np.asarray(np.square(taps).sum(axis=(1, 3)).reshape(-1), np.float64)


def is_padded(node: ir.Node) -> bool:
    """Whether a convolution sees zeros around its input; a Gemm never does."""
    auto = node.attributes.get("auto_pad")
    if auto is not None and auto.as_string() not in ("NOTSET", "VALID"):
        return True
    return any(ints_attribute(node, "pads", ()))


class FoldArithmeticPass(ir.passes.InPlacePass):
    """Fold a constant Mul, Div, Add or Sub into the weighted layer or BatchNormalization before it.

        y = conv(x) * m + a   ->   W[c] *= m[c],  b[c] = b[c] * m[c] + a[c]

    The constant may vary only along the output channels: a scalar, [C, 1, 1] or [1, C, 1, 1] after a Conv,
    [N] after a Gemm or MatMul. A layer without a bias gets one. A MatMul with an input of another rank than 2
    cannot have one, so an Add after it stays. The layer's output takes over the name of the folded node's
    output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every constant arithmetic node whose producer allows it."""
        folded = [
            absorb_into_producer(model, node, arithmetic_affine(node)) for node in list(all_nodes(model))
        ]
        return ir.passes.PassResult(model, modified=any(folded))


class FoldScalarsForwardPass(ir.passes.InPlacePass):
    """Fold a factor and a shift that are the same for all channels into the Conv or Gemm after them.

        conv(x * k + s)   ->   W' = k * W,   b' = b + s * (sum of W)

    With zero padding the border of a convolution sees 0 instead of ``s``. Then only the factor is folded,
    provided that the shift can be divided by it, and the Add stays:

        conv(x * k + s)   ->   conv'(x + s / k),   W' = k * W

    Channels keep their proportions, so 8 bits are equally good for both forms.
    """

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
    if producer is None or affine is None or _ends_gelu(producer):
        return False
    if affine.shift.item() == 0 or not is_padded(node):
        return _into(model, layer, affine, producer)
    return _factor_alone(model, layer, producer, affine)


def _ends_gelu(node: ir.Node) -> bool:
    """Whether a factor is the half of a Gelu, ``x * (1 + erf(x / sqrt(2))) * 0.5``, which runtimes fuse."""
    makers = [producer_of(value) for value in node.inputs]
    products = [maker for maker in makers if maker is not None and is_op(maker, "Mul")]
    factors = [producer_of(value) for product in products for value in product.inputs]
    sums = [factor for factor in factors if factor is not None and is_op(factor, "Add")]
    return any(is_op(producer_of(value), "Erf", "Tanh") for each in sums for value in each.inputs)


def _into(model: ir.Model, layer: WeightedNode, affine: Affine, producer: ir.Node) -> bool:
    """Fold ``producer`` completely into the layer."""
    if not _scaled(model, layer, affine.scale.item(), affine.shift.item()):
        return False
    layer.node.replace_input_with(0, affine.source)
    _remove(producer)
    return True


def _factor_alone(model: ir.Model, layer: WeightedNode, add: ir.Node, shifted: Affine) -> bool:
    """Fold the factor before ``add`` into the layer; the constant of ``add`` is divided by it."""
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

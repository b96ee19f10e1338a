"""The rules for shifting channels: which channels may be shifted, and which constants compensate for it.

These rules use the labels of `scale_rules`, with offsets instead of factors. If a channel with label c is
lowered by an offset o[c], then ``o[up]`` is subtracted from a constant of the graph (`ScaleFold`) and
``o[down]`` is added to it. A fold at the weights of a layer instead adds ``W o[down]``, the product of the
weights and the offsets of their input, to the bias. The outputs of the graph do not change, for any offsets.

Padding zeros are not shifted. So the input of a convolution with padding is fixed, unless a Pad with another
value replaces its padding. The sum of two tensors may have any offset if one of them has no other consumer
and is computed with a bias, which absorbs the difference.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxq.algorithms.channels.labels import FIXED, ChannelUnion, Labels, Rule, hold_inputs
from onnxq.algorithms.channels.move_rules import MOVES, pooled
from onnxq.algorithms.channels.scale_rules import NORMALIZED
from onnxq.algorithms.layers.biases import bias_of
from onnxq.graph.nodes import constant_value, input_at, int_attribute, ints_attribute, is_op
from onnxq.graph.operators import INPUT_CHANNELS, clip_range, output_channels
from onnxq.graph.walks import sole_producer

_Labelled = Sequence[Labels] | None


BIAS = 2
"""Position of the bias among the inputs of layers and normalizations."""


# --- Weights: the bias absorbs output offsets, and input offsets times the weights ---------------


def _conv(node: ir.Node, ties: ChannelUnion, padded: Collection[str] = ()) -> _Labelled:
    weight = constant_value(node.inputs[1])
    rows = None if weight is None else _rows(node, len(weight), 1, weight.ndim, ties)
    if weight is None or rows is None or not _through(node, weight.shape, ties):
        hold_inputs(node, ties)
    elif node.name in padded:
        _one_for_all(ties.of(node.inputs[0]), ties)
    elif reads_zeros(node, weight.shape):
        hold_inputs(node, ties)
    return None if rows is None else [rows]


def _conv_transpose(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Fix the input: the number of kernel taps that overlap differs between output positions."""
    weight = constant_value(node.inputs[1])
    hold_inputs(node, ties)
    rows = None if weight is None else _rows(node, output_channels(node, weight.shape), 1, weight.ndim, ties)
    return None if rows is None else [rows]


def _gemm(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    weight = constant_value(node.inputs[1])
    if weight is None or any(node.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta")):
        return None
    rows = _rows(node, output_channels(node, weight.shape), 1, 2, ties)
    if rows is None or int_attribute(node, "transA", 0) or not _through(node, weight.shape, ties):
        hold_inputs(node, ties)
    return None if rows is None else [rows]


def _matmul(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Fold input offsets into the constant of the Add after a MatMul, which absorbs output offsets too."""
    weight, data = constant_value(node.inputs[1]), ties.of(node.inputs[0])
    if weight is None or weight.ndim != 2 or bias_of(node) is None or not _only_last(data, len(weight)):
        return None
    ties.fold(node, 1, down=data.reshape(-1))
    return [np.full((1,) * data.ndim, FIXED, np.int64)]


def _only_last(labels: Labels, size: int) -> bool:
    return labels.ndim > 0 and labels.size == labels.shape[-1] == size


def _normalized(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Fold output offsets into the bias of a normalization, whose inputs are fixed."""
    scale, axis = constant_value(input_at(node, 1)), NORMALIZED[node.op_type](node)
    if scale is None or scale.ndim != 1 or axis is None or int_attribute(node, "training_mode", 0):
        return None
    hold_inputs(node, ties)
    rows = _rows(node, scale.size, axis, ties.of(node.inputs[0]).ndim, ties)
    return None if rows is None else [rows]


def _rows(node: ir.Node, channels: int, axis: int, rank: int, ties: ChannelUnion) -> Labels | None:
    """Return new labels along ``axis``, and fold their offsets into the bias; None if it is not constant."""
    value = input_at(node, BIAS)
    if not rank or (value is not None and constant_value(value) is None):
        return None
    rows = ties.fresh([channels])
    ties.fold(node, BIAS, up=rows)
    return rows.reshape([-1 if d == axis % rank else 1 for d in range(rank)])


def _through(node: ir.Node, weight: Sequence[int], ties: ChannelUnion) -> bool:
    """Fold input offsets into the bias if they change along the channels only; return whether they do."""
    data = ties.of(node.inputs[0])
    axis, size = INPUT_CHANNELS[node.op_type](node, tuple(weight))
    if not data.ndim or data.size != data.shape[axis]:
        return False
    ties.fold(node, 1, down=np.broadcast_to(data.reshape(-1), size))
    return True


def reads_zeros(node: ir.Node, weight: Sequence[int]) -> bool:
    """Whether a convolution with a weight of this shape reads zero padding."""
    same_size = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return any(ints_attribute(node, "pads", ())) or (same_size and any(size != 1 for size in weight[2:]))


def _one_for_all(labels: Labels, ties: ChannelUnion) -> Labels:
    """Merge the labels of all channels, and return the new label."""
    one = ties.fresh((1,) * labels.ndim)
    ties.tie(labels, one)
    return one


# --- Elementwise ------------------------------------------------------------------------------


def _add(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    constants = [index for index, value in enumerate(node.inputs) if constant_value(value) is not None]
    if not constants:
        return _residual(node, ties)
    return _moved(node, 1 - constants[0], constants[0], ties) if len(constants) == 1 else None


def _moved(node: ir.Node, data: int, constant: int, ties: ChannelUnion) -> _Labelled:
    """Fold the difference of input and output offsets into a constant vector; a scalar passes offsets on."""
    values, channels = constant_value(node.inputs[constant]), ties.of(node.inputs[data])
    assert values is not None
    if not channels.ndim or values.ndim > channels.ndim:
        return None
    if values.size == 1:
        return [channels]
    shape = (1,) * (channels.ndim - values.ndim) + values.shape
    if max(shape) != values.size or np.broadcast_shapes(shape, channels.shape) != shape:
        return None
    out = ties.fresh(shape)
    ties.fold(node, constant, up=out, down=channels)
    return [out]


def _residual(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Give a sum of two tensors its own offsets.

    The bias of one term absorbs the difference: that of the later term, if both have one.
    """
    free = [i for i, value in enumerate(node.inputs) if ties.of(value).size > 1 and _bias_input(value)]
    if not free or not _same_shape(*node.inputs):
        return None
    last = max(free, key=lambda index: ties.of(node.inputs[index]).max())  # labels increase in graph order
    moved, other = node.inputs[last], ties.of(node.inputs[1 - last])
    assert moved is not None
    rows, bias_input = ties.of(moved), _bias_input(moved)
    if bias_input is None or other.shape not in (rows.shape, (1,) * rows.ndim):
        return None
    out = ties.fresh(rows.shape)
    ties.tie(rows, out)
    down = np.broadcast_to(other, rows.shape)
    ties.fold(*bias_input, down=down if is_op(bias_input[0], "Add") else down.reshape(-1))
    ties.set(moved, np.full((1,) * rows.ndim, FIXED, np.int64))  # its own range does not determine an offset
    return [out]


def _bias_input(value: ir.Value | None) -> tuple[ir.Node, int] | None:
    """Return the producer of a tensor with one consumer, and the position of its bias, or None."""
    node = sole_producer(value)
    if node is None:
        return None
    if is_op(node, *INPUT_CHANNELS):
        return node, BIAS
    constants = [index for index, one in enumerate(node.inputs) if constant_value(one) is not None]
    return (node, constants[0]) if is_op(node, "Add") and len(constants) == 1 else None


def _same_shape(one: ir.Value | None, other: ir.Value | None) -> bool:
    shapes = [value.shape for value in (one, other) if value is not None]
    return len(shapes) == 2 and None not in shapes and shapes[0] == shapes[1]


def _clip(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Shift the limits with the tensor, by one offset for all channels."""
    labels = ties.of(node.inputs[0])
    if clip_range(node) is None or not labels.ndim:
        return None
    one = _one_for_all(labels, ties)
    for index in (LOW, HIGH) if node.op_type == "Clip" else (LOW,):
        ties.fold(node, index, up=one.reshape(()))
    return [labels]


LOW, HIGH = 1, 2
"""Positions of the limits among the inputs of Clip."""


def _average_pool(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Pass offsets on, unless padding zeros are part of the average."""
    padded = any(ints_attribute(node, "pads", ())) or "auto_pad" in node.attributes
    counts = padded and int_attribute(node, "count_include_pad", 0)
    return None if counts else pooled(node, ties)


SHIFTS: Mapping[str, Rule] = {
    **MOVES,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(NORMALIZED, _normalized),
    "Add": _add,
    **dict.fromkeys(("Relu", "Clip"), _clip),
    "AveragePool": _average_pool,
}
"""The rules for shifting, by operator of the standard domain."""


def shifts(padded: Collection[str]) -> Mapping[str, Rule]:
    """Return the rules for a model where a Pad may be inserted before the convolutions ``padded``."""
    return {**SHIFTS, "Conv": partial(_conv, padded=padded)}

"""The rules for scaling channels: how each operator propagates factors, or folds them into its constants.

`labels` describes labels and rules. The inputs and outputs of operators without a rule (such as Sigmoid,
Softmax and Gelu) are fixed. A rule returns None for any case that it does not cover, which fixes them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.channels.labels import ChannelUnion, Labels, Rule, hold_inputs
from onnxq.algorithms.channels.move_rules import MOVES, joint_shape, pooled, reduced, same, share
from onnxq.graph.nodes import constant_value, input_at, int_attribute, is_broadcast
from onnxq.graph.operators import SUMMED_AXIS, clip_range, groups_of, output_channels
from onnxq.graph.walks import only_use

_Labelled = Sequence[Labels] | None


# --- Weights: output factors multiply rows, input factors divide columns -----------------------


def _conv(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    weight, channels = own_weight(node), ties.of(node.inputs[0])
    if weight is None or channels.ndim != weight.ndim or not _only_along(channels, 1):
        return None
    taps = (1,) * (weight.ndim - 2)
    rows = _output(node, len(weight), 2, ties)
    ties.fold(node, 1, up=rows.reshape(-1, 1, *taps), down=in_columns(node, weight.shape, channels))
    return [rows.reshape(1, -1, *taps)]


def _conv_transpose(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    weight, channels = own_weight(node), ties.of(node.inputs[0])
    if weight is None or channels.ndim != weight.ndim or not _only_along(channels, 1):
        return None
    groups, taps = groups_of(node), (1,) * (weight.ndim - 2)
    rows = _output(node, output_channels(node, weight.shape), 2, ties)
    each = np.repeat(rows.reshape(groups, -1), len(weight) // groups, axis=0)
    down = in_columns(node, weight.shape, channels)
    ties.fold(node, 1, up=each.reshape(*each.shape, *taps), down=down)
    return [rows.reshape(1, -1, *taps)]


def _gemm(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    weight, channels = own_weight(node), ties.of(node.inputs[0])
    if weight is None or int_attribute(node, "transA", 0) or not _only_along(channels, 1):
        return None
    rows = _output(node, output_channels(node, weight.shape), 2, ties)
    up = rows[:, None] if SUMMED_AXIS["Gemm"](node) else rows
    ties.fold(node, 1, up=up, down=in_columns(node, weight.shape, channels))
    return [rows[None]]


def _matmul(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    if constant_value(node.inputs[0]) is not None:
        return None
    if constant_value(node.inputs[1]) is None:
        return _product(node, ties)
    weight, channels = own_weight(node), ties.of(node.inputs[0])
    if weight is None or weight.ndim != 2 or not _only_along(channels, channels.ndim - 1):
        return None
    rows = _output(node, weight.shape[1], 2, ties)
    ties.fold(node, 1, up=rows, down=in_columns(node, weight.shape, channels))
    return [rows.reshape(*(1,) * (channels.ndim - 1), -1)]


def _product(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Handle the product of two computed matrices, as in attention.

    The columns of the second matrix are those of the output; the first matrix is fixed.
    """
    left, right = (ties.of(value) for value in node.inputs)
    if min(left.ndim, right.ndim) < 2 or right.shape[-2] != 1:
        return None
    ties.hold(left)
    rank = max(left.ndim, right.ndim)
    return [right.reshape(*(1,) * (rank - right.ndim), *right.shape)]


def in_columns(node: ir.Node, shape: Sequence[int], channels: Labels) -> Labels:
    """Return the labels of the input channels of a layer, arranged to broadcast with its weight.

    Args:
        node: the layer.
        shape: the shape of its weight, in the layout of the operator.
        channels: the labels of its data input, one for each channel, or one for all.
    """
    columns, taps = channels.reshape(-1), (1,) * (len(shape) - 2)
    if node.op_type == "Conv":
        groups = groups_of(node)
        each = np.broadcast_to(columns, groups * shape[1]).reshape(groups, -1)
        return np.repeat(each, shape[0] // groups, axis=0).reshape(*shape[:2], *taps)
    if node.op_type == "ConvTranspose" or SUMMED_AXIS[node.op_type](node) == 0:
        return columns.reshape(-1, 1, *taps)
    return columns[None]


def own_weight(node: ir.Node) -> NDArray[np.generic] | None:
    """Return the constant weights of a node; None if they have another consumer."""
    value = input_at(node, 1)
    weight = constant_value(value)
    if weight is None or only_use(value) is None:
        return None
    return weight if weight.ndim >= 2 and weight.size else None


def _output(node: ir.Node, channels: int, bias: int, ties: ChannelUnion) -> Labels:
    """Return new labels for the output channels, and fold their factors into the bias.

    A bias that is not constant fixes the channels.
    """
    rows = ties.fresh([channels])
    value = input_at(node, bias)
    if constant_value(value) is not None:
        ties.fold(node, bias, up=rows)
    elif value is not None:
        ties.hold(rows)
        ties.hold(ties.of(value))
    return rows


def _only_along(labels: Labels, axis: int) -> bool:
    """Whether the labels change along ``axis`` only."""
    return 0 <= axis < labels.ndim and labels.size == labels.shape[axis]


def _normalized(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Fold output factors into the scale and the bias of a normalization, whose inputs are fixed."""
    scale = constant_value(input_at(node, 1))
    axis = NORMALIZED[node.op_type](node)
    if scale is None or scale.ndim != 1 or axis is None or int_attribute(node, "training_mode", 0):
        return None
    hold_inputs(node, ties)
    rows = _output(node, scale.size, 2, ties)
    ties.fold(node, 1, up=rows)
    rank = ties.of(node.inputs[0]).ndim
    return [rows.reshape([-1 if d == axis % rank else 1 for d in range(rank)])] if rank else None


def _last_axis(node: ir.Node) -> int | None:
    """Return the axis of a LayerNormalization over the last axis only; None for any other."""
    axis, labels = int_attribute(node, "axis", -1), node.inputs[0]
    rank = None if labels is None or labels.shape is None else len(labels.shape)
    return -1 if axis == -1 or (rank is not None and axis == rank - 1) else None


NORMALIZED: Mapping[str, Callable[[ir.Node], int | None]] = {
    "BatchNormalization": lambda node: 1,
    "InstanceNormalization": lambda node: 1,
    "LayerNormalization": _last_axis,
    "RMSNormalization": _last_axis,
}


# --- Elementwise ------------------------------------------------------------------------------


def _mul(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    constants = [index for index, value in enumerate(node.inputs) if constant_value(value) is not None]
    if len(constants) == 2:
        return None
    if constants:
        return _scaled(node, 1 - constants[0], constants[0], ties)
    one, other = node.inputs
    assert one is not None
    assert other is not None
    repeated = is_broadcast(one, other)
    alike = not repeated and not is_broadcast(other, one)
    # Of two alike, as in gated units, the factors go to the one whose channels are free so far.
    data = 1 if repeated or (alike and not ties.of(one).any()) else 0
    hold_inputs(node, ties, but=[data])
    return same(node, ties, data)


def _div(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    if constant_value(node.inputs[0]) is not None:
        return None
    if constant_value(node.inputs[1]) is not None:
        return _scaled(node, 0, 1, ties)
    hold_inputs(node, ties, but=[0])
    return same(node, ties)


def _scaled(node: ir.Node, data: int, constant: int, ties: ChannelUnion) -> _Labelled:
    """Fold the ratio of output and input factors into a constant vector; a scalar passes the factors on."""
    values, channels = constant_value(node.inputs[constant]), ties.of(node.inputs[data])
    assert values is not None
    shape = values.shape[max(0, values.ndim - channels.ndim) :]
    if values.size == 1 and values.ndim <= channels.ndim:
        return [channels]
    if not channels.ndim or values.ndim > channels.ndim or max(shape) != values.size:
        return None
    shape = joint_shape([np.zeros(shape, np.int64), channels])
    out = ties.fresh((1,) * (channels.ndim - len(shape)) + shape)
    up, down = (channels, out) if node.op_type == "Div" else (out, channels)
    ties.fold(node, constant, up=up, down=down)
    return [out]


def _pad(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Pass factors through a Pad with zeros, or with values of the tensor itself."""
    filled = input_at(node, 2)
    value = constant_value(filled)
    if filled is not None and (value is None or value.any()):
        return None
    return same(node, ties) if _keeps_channels(node, ties.of(node.inputs[0])) else None


def _keeps_channels(node: ir.Node, labels: Labels) -> bool:
    """Whether a Pad adds nothing along the axes on which labels change, and thus leaves them in place."""
    pads, given = constant_value(node.inputs[1]), input_at(node, 3)
    axes = np.arange(labels.ndim) if given is None else constant_value(given)
    if pads is None or axes is None:
        return False
    padded = axes.reshape(-1)[pads.reshape(2, -1).any(axis=0)]
    return all(labels.shape[int(axis)] == 1 for axis in padded)


def _clip(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Pass factors through a Clip whose limits are zero or infinite, and thus do not depend on the scale.

    A channel that a Clip to [0, 6] did not clip on the samples could be scaled up to 6. This was tried; its
    error exceeded its gain: some unseen values are much larger, and are then clipped.
    """
    return same(node, ties) if clip_range(node) in _HOMOGENEOUS else None


_HOMOGENEOUS = {(0.0, math.inf), (-math.inf, 0.0), (-math.inf, math.inf)}


RULES: Mapping[str, Rule] = {
    **MOVES,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(NORMALIZED, _normalized),
    **dict.fromkeys(("Add", "Sub", "Sum", "Max", "Min"), share),
    "Mul": _mul,
    "Div": _div,
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Neg", "Abs"), same),
    "AveragePool": pooled,
    "Pad": _pad,
    "Clip": _clip,
    "ReduceSum": reduced,
}
"""The rules for scaling, by operator of the standard domain."""

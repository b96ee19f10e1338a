"""Numbers on one side of zero are moved around it, where the integers are symmetric.

A Relu leaves one half of symmetric integers unused. Lowered by the middle of its range, a tensor has twice as
many of them: the bias, the normalization or the Clip that it comes from takes the offset in, and what reads
it adds to its own bias what it misses. Channels that no Clip ties together are each lowered by their own
middle, so that the range is no wider than that of the widest. The float model computes what it did. This is
bias absorption (Nagel et al., Data-free quantization through weight equalization and bias correction, 2019),
exact, and for tensors of both kinds. What may be moved is in `offsets`; what is done about zeros that
convolutions pad with, in `padding`.

Where integers are asymmetric, their zero point does the same for a whole tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.channels.channel_moments import ChannelMoments, measure
from onnxq.algorithms.channels.fold_factors import replace_values
from onnxq.algorithms.channels.labels import Channels, ScaleFold, find_channels
from onnxq.algorithms.channels.padding import pad_with, worth_a_pad
from onnxq.algorithms.channels.shift_rules import BIAS, shifts
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.biases import bias_of
from onnxq.algorithms.layers.matrices import matrices
from onnxq.core.numerics import dequantize
from onnxq.core.plan import Group
from onnxq.graph.nodes import (
    add_initializer,
    constant_value,
    input_at,
    is_op,
    name_of,
    replace_value,
    unused_name,
)
from onnxq.graph.operators import WEIGHTED

Offsets = NDArray[np.float64]
"""One for each label of `Channels`; that of a fixed channel is 0."""


def center(draft: Draft, context: CorrectionContext) -> Draft | None:
    """A draft of a float model whose symmetric tensors lie around zero; None where nothing can be moved.

    It is calibrated anew, and begins with weights rounded to nearest.

    Raises:
        CalibrationError: the model does not take a sample.
    """
    groups = [
        g for g in draft.plan.groups.values() if g.observed_tensors and g.spec.symmetric and not g.constant
    ]
    padded = worth_a_pad(draft, groups, context)
    channels = find_channels(draft.reference, shifts(padded))
    tensors = {name: group for group in groups for name in group.observed_tensors if channels.of(name).any()}
    if not tensors:
        return None
    context.progress("measuring channels")
    seen = measure(draft.reference, channels, tuple(tensors), context)
    offsets = middles(channels, {name: _ends(draft, group, seen[name]) for name, group in tensors.items()})
    context.progress("calibrating the centered model")
    return context.recalibrate(shifted(draft.reference, channels, offsets, padded))


def _ends(draft: Draft, group: Group, seen: ChannelMoments) -> tuple[Offsets, Offsets]:
    """The smallest and the largest value of each channel, as far as the range of the tensor goes."""
    limits = np.array(group.spec.limits).astype(group.spec.dtype.numpy())
    low, high = dequantize(limits, draft.plan.params[group.name], group.spec).astype(np.float64)
    return seen.lows.min(axis=0).clip(low, high), seen.highs.max(axis=0).clip(low, high)


def middles(channels: Channels, ends: Mapping[str, tuple[Offsets, Offsets]]) -> Offsets:
    """The middle of what all channels of each label reach together."""
    low, high = np.full(channels.count, np.inf), np.full(channels.count, -np.inf)
    for name, (lows, highs) in ends.items():
        labels = channels.of(name).reshape(-1)
        np.minimum.at(low, labels, lows)
        np.maximum.at(high, labels, highs)
    known = low <= high
    known[0] = False
    return np.where(known, (np.where(known, low, 0.0) + np.where(known, high, 0.0)) / 2, 0.0)


def shifted(model: ir.Model, channels: Channels, offsets: Offsets, padded: Collection[str] = ()) -> ir.Model:
    """A copy of ``model`` that computes the same, with every channel c lowered by ``offsets[c]``.

    A Pad in front of the convolutions ``padded`` pads with what has become of zero.
    """
    copy = model.clone()
    nodes = {node.name: node for node in copy.graph}
    shifts: dict[tuple[str, int], Offsets | float] = defaultdict(float)
    for fold in channels.folds:
        holder, shift = _shift(nodes[fold.node], fold, offsets)
        if shift.any():
            shifts[holder] = shifts[holder] + shift
    for (name, index), total in shifts.items():
        _add_to(copy, nodes[name], index, np.asarray(total))
    for name in padded:
        if offset := _offset(nodes[name].inputs[0], channels, offsets):
            pad_with(-offset, copy, nodes[name])
    return copy


def _offset(value: ir.Value | None, channels: Channels, offsets: Offsets) -> float:
    """Of a tensor whose channels all have the same."""
    return 0.0 if value is None else float(offsets[channels.of(name_of(value)).reshape(-1)[0]])


def _shift(node: ir.Node, fold: ScaleFold, offsets: Offsets) -> tuple[tuple[str, int], Offsets]:
    """Where a fold adds something, and what."""
    if node.op_type not in WEIGHTED or fold.index != WEIGHTED[node.op_type].weight:
        return (fold.node, fold.index), offsets[fold.down] - offsets[fold.up]
    bias = bias_of(node) if WEIGHTED[node.op_type].bias is None else None
    return (fold.node, BIAS) if bias is None else (bias.holder, bias.index), _products(
        node, offsets[fold.down]
    )


def _products(node: ir.Node, offsets: Offsets) -> Offsets:
    """What the weights make of offsets of their input channels: one for each output channel."""
    weight = constant_value(node.inputs[1])
    assert weight is not None
    matrix = matrices(node, weight)
    groups, outputs, _ = matrix.shape
    each = offsets.reshape(groups, -1)
    taps = matrix.reshape(groups, outputs, each.shape[1], -1).sum(axis=3, dtype=np.float64)
    return np.asarray(taps @ each[:, :, None], np.float64).reshape(-1)


def _add_to(model: ir.Model, node: ir.Node, index: int, shift: Offsets) -> None:
    """Add to an input of a node. A Relu has a limit of 0; other limits that are left out are infinite."""
    value = input_at(node, index)
    array = constant_value(value)
    if value is not None and array is not None:
        replace_values(model, node, index, array.astype(np.float64) + shift, "moved")
    elif is_op(node, "Relu"):
        _replace_relu(model, node, shift)
    elif not is_op(node, "Clip"):
        node.resize_inputs(max(len(node.inputs), index + 1))
        bias = add_initializer(model, unused_name(f"{node.name}_bias", model), shift.astype(np.float32))
        node.replace_input_with(index, bias)


def _replace_relu(model: ir.Model, node: ir.Node, low: Offsets) -> None:
    limit = add_initializer(model, unused_name(f"{node.name}_low", model), low.astype(np.float32))
    clip = ir.node("Clip", [node.inputs[0], limit], name=node.name)
    model.graph.insert_after(node, clip)
    replace_value(node.outputs[0], clip.outputs[0])
    model.graph.remove(node, safe=True)

"""Rules of operators that move, select or average elements: scaling and shifts of channels pass through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.channels.labels import ChannelUnion, Labels, Rule, hold_inputs, reshaped
from onnxq.graph.nodes import constant_value, input_at, int_attribute, ints_attribute

_Labelled = Sequence[Labels] | None


def same(node: ir.Node, ties: ChannelUnion, data: int = 0) -> _Labelled:
    """Return the labels of the data input for the output; None if the number of channels differs.

    Args:
        node: the node.
        ties: the labels of the graph.
        data: position of the data input. The other inputs are fixed.
    """
    value, out = node.inputs[data], node.outputs[0]
    channels = ties.of(value)
    if value is None or value.shape is None or out.shape is None or len(out.shape) < channels.ndim:
        return None
    missing = len(out.shape) - channels.ndim
    for axis, size in enumerate(channels.shape):
        if size > 1 and out.shape[axis + missing] != size:
            return None
    hold_inputs(node, ties, but=[data])
    return [channels.reshape(*(1,) * missing, *channels.shape)]


def pooled(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Do the same as `same` for a pool with a window; None if labels change along the axes of the window."""
    return same(node, ties) if max(ties.of(node.inputs[0]).shape[2:], default=1) == 1 else None


def share(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Let the inputs of Add, Sub, Sum, Max or Min share their factors, and fold them into constant inputs."""
    computed = [ties.of(value) for value in node.inputs if constant_value(value) is None]
    if not computed:
        return None
    rank = ties.of(node.outputs[0]).ndim
    shape = joint_shape(computed)
    out = np.broadcast_to(max(computed, key=lambda labels: labels.size), (1,) * (rank - len(shape)) + shape)
    for labels in computed:
        ties.tie(out, labels)
    for index, value in enumerate(node.inputs):
        if constant_value(value) is not None:
            ties.fold(node, index, up=out)
    return [out] if rank else None


def joint_shape(several: Sequence[Labels]) -> tuple[int, ...]:
    """Return the shape that the labels have after broadcasting."""
    return np.broadcast_shapes(*(labels.shape for labels in several))


def _resize(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    mode = node.attributes.get("coordinate_transformation_mode")
    return None if mode is not None and mode.as_string() == "tf_crop_and_resize" else same(node, ties)


def _reshape(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    value, out = node.inputs[0], node.outputs[0]
    if value is None or value.shape is None or out.shape is None:
        return None
    hold_inputs(node, ties, but=[0])
    labels = reshaped(ties.of(value), tuple(value.shape), tuple(out.shape))
    return None if labels is None else [labels]


def _transpose(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    labels = ties.of(node.inputs[0])
    order = ints_attribute(node, "perm", tuple(reversed(range(labels.ndim))))
    return [labels.transpose(order)] if len(order) == labels.ndim else None


def reduced(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    """Pass factors through a reduction over axes without channels."""
    labels, axes = ties.of(node.inputs[0]), _axes(node)
    if axes is None or not labels.ndim or (not axes and int_attribute(node, "noop_with_empty_axes", 0)):
        return None
    chosen = {axis % labels.ndim for axis in axes} if axes else set(range(labels.ndim))
    if any(labels.shape[axis] > 1 for axis in chosen):
        return None
    return [labels if int_attribute(node, "keepdims", 1) else labels.squeeze(tuple(chosen))]


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Return the axes of the attribute or the second input; () if neither is given, None if not constant."""
    value = input_at(node, 1)
    if value is None:
        return ints_attribute(node, "axes", ())
    constant = constant_value(value)
    return None if constant is None else tuple(int(axis) for axis in constant.reshape(-1))


def _concat(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    out = node.outputs[0]
    rank = 0 if out.shape is None else len(out.shape)
    axis = int_attribute(node, "axis", 0) % max(rank, 1)
    computed = [ties.of(value) for value in node.inputs if constant_value(value) is None]
    sizes = [_size(value, axis) for value in node.inputs]
    if not rank or not computed or any(labels.ndim != rank for labels in computed):
        return None
    if max(labels.shape[axis] for labels in computed) == 1:
        return share(node, ties)
    if None in sizes:
        return None
    parts = [_part(node, i, size or 0, axis, ties) for i, size in enumerate(sizes)]
    joint = joint_shape([labels.take([0], axis) for labels in parts])
    wide = [np.broadcast_to(p, (*joint[:axis], p.shape[axis], *joint[axis + 1 :])) for p in parts]
    return [np.concatenate(wide, axis)]


def _part(node: ir.Node, index: int, size: int, axis: int, ties: ChannelUnion) -> Labels:
    """Return the labels of one input of a Concat, one for each index of its axis.

    A constant input gets new labels, and absorbs their factors.
    """
    value = node.inputs[index]
    rank = ties.of(node.outputs[0]).ndim
    shape = tuple(size if d == axis else 1 for d in range(rank))
    if constant_value(value) is not None:
        labels = ties.fresh(shape)
        ties.fold(node, index, up=labels)
        return labels
    labels = ties.of(value)
    return np.broadcast_to(labels, np.broadcast_shapes(labels.shape, shape))


def _size(value: ir.Value | None, axis: int) -> int | None:
    size = None if value is None or value.shape is None else value.shape[axis]
    return size if isinstance(size, int) and size else None


def _split(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    labels = ties.of(node.inputs[0])
    if not labels.ndim:
        return None
    axis = int_attribute(node, "axis", 0) % labels.ndim
    if labels.shape[axis] == 1:
        return [labels] * len(node.outputs)
    sizes = [_size(value, axis) for value in node.outputs]
    if None in sizes or sum(size or 0 for size in sizes) != labels.shape[axis]:
        return None
    return np.split(labels, np.cumsum([size or 0 for size in sizes])[:-1], axis)


def _slice(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    labels, given = ties.of(node.inputs[0]), [constant_value(value) for value in node.inputs[1:]]
    axes = given[2] if len(given) > 2 else None
    if not labels.ndim or (axes is None and input_at(node, 3) is not None):
        return None
    chosen = range(labels.ndim) if axes is None else [int(axis) % labels.ndim for axis in axes]
    if all(labels.shape[axis] == 1 for axis in chosen):
        return [labels]
    if given[0] is None or given[1] is None:
        return None
    steps = given[3] if len(given) > 3 else None
    if steps is None and input_at(node, 4) is not None:
        return None
    steps = np.ones(given[0].size, np.int64) if steps is None else steps
    for axis, start, stop, step in zip(chosen, given[0], given[1], steps, strict=False):
        if labels.shape[axis] > 1:
            size = labels.shape[axis]
            labels = labels.take(_indices(int(start), int(stop), int(step), size), axis)
    return [labels]


def _indices(start: int, stop: int, step: int, size: int) -> NDArray[np.int64]:
    """Return the indices that Slice takes from an axis of this size.

    In ONNX an end before the first element is a large negative number.
    """
    end = None if step < 0 and stop < -size else stop
    return np.arange(size)[slice(start, end, step)]


def _gather(node: ir.Node, ties: ChannelUnion) -> _Labelled:
    labels, indices = ties.of(node.inputs[0]), constant_value(node.inputs[1])
    if constant_value(node.inputs[0]) is not None or not labels.ndim or indices is None:
        return None
    axis = int_attribute(node, "axis", 0) % labels.ndim
    return [labels.take(np.asarray(indices, np.int64) * (labels.shape[axis] > 1), axis)]


MOVES: Mapping[str, Rule] = {
    **dict.fromkeys(("Identity", "Dropout", "Expand"), same),
    **dict.fromkeys(("MaxPool", "GlobalAveragePool", "GlobalMaxPool"), pooled),
    "Resize": _resize,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin"), reduced),
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
}
"""Rules of operators that move, select or average elements: scaling and shifts of channels pass through."""

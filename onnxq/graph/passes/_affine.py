"""Nodes that compute ``y = scale * x + shift`` per channel, and how to fold them into a neighbour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.batchnorm_statistics import read_batchnorm
from onnxq.graph.nodes import (
    constant_value,
    is_op,
    rank,
    replace_constant,
    replace_value,
)
from onnxq.graph.passes._weighted import (
    Array,
    channel_axis_and_rank,
    layer_of,
    scale_outputs,
    stored_as,
)
from onnxq.graph.walks import only_reader


@dataclass(frozen=True)
class Affine:
    """An affine function ``scale * source + shift``, in float64.

    Attributes:
        source: the tensor that is not constant.
        scale: [C] along ``axis``; any shape that broadcasts if ``axis`` is None.
        shift: [C] along ``axis``; any shape that broadcasts if ``axis`` is None.
        axis: the channel axis; None if the shapes broadcast from the last axis as stored.
    """

    source: ir.Value
    scale: Array
    shift: Array
    axis: int | None = None

    def per_channel(self, axis: int, of_rank: int, channels: int) -> tuple[Array, Array] | None:
        """Return scale and shift as [C]; None if they vary along other axes than ``axis``.

        Args:
            axis: the channel axis of the tensor.
            of_rank: the rank of the tensor.
            channels: the number C of channels.
        """
        if self.axis is not None:
            return (self.scale, self.shift) if self.axis == axis and self.scale.size == channels else None
        scale, shift = (_on_axis(a, axis, of_rank, channels) for a in (self.scale, self.shift))
        return None if scale is None or shift is None else (scale, shift)


def _on_axis(array: Array, axis: int, of_rank: int, channels: int) -> Array | None:
    if array.ndim > of_rank:
        return None
    sizes = [1] * (of_rank - array.ndim) + list(array.shape)
    if sizes.pop(axis) not in (1, channels) or any(size != 1 for size in sizes):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,))


def batchnorm_affine(node: ir.Node) -> Affine | None:
    """Read a BatchNormalization with constant statistics, in inference mode, as affine; else None."""
    norm = read_batchnorm(node)
    if norm is None or node.inputs[0] is None:
        return None
    scale = norm.gamma / norm.deviation
    return Affine(node.inputs[0], scale, norm.beta - norm.mean * scale, axis=1)


def arithmetic_affine(node: ir.Node) -> Affine | None:
    """Read an Add, Sub, Mul or Div of a tensor and a constant as affine; else None, also for constant / x."""
    if not is_op(node, "Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if first is None or second is None:
        return None
    left, right = constant_value(first), constant_value(second)
    if (left is None) == (right is None):
        return None
    if right is not None:
        return _with_constant(node.op_type, first, right.astype(np.float64))
    return _from_constant(node.op_type, second, left.astype(np.float64)) if left is not None else None


def _with_constant(op_type: str, source: ir.Value, constant: Array) -> Affine | None:
    """Read ``source op constant`` as affine."""
    zero, one = np.zeros(()), np.ones(())
    if op_type == "Div" and np.any(constant == 0):
        return None
    if op_type in ("Add", "Sub"):
        return Affine(source, one, constant if op_type == "Add" else -constant)
    return Affine(source, constant if op_type == "Mul" else 1 / constant, zero)


def _from_constant(op_type: str, source: ir.Value, constant: Array) -> Affine | None:
    """Read ``constant op source`` as affine."""
    if op_type == "Div":
        return None
    if op_type == "Sub":
        return Affine(source, -np.ones(()), constant)
    return _with_constant(op_type, source, constant)


def is_private(value: ir.Value, consumer: ir.Node) -> bool:
    """Whether this node is the only reader of the value, and in the same graph as its producer."""
    producer = value.producer()
    return producer is not None and producer.graph is consumer.graph and only_reader(value) is consumer


def absorb_into_producer(model: ir.Model, node: ir.Node, affine: Affine | None) -> bool:
    """Fold an affine node into the weighted layer, MatMul and Add, or BatchNormalization before it.

    Args:
        model: the model; it is changed.
        node: the node to fold.
        affine: what the node computes; None: nothing is folded.

    Returns:
        Whether the node was folded.
    """
    if affine is None or not is_private(affine.source, node) or not give_to_producer(model, affine):
        return False
    _drop(node, affine.source)
    return True


def give_to_producer(model: ir.Model, affine: Affine) -> bool:
    """Let the producer of ``affine.source`` compute the scaled and shifted value; return whether it can."""
    producer = affine.source.producer()
    hosts = (_into_layer, _into_matmul_add, _into_batchnorm)
    return producer is not None and any(host(model, producer, affine) for host in hosts)


def _into_layer(model: ir.Model, producer: ir.Node, affine: Affine) -> bool:
    layer = layer_of(producer)
    if layer is None:
        return False
    pair = affine.per_channel(*channel_axis_and_rank(layer), layer.channels)
    return pair is not None and scale_outputs(model, layer, *pair)


def _into_matmul_add(model: ir.Model, add: ir.Node, affine: Affine) -> bool:
    """Fold into MatMul and Add: ``(x·W + b) * scale + shift``, where the Add holds the bias of the MatMul."""
    biased = arithmetic_affine(add) if is_op(add, "Add") else None
    if biased is None or not is_private(biased.source, add):
        return False
    layer = layer_of(biased.source.producer())
    if layer is None or layer.node.op_type != "MatMul":
        return False
    axis, known = channel_axis_and_rank(layer)
    pair, own = (a.per_channel(axis, known, layer.channels) for a in (affine, biased))
    bias = None if pair is None or own is None else own[1] * pair[0] + pair[1]
    stored = None if bias is None else stored_as(layer.stored.dtype, bias)
    if pair is None or stored is None or not scale_outputs(model, layer, pair[0], np.zeros(layer.channels)):
        return False
    replace_constant(model, add, 1 - list(add.inputs).index(biased.source), stored)
    return True


def _into_batchnorm(model: ir.Model, producer: ir.Node, affine: Affine) -> bool:
    """Fold into a BatchNormalization: ``(gamma * n + beta) * scale + shift``; n is the normalised input."""
    own, known = batchnorm_affine(producer), rank(affine.source)
    if own is None or known is None:
        return False
    pair = affine.per_channel(1, known, own.scale.size)
    if pair is None:
        return False
    gamma, beta = constant_value(producer.inputs[1]), constant_value(producer.inputs[2])
    if gamma is None or beta is None:
        return False
    scale, shift = pair
    new_gamma = stored_as(gamma.dtype, gamma.astype(np.float64) * scale)
    new_beta = stored_as(beta.dtype, beta.astype(np.float64) * scale + shift)
    if new_gamma is None or new_beta is None:
        return False
    replace_constant(model, producer, 1, new_gamma)
    replace_constant(model, producer, 2, new_beta)
    return True


def _drop(node: ir.Node, source: ir.Value) -> None:
    """Remove a node that was folded into its producer; the producer's output takes over its name."""
    replace_value(node.outputs[0], source)
    if node.graph is not None:
        node.graph.remove(node, safe=True)

"""A common view of weighted nodes, whatever the operator: ``y[c] = sum(W[c, ...] * x) + b[c]``.

The folding passes choose *which* factors and shifts to fold. How they change the stored arrays is decided
here:

    after the layer, per output channel c:   W[c] *= scale[c],  b[c] = b[c] * scale[c] + shift[c]
    before the layer, per input channel k:   W[:, k] *= scale[k],  b += sum over k of W[:, k] * shift[k]

In the second formula the sum uses W before scaling. Results are computed in float64 and stored in the
weight's type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import (
    add_initializer,
    constant_value,
    input_at,
    int_attribute,
    is_op,
    rank,
    sole_output,
)

Array = NDArray[np.float64]

WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class WeightedNode:
    """A weighted node with constant weights.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        stored: the weight in the node's own layout.
        channels: the number of output channels.
        bias: the bias, [C_out] in float64; None if the node has none.
    """

    node: ir.Node
    stored: NDArray[np.generic]
    channels: int
    bias: Array | None

    def rows(self) -> Array:
        """Return the weight in float64, output channels first: [C_out, ...]."""
        return _to_rows(self.node, self.stored.astype(np.float64))


def layer_of(node: ir.Node | None) -> WeightedNode | None:
    """View the node as a weighted node; None if it is none, or its weights or bias are no constant floats."""
    if node is None or not is_op(node, *WEIGHTED_OPS) or sole_output(node) is None:
        return None
    stored = constant_value(input_at(node, 1))
    if stored is None or ir.DataType.from_numpy(stored.dtype) not in FLOATS:
        return None
    if not _is_plain(node, stored.ndim):
        return None
    channels = _channels(node, stored.shape)
    bias = input_at(node, 2)
    row = None if bias is None else as_row(constant_value(bias), channels)
    if bias is not None and row is None:
        return None
    return WeightedNode(node, stored, channels, None if row is None else row.astype(np.float64))


def _channels(node: ir.Node, shape: tuple[int, ...]) -> int:
    if node.op_type == "ConvTranspose":
        return shape[1] * int_attribute(node, "group", 1)
    return shape[1] if _is_transposed(node) else shape[0]


def _is_plain(node: ir.Node, weight_rank: int) -> bool:
    """Whether the formula above holds: no alpha and beta, and weights of the right rank."""
    if node.op_type == "Gemm":
        return all(node.attributes[a].as_float() == 1 for a in ("alpha", "beta") if a in node.attributes)
    return weight_rank == 2 if node.op_type == "MatMul" else weight_rank >= 3


def as_row(bias: NDArray[np.generic] | None, channels: int) -> NDArray[np.generic] | None:
    """Return a constant with one number per column ([C], [1, C], [1], a scalar) as [C]; else None."""
    if bias is None or any(size != 1 for size in bias.shape[:-1]) or bias.size not in (1, channels):
        return None
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (channels,)))


def _to_rows(node: ir.Node, stored: Array) -> Array:
    """Put output channels first. ConvTranspose [C_in, C_out/g, ...] becomes [C_out, C_in/g, ...]."""
    if node.op_type == "ConvTranspose":
        group = int_attribute(node, "group", 1)
        grouped = stored.reshape(group, -1, *stored.shape[1:])
        return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(-1, grouped.shape[1], *stored.shape[2:])
    return stored.T if _is_transposed(node) else stored


def _from_rows(node: ir.Node, rows: Array) -> Array:
    """Invert `_to_rows`."""
    if node.op_type == "ConvTranspose":
        group = int_attribute(node, "group", 1)
        grouped = rows.reshape(group, -1, *rows.shape[1:])
        return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(-1, grouped.shape[1], *rows.shape[2:])
    return np.ascontiguousarray(rows.T) if _is_transposed(node) else rows


def _is_transposed(node: ir.Node) -> bool:
    """Whether the stored matrix is [K, N], output channels last."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not int_attribute(node, "transB", 0))


def channel_axis_and_rank(layer: WeightedNode) -> tuple[int, int]:
    """Return the channel axis of the output, and the output's rank.

    If the rank of a MatMul is unknown, it is taken as 1: constants that broadcast to it fit any rank.
    """
    if layer.node.op_type in ("Conv", "ConvTranspose"):
        return 1, layer.stored.ndim
    if layer.node.op_type == "Gemm":
        return 1, 2
    known = rank(layer.node.inputs[0]) or rank(layer.node.outputs[0]) or 1
    return known - 1, known


def scale_outputs(model: ir.Model, layer: WeightedNode, scale: Array, shift: Array) -> bool:
    """Fold ``y * scale + shift`` into the layer that computes y.

    Args:
        model: the model; it is changed.
        layer: the layer.
        scale: factors, [C_out].
        shift: shifts, [C_out].

    Returns:
        False if the result cannot be stored; then nothing is changed.
    """
    rows = layer.rows()
    weight = rows * scale.reshape(-1, *[1] * (rows.ndim - 1))
    bias = shift if layer.bias is None else layer.bias * scale + shift
    return _store(model, layer, weight, bias)


def scale_inputs(model: ir.Model, layer: WeightedNode, scale: Array, shift: Array) -> bool:
    """Fold ``x * scale + shift`` into the Conv or Gemm that reads x.

    Args:
        model: the model; it is changed.
        layer: the layer.
        scale: factors, [C_in].
        shift: shifts, [C_in].

    Returns:
        False if the result cannot be stored; then nothing is changed.
    """
    group = int_attribute(layer.node, "group", 1) if layer.node.op_type == "Conv" else 1
    outputs = layer.channels // group
    per_row = (np.repeat(v.reshape(group, -1), outputs, axis=0) for v in (scale, shift))
    rows = layer.rows()
    factor, offset = (v.reshape(*v.shape, *[1] * (rows.ndim - 2)) for v in per_row)
    added = (rows * offset).reshape(layer.channels, -1).sum(axis=1)
    bias = added if layer.bias is None else layer.bias + added
    return _store(model, layer, rows * factor, bias)


def _store(model: ir.Model, layer: WeightedNode, weight: Array, bias: Array) -> bool:
    """Store new arrays in the node; a bias is added only if it is needed."""
    kind = layer.stored.dtype
    needs_bias = layer.bias is not None or bool(np.any(bias != 0))
    if needs_bias and layer.node.op_type == "MatMul" and rank(layer.node.inputs[0]) != 2:
        return False
    new_weight, new_bias = stored_as(kind, _from_rows(layer.node, weight)), stored_as(kind, bias)
    if new_weight is None or new_bias is None:
        return False
    replace_constant(model, layer.node, 1, new_weight)
    if needs_bias:
        layer.node.op_type = layer.node.op_type.replace("MatMul", "Gemm")
        replace_constant(model, layer.node, 2, new_bias)
    return True


def stored_as(kind: np.dtype[np.generic], array: Array) -> NDArray[np.generic] | None:
    """Cast the array to a narrower type; None if a value does not fit."""
    with np.errstate(over="ignore"):
        narrow: NDArray[np.generic] = array.astype(kind)
    return narrow if np.all(np.isfinite(narrow.astype(np.float64))) else None


def replace_constant(model: ir.Model, node: ir.Node, index: int, array: NDArray[np.generic]) -> None:
    """Give an input a new constant; if it is missing or has other readers, a new initializer is made.

    Tensors are replaced and never edited, because clones of a model share them.

    Args:
        model: the model; it is changed.
        node: the node.
        index: position of the input.
        array: the new values.
    """
    old = input_at(node, index)
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(array, name=old.name)
        old.shape, old.dtype = ir.Shape(array.shape), old.const_value.dtype
        return
    name = old.name if old is not None and old.name else f"{node.outputs[0].name}_bias"
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_initializer(model, name, array))

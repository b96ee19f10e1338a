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
    constant_value,
    input_at,
    is_op,
    rank,
    replace_constant,
    sole_output,
)
from onnxq.graph.operators import (
    WEIGHTED,
    from_rows,
    groups_of,
    output_channels,
    to_rows,
    weight_of,
)

Array = NDArray[np.float64]

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
        return to_rows(self.node, self.stored.astype(np.float64))


def layer_of(node: ir.Node | None) -> WeightedNode | None:
    """View the node as a weighted node; None if it is none, or its weights or bias are no constant floats."""
    if node is None or not is_op(node, *WEIGHTED) or sole_output(node) is None:
        return None
    stored = constant_value(weight_of(node))
    if stored is None or ir.DataType.from_numpy(stored.dtype) not in FLOATS:
        return None
    if not _is_plain(node, stored.ndim):
        return None
    channels = output_channels(node, stored.shape)
    bias = input_at(node, 2)
    row = None if bias is None else as_row(constant_value(bias), channels)
    if bias is not None and row is None:
        return None
    return WeightedNode(node, stored, channels, None if row is None else row.astype(np.float64))


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


def channel_axis_and_rank(layer: WeightedNode) -> tuple[int, int]:
    """Return the channel axis of the output, and the output's rank.

    If the rank of a MatMul is unknown, it is taken as 1: constants that broadcast to it fit any rank.
    """
    if layer.node.op_type != "MatMul":
        return 1, layer.stored.ndim
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
    group = groups_of(layer.node)
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
    new_weight, new_bias = stored_as(kind, from_rows(layer.node, weight)), stored_as(kind, bias)
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

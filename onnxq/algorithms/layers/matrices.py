"""Operators with constant weights as groups of matrices, the common form for all algorithms.

``y[g, o] = sum over k of W[g, o, k] * x[g, k] + b[g, o]``, with G groups of O outputs and K inputs each. For
a convolution, x is the patch of the input under the kernel for one output position (im2col), and K is the
number of input channels per group times the number of kernel taps. A depthwise convolution has one group per
channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.core.plan import QuantPlan, QuantPoint
from onnxq.graph.nodes import constant_value, int_attribute, name_of, rank
from onnxq.graph.operators import (
    WEIGHTED,
    from_rows,
    groups_of,
    row_shape,
    spatial_rank,
    to_rows,
    weight_of,
)
from onnxq.graph.walks import only_use

Floats = NDArray[np.float32]

_One = TypeVar("_One")


@dataclass(frozen=True)
class MatrixLayer:
    """A quantized node with constant weights.

    Attributes:
        name: name of the node, the same in every copy of the model.
        op_type: operator of the node.
        data: quantization point of its data input.
        weight: quantization point of its weights.
        shape: shape of the weights as matrices, (G, O, K).
    """

    name: str
    op_type: str
    data: QuantPoint
    weight: QuantPoint
    shape: tuple[int, int, int]


def layers(model: ir.Model, plan: QuantPlan) -> list[MatrixLayer]:
    """Return the layers of ``plan`` whose data and weights are both quantized, in graph order."""
    points = {(point.consumer, point.input_index): point for point in plan.points}
    return [layer for node in model.graph if (layer := _layer(node, points)) is not None]


def with_own_weights(model: ir.Model, plan: QuantPlan) -> list[MatrixLayer]:
    """Return the layers whose weights have no other consumer.

    The inputs of another consumer might need another rounding of the same weights.
    """
    constants = model.graph.initializers
    return [one for one in layers(model, plan) if only_use(constants[one.weight.tensor])]


def in_parts(found: Iterable[_One], size: Callable[[_One], int], most: int) -> Iterator[list[_One]]:
    """Split consecutive layers into parts whose total size is at most ``most``.

    Args:
        found: the layers, or one thing for each, in graph order.
        size: returns the size of one of them, in the unit of ``most``.
        most: the largest total size of a part. A single layer that is larger is a part of its own.
    """
    part: list[_One] = []
    total = 0
    for one in found:
        if part and total + size(one) > most:
            yield part
            part, total = [], 0
        part.append(one)
        total += size(one)
    if part:
        yield part


def _layer(node: ir.Node, points: Mapping[tuple[str, int], QuantPoint]) -> MatrixLayer | None:
    operator = WEIGHTED.get(node.op_type)
    if operator is None:
        return None
    name = name_of(node)
    data, weight = points.get((name, operator.data)), points.get((name, operator.weight))
    matrix = matrices_of(node) if data is not None and weight is not None else None
    if data is None or weight is None or matrix is None:
        return None
    return MatrixLayer(name, node.op_type, data, weight, matrix.shape)


def channel_axes(model: ir.Model, plan: QuantPlan) -> dict[str, int]:
    """Return the axis of the input channels, counted from the end, of each tensor that layers read.

    A tensor whose channel axis is its first axis (a vector or a transposed matrix) is left out, because
    statistics take the first axis as the batch axis. So is a tensor whose consumers sum over different axes.
    """
    nodes, found = {node.name: node for node in model.graph}, dict[str, set[int]]()
    for layer in layers(model, plan):
        node = nodes[layer.name]
        if (rank(node.inputs[WEIGHTED[layer.op_type].data]) or 0) > -_summed_axis(node):
            found.setdefault(layer.data.tensor, set()).add(_summed_axis(node))
    return {tensor: axes.pop() for tensor, axes in found.items() if len(axes) == 1}


def _summed_axis(node: ir.Node) -> int:
    return -2 if int_attribute(node, "transA", 0) else channel_axis(node)


def channel_axis(node: ir.Node) -> int:
    """Return the axis of the output channels in the output of a layer, counted from the end."""
    return -1 - spatial_rank(node)


def weights_of(node: ir.Node) -> NDArray[np.generic] | None:
    """Return the weights of a layer; None if they are not constant."""
    return constant_value(weight_of(node))


def matrices_of(node: ir.Node) -> Floats | None:
    """Return the constant weights of a node as ``[G, O, K]``; None if it has none, or none of this form."""
    values = weights_of(node) if node.op_type in WEIGHTED and node.domain == "" else None
    if values is None or not values.size or values.ndim < 2:
        return None
    return None if node.op_type in ("Gemm", "MatMul") and values.ndim != 2 else matrices(node, values)


def matrices(node: ir.Node, weight: NDArray[np.generic]) -> Floats:
    """Return weights in the layout of the operator as ``[G, O, K]``; a copy where the layouts differ."""
    rows, groups = to_rows(node, np.asarray(weight, np.float32)), groups_of(node)
    return rows.reshape(groups, len(rows) // groups, -1)


def weights(node: ir.Node, matrix: Floats, shape: tuple[int, ...]) -> Floats:
    """Return ``[G, O, K]`` in the layout of the operator: the inverse of `matrices`.

    Args:
        node: the layer.
        matrix: the weights as ``[G, O, K]``.
        shape: shape of the weights in the layout of the operator.
    """
    return np.ascontiguousarray(from_rows(node, matrix.reshape(row_shape(node, shape))), np.float32)

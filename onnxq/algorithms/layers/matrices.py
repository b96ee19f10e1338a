"""Every operator with constant weights as groups of matrices: the one form that the algorithms work on.

``y[g, o] = sum over k of W[g, o, k] * x[g, k] + b[g, o]``, with G groups of O outputs and K inputs each. For
a convolution, x is the patch of its input under the kernel, at one place of the output; K counts the input
channels of a group times the taps of the kernel. A depthwise convolution has a group for each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.core.plan import QuantPlan, QuantPoint
from onnxq.graph.nodes import constant_value, int_attribute, name_of, rank
from onnxq.graph.operators import (
    WEIGHTED,
    from_rows,
    groups_of,
    output_rank_after_channels,
    row_shape,
    to_rows,
    weight_of,
    weight_shape,
)
from onnxq.graph.walks import only_use

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MatrixLayer:
    """A quantized node with constant weights.

    Attributes:
        name: the node's, the same in every copy of the model.
        op_type: its operator.
        data: the quantized edge that its input comes by.
        weight: the quantized edge that its weights come by.
        shape: (G, O, K).
    """

    name: str
    op_type: str
    data: QuantPoint
    weight: QuantPoint
    shape: tuple[int, int, int]


def layers(model: ir.Model, plan: QuantPlan) -> list[MatrixLayer]:
    """The layers of ``plan`` whose data and weights are both quantized, in graph order."""
    points = {(point.consumer, point.input_index): point for point in plan.points}
    return [layer for node in model.graph if (layer := _layer(node, points)) is not None]


def with_own_weights(model: ir.Model, plan: QuantPlan) -> list[MatrixLayer]:
    """The layers that alone read their weights: other readers' inputs might want them rounded otherwise."""
    constants = model.graph.initializers
    return [one for one in layers(model, plan) if only_use(constants[one.weight.tensor])]


def in_parts(
    found: Iterable[MatrixLayer], size: Callable[[MatrixLayer], int], most: int
) -> Iterator[list[MatrixLayer]]:
    """Neighbours together, as many as have at most the size ``most``; a single one may have more."""
    part: list[MatrixLayer] = []
    for layer in found:
        if part and sum(map(size, (*part, layer))) > most:
            yield part
            part = []
        part.append(layer)
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
    """The tensors that layers read, and which axis (from the end) counts the channels that they sum over.

    Without those whose first axis that is (vectors, transposed matrices): it counts samples everywhere else.
    And without those that two layers sum over different axes of.
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
    """The axis, from the end, that counts the channels of the layer's output."""
    return -1 - output_rank_after_channels(node, len(weight_shape(node)))


def weights_of(node: ir.Node) -> NDArray[np.generic] | None:
    """The constant weights of a node that has some."""
    return constant_value(weight_of(node))


def matrices_of(node: ir.Node) -> Floats | None:
    """The constant weights of a node as ``[G, O, K]``; None where it has none that are matrices."""
    values = weights_of(node) if node.op_type in WEIGHTED and node.domain == "" else None
    if values is None or not values.size or values.ndim < 2:
        return None
    return None if node.op_type in ("Gemm", "MatMul") and values.ndim != 2 else matrices(node, values)


def matrices(node: ir.Node, weight: NDArray[np.generic]) -> Floats:
    """Weights as the operator has them -> ``[G, O, K]``; a copy where the layout differs."""
    rows, groups = to_rows(node, np.asarray(weight, np.float32)), groups_of(node)
    return rows.reshape(groups, len(rows) // groups, -1)


def weights(node: ir.Node, matrix: Floats, shape: tuple[int, ...]) -> Floats:
    """The inverse of `matrices`: ``[G, O, K]`` -> weights of this ``shape``."""
    return np.ascontiguousarray(from_rows(node, matrix.reshape(row_shape(node, shape))), np.float32)

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
from onnxq.graph.nodes import constant_value, int_attribute, rank
from onnxq.graph.operators import WEIGHTED

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
    return [one for one in layers(model, plan) if len(tuple(constants[one.weight.tensor].uses())) == 1]


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
    name = node.name or ""
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
    return -2 if _is_transposed(node, "transA") else channel_axis(node)


def channel_axis(node: ir.Node) -> int:
    """The axis, from the end, that counts the channels of the layer's output."""
    weight = node.inputs[WEIGHTED[node.op_type].weight]
    assert weight is not None
    assert weight.shape is not None
    spatial = len(weight.shape) - 2 if node.op_type in ("Conv", "ConvTranspose") else 0
    return -1 - spatial


def weights_of(node: ir.Node) -> NDArray[np.generic] | None:
    """The constant weights of a node that has some."""
    return constant_value(node.inputs[WEIGHTED[node.op_type].weight])


def matrices_of(node: ir.Node) -> Floats | None:
    """The constant weights of a node as ``[G, O, K]``; None where it has none that are matrices."""
    values = weights_of(node) if node.op_type in WEIGHTED and node.domain == "" else None
    if values is None or not values.size or values.ndim < 2:
        return None
    return None if node.op_type in ("Gemm", "MatMul") and values.ndim != 2 else matrices(node, values)


def matrices(node: ir.Node, weight: NDArray[np.generic]) -> Floats:
    """Weights as the operator has them -> ``[G, O, K]``; a copy where the layout differs."""
    return _FORMS[node.op_type].to_matrices(node, np.asarray(weight, np.float32))


def weights(node: ir.Node, matrix: Floats, shape: tuple[int, ...]) -> Floats:
    """The inverse of `matrices`: ``[G, O, K]`` -> weights of this ``shape``."""
    return np.ascontiguousarray(_FORMS[node.op_type].from_matrices(node, matrix, shape), np.float32)


# --- Convolutions -----------------------------------------------------------------------------


def groups_of(node: ir.Node) -> int:
    """The groups of a convolution."""
    return int_attribute(node, "group", 1)


def _conv_matrices(node: ir.Node, weight: Floats) -> Floats:
    groups = groups_of(node)
    return weight.reshape(groups, len(weight) // groups, -1)


def _conv_weights(node: ir.Node, matrix: Floats, shape: tuple[int, ...]) -> Floats:
    return matrix.reshape(shape)


def _transposed_matrices(node: ir.Node, weight: Floats) -> Floats:
    """``[C_in, C_out / G, ...]`` -> ``[G, C_out / G, C_in / G * taps]``."""
    groups = groups_of(node)
    inputs, outputs = weight.shape[:2]
    split = weight.reshape(groups, inputs // groups, outputs, -1)
    result: Floats = split.transpose(0, 2, 1, 3).reshape(groups, outputs, -1)
    return result


def _transposed_weights(node: ir.Node, matrix: Floats, shape: tuple[int, ...]) -> Floats:
    groups = groups_of(node)
    split = matrix.reshape(groups, shape[1], shape[0] // groups, -1)
    result: Floats = split.transpose(0, 2, 1, 3).reshape(shape)
    return result


# --- Matrices ---------------------------------------------------------------------------------


def _is_transposed(node: ir.Node, name: str) -> bool:
    return int_attribute(node, name, 0) != 0


def _gemm_matrices(node: ir.Node, weight: Floats) -> Floats:
    return np.asarray((weight if _is_transposed(node, "transB") else weight.T)[None])


def _gemm_weights(node: ir.Node, matrix: Floats, shape: tuple[int, ...]) -> Floats:
    return np.asarray(matrix[0] if _is_transposed(node, "transB") else matrix[0].T)


@dataclass(frozen=True)
class _Form:
    """How one operator's weights become matrices, and these weights again."""

    to_matrices: Callable[[ir.Node, Floats], Floats]
    from_matrices: Callable[[ir.Node, Floats, tuple[int, ...]], Floats]


_FORMS: Mapping[str, _Form] = {
    "Conv": _Form(_conv_matrices, _conv_weights),
    "ConvTranspose": _Form(_transposed_matrices, _transposed_weights),
    "Gemm": _Form(_gemm_matrices, _gemm_weights),
    "MatMul": _Form(_gemm_matrices, _gemm_weights),
}

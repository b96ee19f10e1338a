"""Properties of ONNX operators that matter for quantization on any target: weights, channels, ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import onnx.defs
import onnx.helper
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import constant_value, input_at, int_attribute, ints_attribute, rank

Range = tuple[float, float]
Shape = tuple[int, ...]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Weighted:
    """The roles of the inputs of an operator with weights, and the axis of its output channels.

    Attributes:
        channel_axis: node, rank of the weight -> the weight's output-channel axis, or None.
        data: position of the data input.
        weight: position of the weight.
        bias: position of the bias; None if the operator has none.
    """

    channel_axis: Callable[[ir.Node, int], int | None]
    data: int = 0
    weight: int = 1
    bias: int | None = 2


def _conv_transpose_axis(node: ir.Node, rank: int) -> int | None:
    # [C_in, C_out / group, ...]: with groups, one axis-1 channel is several output channels.
    return 1 if groups_of(node) == 1 else None


def _flag(node: ir.Node, name: str) -> int:
    """1 if an attribute of a Gemm is set, else 0: runtimes take any number but 0 for true."""
    return int(node.attributes.get_int(name, 0) != 0)


WEIGHTED: Mapping[str, Weighted] = {
    "Conv": Weighted(lambda node, rank: 0),
    "ConvTranspose": Weighted(_conv_transpose_axis),
    "Gemm": Weighted(lambda node, rank: 1 - _flag(node, "transB")),
    # Runtimes support no axis for a stack of matrices: it gets one scale for all.
    "MatMul": Weighted(lambda node, rank: 1 if rank == 2 else None, bias=None),
}

SUMMED_AXIS: Mapping[str, Callable[[ir.Node], int]] = {
    "Gemm": lambda node: _flag(node, "transB"),
    "MatMul": lambda node: 0,
}
"""Operator -> function from its node to the weight axis that it sums over, which is cut into blocks."""

INPUT_CHANNELS: Mapping[str, Callable[[ir.Node, Shape], tuple[int, int]]] = {
    "Conv": lambda node, shape: (1, shape[1] * groups_of(node)),
    "ConvTranspose": lambda node, shape: (1, shape[0]),
    "Gemm": lambda node, shape: (1 - _flag(node, "transA"), shape[_flag(node, "transB")]),
}
"""Operator -> function from node and weight shape to the input-channel axis of the data, and its size."""


def weight_of(node: ir.Node) -> ir.Value | None:
    """Return the weight of a node with weights, computed or constant."""
    return input_at(node, WEIGHTED[node.op_type].weight)


def weight_shape(node: ir.Node) -> Shape:
    """Return the shape of a weight whose shape is known, in the operator's own layout."""
    weight = weight_of(node)
    assert weight is not None
    assert weight.shape is not None
    return tuple(int(size) for size in weight.shape.numpy())


def groups_of(node: ir.Node) -> int:
    """Return the number of groups of a convolution; 1 for matrix products."""
    return int_attribute(node, "group", 1)


def spatial_rank(node: ir.Node) -> int:
    """Count the spatial axes of a convolution whose weight has a known rank; 0 for matrix products."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return 0
    known = rank(weight_of(node))
    assert known is not None
    return known - 2


def output_channels(node: ir.Node, shape: Shape) -> int:
    """Return the number of output channels.

    Args:
        node: a node with weights.
        shape: the shape of its weight, in the operator's own layout.
    """
    return row_shape(node, shape)[0]


def row_shape(node: ir.Node, shape: Shape) -> Shape:
    """Return the shape of a weight with its output channels first: ``[C_out, C_in / groups, ...]``.

    Args:
        node: a node with weights.
        shape: the shape of the weight in the operator's own layout; of rank 2 for matrix products.
    """
    if node.op_type == "ConvTranspose":
        return shape[1] * groups_of(node), shape[0] // groups_of(node), *shape[2:]
    return shape[::-1] if _columns_last(node) else shape


def to_rows(node: ir.Node, weight: NDArray[Number]) -> NDArray[Number]:
    """Put the output channels of a weight first: the operator's own layout -> `row_shape`.

    Args:
        node: a node with weights.
        weight: the weight; of rank 2 for matrix products.

    Returns:
        A view where no value has to move.
    """
    if node.op_type == "ConvTranspose":  # [C_in, C_out / groups, ...]
        return _swapped(weight.reshape(groups_of(node), -1, *weight.shape[1:]))
    return weight.T if _columns_last(node) else weight


def from_rows(node: ir.Node, rows: NDArray[Number]) -> NDArray[Number]:
    """Invert `to_rows`.

    Args:
        node: a node with weights.
        rows: the weight with its output channels first.
    """
    if node.op_type == "ConvTranspose":
        return _swapped(rows.reshape(groups_of(node), -1, *rows.shape[1:]))
    return np.ascontiguousarray(rows.T) if _columns_last(node) else rows


def _swapped(grouped: NDArray[Number]) -> NDArray[Number]:
    """``[G, A, B, ...] -> [G * B, A, ...]``."""
    swapped = np.ascontiguousarray(grouped.swapaxes(1, 2))
    return swapped.reshape(-1, *swapped.shape[2:])


def _columns_last(node: ir.Node) -> bool:
    """Whether the operator stores a matrix as [C_in, C_out]."""
    return node.op_type in SUMMED_AXIS and SUMMED_AXIS[node.op_type](node) == 0


def is_depthwise(node: ir.Node) -> bool:
    """Whether the node is a Conv with one group per input channel, and more than one group."""
    return node.op_type == "Conv" and groups_of(node) > 1 and group_channels(node) == 1


def is_single_channel(node: ir.Node) -> bool:
    """Whether the node is a Conv with one input and one output channel."""
    weight = weight_of(node) if node.op_type == "Conv" else None
    return weight is not None and weight.shape is not None and list(weight.shape[:2]) == [1, 1]


def group_channels(node: ir.Node) -> int | None:
    """Return the number of input channels per group of a convolution; None if unknown."""
    weight = weight_of(node)
    size = None if weight is None or weight.shape is None else weight.shape[1]
    return size if isinstance(size, int) else None


def weight_sizes(node: ir.Node) -> tuple[int, ...]:
    """Return the known channels of a weight: outputs and inputs per group, or both axes of a matrix."""
    weight = weight_of(node)
    sizes = () if weight is None or weight.shape is None else tuple(weight.shape)
    chosen = sizes[:2] if node.op_type in ("Conv", "ConvTranspose") else sizes[-2:]
    return tuple(size for size in chosen if isinstance(size, int))


def window_elements(node: ir.Node) -> int | None:
    """Count the elements of the window of a convolution, 9 for 3x3; 1 for a matrix, None if unknown."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return 1
    sizes = ints_attribute(node, "kernel_shape", ()) or _shape(weight_of(node))[2:]
    return _product(sizes) if sizes else None


MOVING = frozenset(
    (
        *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherElements"),
        *("GatherND", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Split"),
    )
)
"""Operators that only move values."""

_ONE_OPERAND = (
    *("Clip", "Relu", "LeakyRelu", "Sigmoid", "Softmax", "Pad"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Resize"),
    *("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd"),
    *sorted(MOVING),
)

DATA_INPUTS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(_ONE_OPERAND, (0,)),
    "Where": (1, 2),
    "BatchNormalization": (0, 1, 2),
}
"""Inputs that hold values; others hold indices, shapes or limits. For operators not listed: all inputs."""


def _shape(value: ir.Value | None) -> Sequence[int | ir.SymbolicDim]:
    return () if value is None or value.shape is None else tuple(value.shape)


def _product(sizes: Sequence[int | ir.SymbolicDim]) -> int | None:
    """Multiply the sizes; None if a size is unknown, or there are none."""
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if sizes and len(known) == len(sizes) else None


def _kernel(node: ir.Node) -> int | None:
    return _product(_shape(weight_of(node))[2:])


def _upsampling_kernel(node: ir.Node) -> int | None:
    """Count the kernel elements that contribute to one output element; the others meet inserted zeros."""
    kernel = _kernel(node)
    strides = ints_attribute(node, "strides", ())
    return None if kernel is None else max(1, kernel // math.prod(strides))


def _reduced(node: ir.Node) -> int | None:
    shape = _shape(node.inputs[0])
    axes = constant_value(input_at(node, 1))
    chosen = ints_attribute(node, "axes", ()) if axes is None else tuple(axes.reshape(-1).tolist())
    if not shape or (len(node.inputs) > 1 and axes is None):
        return None
    return _product([shape[axis] for axis in chosen] if chosen else shape)


_ONE_TO_ONE = (
    *("Add", "Sub", "Mul", "Div", "Concat", "Split", "Slice", "Pad", "MaxPool", "Resize", "Identity"),
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu"),
    *("BatchNormalization", "DepthToSpace", "SpaceToDepth"),
)

AVERAGED: Mapping[str, Callable[[ir.Node], int | None]] = {
    **dict.fromkeys(_ONE_TO_ONE, lambda node: 1),
    "Conv": _kernel,
    "ConvTranspose": _upsampling_kernel,
    "AveragePool": lambda node: math.prod(ints_attribute(node, "kernel_shape", ())),
    "GlobalAveragePool": lambda node: _product(_shape(node.inputs[0])[2:]),
    "ReduceMean": _reduced,
}
"""Operator -> function from node to the number of elements of one feature that an output element sums.

The number is None if unknown. Operators that mix features and positions (MatMul, normalization ...) are not
listed.
"""

BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "PRelu"})
"""Operators that broadcast a smaller operand."""


def attribute_value(node: ir.Node, name: str) -> Any:
    """Return an attribute's value, or its default in the operator's specification; None if it has none."""
    attribute = node.attributes.get(name)
    if attribute is not None:
        return attribute.value
    version = node.version or (node.graph.opset_imports.get("") if node.graph is not None else None)
    return _default(node.op_type, name, version or onnx.defs.onnx_opset_version())


def misfit(node: ir.Node, unknown: Collection[str], together: Mapping[str, Any]) -> str | None:
    """Explain which attributes of a node a kernel does not compute; None if it computes all.

    Args:
        node: the node.
        unknown: attributes that the kernel does not know.
        together: values of attributes that the kernel does not compute if the node has them all.
    """
    found = [name for name in unknown if name in node.attributes]
    if found:
        return f"the integer kernel does not know its attribute {', '.join(sorted(found))}"
    if together and all(attribute_value(node, name) == value for name, value in together.items()):
        values = " and ".join(f"{name} {value}" for name, value in together.items())
        return f"with {values} together the integer kernel computes something else"
    return None


@cache
def _default(op_type: str, name: str, opset: int) -> Any:
    schema = onnx.defs.get_schema(op_type, min(opset, onnx.defs.onnx_opset_version()))
    if name not in schema.attributes:
        return None
    default = schema.attributes[name].default_value
    value = onnx.helper.get_attribute_value(default) if default.name else None
    return value.decode() if isinstance(value, bytes) else value


def data_inputs(node: ir.Node) -> tuple[int, ...]:
    """Return the positions of the inputs that hold values to be quantized, with weights, without bias."""
    if weighted := WEIGHTED.get(node.op_type):
        return (weighted.data, weighted.weight)
    default = tuple(i for i, value in enumerate(node.inputs) if value is not None)
    return DATA_INPUTS.get(node.op_type, default)


def data_values(node: ir.Node) -> list[ir.Value]:
    """List the inputs at `data_inputs` that are given."""
    values = (input_at(node, index) for index in data_inputs(node))
    return [value for value in values if value is not None]


def clip_range(node: ir.Node) -> Range | None:
    """Return the limits of a Relu or Clip; None for other operators, or limits known only at run time."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    limits = []
    for index, unlimited in ((1, -math.inf), (2, math.inf)):
        value = node.inputs[index] if index < len(node.inputs) else None
        constant = constant_value(value) if value is not None else None
        if value is not None and constant is None:
            return None
        limits.append(float(constant.reshape(-1)[0]) if constant is not None else unlimited)
    return limits[0], limits[1]


def _hard_sigmoid(node: ir.Node) -> Range:
    alpha = node.attributes.get_float("alpha", 0.2)
    beta = node.attributes.get_float("beta", 0.5)
    return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else (-math.inf, math.inf)


def useful_range(node: ir.Node) -> Range:
    """Return the range of input values of ``node`` beyond which its output does not change."""
    if limits := clip_range(node):
        return limits
    if node.op_type == "HardSigmoid":
        return _hard_sigmoid(node)
    if node.op_type == "HardSwish":
        return -3.0, math.inf
    return -math.inf, math.inf

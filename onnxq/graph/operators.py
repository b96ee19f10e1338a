"""Properties of ONNX operators that matter for quantization on any target: weights, channels, ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx.defs
import onnx.helper
import onnx_ir as ir

from onnxq.graph.nodes import constant_value, input_at, ints_attribute

Range = tuple[float, float]
Shape = tuple[int, ...]


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
    return 1 if node.attributes.get_int("group", 1) == 1 else None


WEIGHTED: Mapping[str, Weighted] = {
    "Conv": Weighted(lambda node, rank: 0),
    "ConvTranspose": Weighted(_conv_transpose_axis),
    "Gemm": Weighted(lambda node, rank: 0 if node.attributes.get_int("transB", 0) else 1),
    # Runtimes support no axis for a stack of matrices: it gets one scale for all.
    "MatMul": Weighted(lambda node, rank: 1 if rank == 2 else None, bias=None),
}

SUMMED_AXIS: Mapping[str, Callable[[ir.Node], int]] = {
    "Gemm": lambda node: node.attributes.get_int("transB", 0),
    "MatMul": lambda node: 0,
}
"""Operator -> function from its node to the weight axis that it sums over, which is cut into blocks."""

INPUT_CHANNELS: Mapping[str, Callable[[ir.Node, Shape], tuple[int, int]]] = {
    "Conv": lambda node, shape: (1, shape[1] * node.attributes.get_int("group", 1)),
    "ConvTranspose": lambda node, shape: (1, shape[0]),
    "Gemm": lambda node, shape: (
        1 - node.attributes.get_int("transA", 0),
        shape[node.attributes.get_int("transB", 0)],
    ),
}
"""Operator -> function from node and weight shape to the input-channel axis of the data, and its size."""


def is_depthwise(node: ir.Node) -> bool:
    """Whether the node is a Conv with one group per input channel, and more than one group."""
    return node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1 and group_channels(node) == 1


def group_channels(node: ir.Node) -> int | None:
    """Return the number of input channels per group of a convolution; None if unknown."""
    weight = node.inputs[WEIGHTED["Conv"].weight]
    size = None if weight is None or weight.shape is None else weight.shape[1]
    return size if isinstance(size, int) else None


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

DATA_INPUTS: Mapping[str, tuple[int, ...]] = {**dict.fromkeys(_ONE_OPERAND, (0,)), "Where": (1, 2)}
"""Inputs that hold values; others hold indices, shapes or limits. For operators not listed: all inputs."""


def _shape(value: ir.Value | None) -> Sequence[int | ir.SymbolicDim]:
    return () if value is None or value.shape is None else tuple(value.shape)


def _product(sizes: Sequence[int | ir.SymbolicDim]) -> int | None:
    """Multiply the sizes; None if a size is unknown, or there are none."""
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if sizes and len(known) == len(sizes) else None


def _kernel(node: ir.Node) -> int | None:
    return _product(_shape(node.inputs[WEIGHTED[node.op_type].weight])[2:])


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

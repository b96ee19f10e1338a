"""Quantize Conv: ConvInteger, followed by per-channel scales and the bias in float.

ONNX Runtime has no fused kernel for these. Weights are uint8 with 128 as zero point: the same numbers, which
its older versions take (1.20 has no ConvInteger for int8), and newer ones run four times as fast (1.31).
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import constant_value, input_at
from onnxq.pipelines.dynamic.input_checks import is_computed, needs_float, weight_obstacle
from onnxq.pipelines.dynamic.matmul import LONGEST_SUM
from onnxq.pipelines.dynamic.rewriter import FLOAT, Array, Layout, ModelRewriter

SHIFT = 128
"""The zero point of the stored weights."""


def conv_obstacle(node: ir.Node) -> str | None:
    """Say why this Conv is kept in float; None if it can be quantized."""
    data, weight = node.inputs[:2]
    if (reason := needs_float(data, weight)) is not None:
        return reason
    array = constant_value(weight)
    if array is None:
        return "its weights are computed at run time"
    if is_computed(input_at(node, 2)):
        return "its bias is computed at run time"
    if math.prod(array.shape[1:]) > LONGEST_SUM:
        return f"a sum of {math.prod(array.shape[1:])} products may not fit into 32 bits"
    return weight_obstacle(array)


def rewrite_conv(node: ir.Node, rewriter: ModelRewriter) -> None:
    """Replace the node by ConvInteger and nodes that scale its result and add the bias."""
    data, weight = node.inputs[:2]
    assert data is not None
    assert weight is not None
    levels, scale, zero = rewriter.quantized(data, node)
    factors, factor_scale = rewriter.packed(weight, 0, _SHIFTED)
    middle = rewriter.constant("conv_weight_zero_point", np.array(SHIFT, np.uint8))
    (sums,) = rewriter.add("ConvInteger", [levels, factors, zero, middle], node, dict(node.attributes))
    (reals,) = rewriter.add("Cast", [sums], node, FLOAT)
    (scales,) = rewriter.add("Mul", [scale, _beside(factor_scale, weight, rewriter)], node)
    (real,) = rewriter.add("Mul", [reals, scales], node)
    bias = input_at(node, 2)
    if bias is not None:
        (real,) = rewriter.add("Add", [real, _beside(bias, weight, rewriter)], node)
    rewriter.replace(node, real)


def _shifted(integers: Array) -> Array:
    """Store int8 as uint8."""
    return (integers.astype(np.int16) + SHIFT).astype(np.uint8)


_SHIFTED = Layout(integers=_shifted)


def _beside(value: ir.Value, weight: ir.Value, rewriter: ModelRewriter) -> ir.Value:
    """Reshape a per-channel or single constant to ``[C, 1, …]``, so that it broadcasts over the output."""
    array = constant_value(value)
    kernel = constant_value(weight)
    assert array is not None
    assert kernel is not None
    return rewriter.constant(f"{value.name}_column", _column(array, kernel.ndim - 1))


def _column(array: Array, axes: int) -> Array:
    return np.asarray(array).reshape(-1, *(1,) * (axes - 1))

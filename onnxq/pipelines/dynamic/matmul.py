"""Quantize MatMul and Gemm: ``y = (q_x - z_x) @ q_w * (s_x * s_w) + bias``.

q_x, s_x and z_x come from DynamicQuantizeLinear; q_w has one scale per column and zero point 0. ONNX Runtime
fuses all of this, bias included, into one DynamicQuantizeMatMul. If several nodes share the quantized data,
it makes a MatMulIntegerToFloat for each of them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import constant_value, input_at, rank
from onnxq.graph.operators import SUMMED_AXIS, attribute_value
from onnxq.pipelines.dynamic.input_checks import (
    LEAST_WEIGHTS,
    SCALING,
    is_computed,
    needs_float,
    weight_obstacle,
)
from onnxq.pipelines.dynamic.rewriter import FLOAT, Array, Layout, ModelRewriter

LONGEST_SUM = (2**31 - 1) // (255 * 128)
"""The most products of uint8 and int8 whose sum always fits into 32 bits."""


def matmul_obstacle(node: ir.Node) -> str | None:
    """Say why this MatMul is kept in float; None if it can be quantized."""
    data, weight = node.inputs
    if is_computed(weight):
        return needs_float(data, weight) or _too_flat(data, weight)
    return _matrix_obstacle(node, columns=1)


def gemm_obstacle(node: ir.Node) -> str | None:
    """Say why this Gemm is kept in float; None if it can be quantized."""
    for name, wanted in (("transA", 0), ("alpha", 1.0), ("beta", 1.0)):
        if (actual := attribute_value(node, name)) != wanted:
            return f"its {name} is {actual}, the integer kernel needs {wanted}"
    return _matrix_obstacle(node, columns=1 - SUMMED_AXIS["Gemm"](node))


def rewrite_matmul(node: ir.Node, rewriter: ModelRewriter) -> None:
    """Replace the node by MatMulInteger and nodes that scale its result."""
    data, weight = node.inputs
    assert data is not None
    assert weight is not None
    levels, scale, zero = rewriter.quantized(data, node)
    if is_computed(weight):
        factors, factor_scale, factor_zero = rewriter.quantized(weight, node)
        rewriter.replace(
            node, _product(node, [levels, factors, zero, factor_zero], scale, factor_scale, rewriter)
        )
        return
    factors, factor_scale = rewriter.packed(weight, 1, _COLUMNS)
    rewriter.replace(node, _product(node, [levels, factors, zero], scale, factor_scale, rewriter))


def rewrite_gemm(node: ir.Node, rewriter: ModelRewriter) -> None:
    """Replace the node by MatMulInteger and nodes that scale its result and add the bias in float."""
    data, weight = node.inputs[:2]
    assert data is not None
    assert weight is not None
    levels, scale, zero = rewriter.quantized(data, node)
    columns = 1 - SUMMED_AXIS["Gemm"](node)
    factors, factor_scale = rewriter.packed(weight, columns, _COLUMNS if columns else _ROWS)
    real = _product(node, [levels, factors, zero], scale, factor_scale, rewriter)
    bias = input_at(node, 2)
    if bias is not None:
        (real,) = rewriter.add("Add", [real, _row(bias, rewriter)], node)
    rewriter.replace(node, real)


def _product(
    node: ir.Node, inputs: list[ir.Value | None], scale: ir.Value, other: ir.Value, rewriter: ModelRewriter
) -> ir.Value:
    (sums,) = rewriter.add("MatMulInteger", inputs, node)
    (reals,) = rewriter.add("Cast", [sums], node, FLOAT)
    (scales,) = rewriter.add("Mul", [scale, other], node)
    (real,) = rewriter.add("Mul", [reals, scales], node)
    return real


def _flat(scale: Array) -> Array:
    """Reshape scales to ``[N]`` or ``()``, the only shapes that ONNX Runtime fuses."""
    return scale.reshape(-1) if scale.size > 1 else scale.reshape(())


_COLUMNS = Layout(scale=_flat)
_ROWS = Layout(integers=np.transpose, scale=_flat)
"""The layout of a Gemm with transposed weights: MatMulInteger does not transpose."""


def _row(bias: ir.Value, rewriter: ModelRewriter) -> ir.Value:
    """Reshape a constant bias to ``[N]``, which is fused; other biases are added as they are."""
    array = constant_value(bias)
    if array is None or array.ndim < 2 or array.size != array.shape[-1]:
        return bias
    return rewriter.constant(f"{bias.name}_row", array.reshape(-1))


def _too_flat(*values: ir.Value | None) -> str | None:
    if any((rank(value) or 2) < 2 for value in values):
        return "it multiplies a vector, not a matrix"
    return None


def _matrix_obstacle(node: ir.Node, columns: int) -> str | None:
    data, weight = node.inputs[:2]
    if (reason := needs_float(data, weight)) is not None:
        return reason
    array: Array | None = constant_value(weight)
    if array is None:
        return "its second operand is computed at run time"
    if array.ndim != 2:
        return f"its weights have {array.ndim} axes, the integer kernel takes matrices"
    if array.shape[1 - columns] > LONGEST_SUM:
        return f"a sum of {array.shape[1 - columns]} products may not fit into 32 bits"
    if array.shape[1 - columns] == 1:
        return SCALING
    if array.size < LEAST_WEIGHTS:
        return f"with less than {LEAST_WEIGHTS} weights, quantizing the data costs more than it saves"
    return _too_flat(data) or weight_obstacle(array)

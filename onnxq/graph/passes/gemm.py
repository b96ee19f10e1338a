"""Canonical forms of Gemm: fuse MatMul and Add to Gemm, and fold alpha and beta into the constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import (
    all_nodes,
    constant_value,
    input_at,
    is_op,
    rank,
    replace_constant,
    replace_value,
)
from onnxq.graph.operators import output_channels
from onnxq.graph.passes._affine import is_private
from onnxq.graph.passes._weighted import FLOATS, as_row
from onnxq.graph.walks import producer_of


class MatMulAddToGemmPass(ir.passes.InPlacePass):
    """Fuse a MatMul and the Add of a bias to a Gemm, if the input is a matrix.

        x[M, K] · W[K, N] + b[N]  ->  Gemm(x, W, b)

    The Gemm has the MatMul's node name and the Add's output name. There is no Gemm for inputs of other ranks:
    then MatMul and Add stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every pair with constant weight and bias and an input of rank 2."""
        changed = [_fuse_gemm(model, node) for node in list(all_nodes(model))]
        return ir.passes.PassResult(model, modified=any(changed))


def _fuse_gemm(model: ir.Model, add: ir.Node) -> bool:
    if not is_op(add, "Add"):
        return False
    for product, bias in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        matmul = producer_of(product)
        if product is None or bias is None or matmul is None or not is_private(product, add):
            continue
        row = _bias_row(matmul, bias)
        if row is not None:
            _rewrite(model, matmul, add, bias, row)
            return True
    return False


def _bias_row(matmul: ir.Node, bias: ir.Value) -> NDArray[np.generic] | None:
    """Return the bias as [N]; None if this is not x[M, K] · W[K, N] + constant row."""
    weight, stored = constant_value(input_at(matmul, 1)), constant_value(bias)
    if not is_op(matmul, "MatMul") or weight is None or stored is None:
        return None
    if ir.DataType.from_numpy(weight.dtype) not in FLOATS:  # runtimes have no Gemm of integers
        return None
    is_matrix = weight.ndim == 2 and rank(matmul.inputs[0]) == 2
    return as_row(stored, weight.shape[1]) if is_matrix and stored.ndim <= 2 else None


def _rewrite(
    model: ir.Model, matmul: ir.Node, add: ir.Node, bias: ir.Value, row: NDArray[np.generic]
) -> None:
    replace_value(add.outputs[0], matmul.outputs[0])
    if add.graph is not None:
        add.graph.remove(add, safe=True)
    matmul.op_type = "Gemm"
    matmul.resize_inputs(3)
    matmul.replace_input_with(2, bias)
    if bias.const_value is None or tuple(bias.const_value.shape.numpy()) != row.shape:
        replace_constant(model, matmul, 2, row)


class FoldGemmScalarsPass(ir.passes.InPlacePass):
    """Fold alpha and beta of a Gemm into its constants, and give a constant bias the shape [N].

    alpha * A·B + beta * C  =  A·(alpha * B) + (beta * C)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold what is constant in every Gemm; the rest stays."""
        gemms = [node for node in all_nodes(model) if is_op(node, "Gemm")]
        changed = [
            _fold_scalars(model, node, name, index)
            for node in gemms
            for name, index in (("alpha", 1), ("beta", 2))
        ]
        flattened = [_flatten_bias(model, node) for node in gemms]
        return ir.passes.PassResult(model, modified=any(changed) or any(flattened))


def _fold_scalars(model: ir.Model, node: ir.Node, name: str, index: int) -> bool:
    """Fold one factor into the input that it multiplies."""
    if name not in node.attributes:
        return False
    factor = node.attributes[name].as_float()
    target = input_at(node, index)
    if factor != 1 and target is not None:
        stored = constant_value(target)
        if stored is None:
            return False
        replace_constant(model, node, index, (stored.astype(np.float64) * factor).astype(stored.dtype))
    del node.attributes[name]
    return factor != 1


def _flatten_bias(model: ir.Model, node: ir.Node) -> bool:
    weight, bias = constant_value(input_at(node, 1)), constant_value(input_at(node, 2))
    if weight is None or bias is None:
        return False
    row = as_row(bias, output_channels(node, weight.shape))
    if row is None or row.shape == bias.shape:
        return False
    replace_constant(model, node, 2, row)
    return True

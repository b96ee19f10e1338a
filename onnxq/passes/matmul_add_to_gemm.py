"""MatMul and Add of a bias into one Gemm, where the input is a matrix.

    x[M, K] · W[K, N] + b[N]  ->  Gemm(x, W, b)

With more dimensions there is no Gemm: MatMul and Add stay as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import all_nodes, constant_value, is_op, rank, supplant
from onnxq.passes._affine import is_private
from onnxq.passes._layer import replace_constant


class MatMulAddToGemmPass(ir.passes.InPlacePass):
    """MatMul → Add becomes a Gemm with the MatMul's node name and the Add's output name."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every pair with constant weight and bias and an input of rank 2."""
        changed = [_fuse(model, node) for node in list(all_nodes(model))]
        return ir.passes.PassResult(model, modified=any(changed))


def _fuse(model: ir.Model, add: ir.Node) -> bool:
    if not is_op(add, "Add"):
        return False
    for product, bias in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        matmul = product.producer() if product is not None else None
        if product is None or bias is None or matmul is None or not is_private(product, add):
            continue
        row = _bias_row(matmul, bias)
        if row is not None:
            _rewrite(model, matmul, add, bias, row)
            return True
    return False


def _bias_row(matmul: ir.Node, bias: ir.Value) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """The bias as [N]; None when this is not x[M, K] · W[K, N] + constant row."""
    weight, stored = (
        constant_value(matmul.inputs[1]) if is_op(matmul, "MatMul") else None,
        constant_value(bias),
    )
    if weight is None or stored is None or weight.ndim != 2 or rank(matmul.inputs[0]) != 2:
        return None
    columns = weight.shape[1]
    if stored.ndim > 2 or stored.size not in (1, columns) or stored.shape[-1:] not in ((), (1,), (columns,)):
        return None
    return np.broadcast_to(stored.reshape(-1), (columns,))


def _rewrite(
    model: ir.Model,
    matmul: ir.Node,
    add: ir.Node,
    bias: ir.Value,
    row: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> None:
    product = matmul.outputs[0]
    supplant(add.outputs[0], product)
    if add.graph is not None:
        add.graph.remove(add, safe=True)
    matmul.op_type = "Gemm"
    matmul.resize_inputs(3)
    matmul.replace_input_with(2, bias)
    if row.shape != bias.const_value.shape:  # type: ignore[union-attr]
        replace_constant(model, matmul, 2, np.ascontiguousarray(row))

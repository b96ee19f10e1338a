"""The rewrite of each operator, for each form of weights, in three tables; `rewrite_of` looks it up.

Integer kernels take weights only as the second operand of a product. So a product whose first operand is the
constant (``W @ x``) has a rewrite of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.pipelines.dynamic.attention import attention_obstacle, rewrite_attention
from onnxq.pipelines.dynamic.conv import conv_obstacle, rewrite_conv
from onnxq.pipelines.dynamic.gather import gather_half_obstacle, gather_obstacle, rewrite_gather
from onnxq.pipelines.dynamic.lstm import lstm_obstacle, rewrite_lstm
from onnxq.pipelines.dynamic.matmul import gemm_obstacle, matmul_obstacle, rewrite_gemm, rewrite_matmul
from onnxq.pipelines.dynamic.rewriter import ModelRewriter
from onnxq.pipelines.dynamic.scheme import WeightForm
from onnxq.pipelines.dynamic.weight_only import (
    POSITIONS,
    half_stored_obstacle,
    is_constant_first,
    left_matrix_obstacle,
    rewrite_stored,
    stored_obstacle,
)


@dataclass(frozen=True)
class OperatorRewrite:
    """The rewrite of an operator.

    Attributes:
        obstacle: returns the reason why a node is not eligible; None if it is.
        rewrite: quantizes a node.
        float_kernel: the reason why the node still computes in float; empty if it does not.
    """

    obstacle: Callable[[ir.Node], str | None]
    rewrite: Callable[[ir.Node, ModelRewriter], None]
    float_kernel: str = ""


_STORED = OperatorRewrite(stored_obstacle, rewrite_stored)
_GATHER = OperatorRewrite(gather_obstacle, rewrite_gather)

REWRITES: Mapping[WeightForm, Mapping[str, OperatorRewrite]] = {
    WeightForm.INTEGERS: {
        "MatMul": OperatorRewrite(matmul_obstacle, rewrite_matmul),
        "Gemm": OperatorRewrite(gemm_obstacle, rewrite_gemm),
        "Conv": OperatorRewrite(conv_obstacle, rewrite_conv),
        "Attention": OperatorRewrite(attention_obstacle, rewrite_attention),
        "LSTM": OperatorRewrite(lstm_obstacle, rewrite_lstm),
        "GRU": OperatorRewrite(
            stored_obstacle, rewrite_stored, "only its weights are int8: there is no integer kernel"
        ),
        "Gather": _GATHER,
    },
    WeightForm.WEIGHT_ONLY: {**dict.fromkeys(POSITIONS, _STORED), "Gather": _GATHER},
    WeightForm.FLOAT16: {
        **dict.fromkeys(POSITIONS, OperatorRewrite(half_stored_obstacle, rewrite_stored)),
        "Gather": OperatorRewrite(gather_half_obstacle, rewrite_gather),
    },
}

_LEFT_MATRIX = OperatorRewrite(
    left_matrix_obstacle,
    rewrite_stored,
    "only its weights are int8: integer kernels take them only as the second operand",
)


def rewrite_of(node: ir.Node, form: WeightForm) -> OperatorRewrite | None:
    """Look up the rewrite of ``node``; None if it has none for this form of weights."""
    if form is not WeightForm.FLOAT16 and is_constant_first(node):
        return _LEFT_MATRIX
    return REWRITES[form].get(node.op_type)

"""Quantize attention that ONNX Runtime's optimizer has fused, with the weights of Q, K and V in one matrix.

ONNX Runtime runs it in integers as QAttention; the two products of computed tensors inside are kept in float.
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import constant_value, input_at
from onnxq.pipelines.dynamic.input_checks import is_computed, needs_float, weight_obstacle
from onnxq.pipelines.dynamic.matmul import LONGEST_SUM
from onnxq.pipelines.dynamic.rewriter import CONTRIB, Array, Layout, ModelRewriter

DATA, WEIGHT, BIAS, MASK, PAST = range(5)
"""The inputs of Attention that QAttention has too."""

_KNOWN = frozenset({"num_heads", "unidirectional", "do_rotary", "mask_filter_value", "scale"})
"""The attributes of Attention that QAttention has too."""


def is_fused_attention(node: ir.Node) -> bool:
    """Whether the node is the fused operator, not the one of the same name in the standard domain."""
    return node.op_type == "Attention" and node.domain == CONTRIB


def attention_obstacle(node: ir.Node) -> str | None:
    """Say why the node is kept in float; None if it can be quantized."""
    data, weight, bias = (input_at(node, index) for index in (DATA, WEIGHT, BIAS))
    if (reason := needs_float(data, weight, bias)) is not None:
        return reason
    array = constant_value(weight)
    if array is None or bias is None or is_computed(bias):
        return "its weights or its bias are left out, or computed at run time"
    more = sorted(node.attributes.keys() - _KNOWN)
    if more or any(value is not None for value in node.inputs[PAST + 1 :]):
        return (
            f"the integer kernel does not support: {', '.join(more) or 'inputs after the mask and the past'}"
        )
    if array.shape[0] > LONGEST_SUM:
        return f"a sum of {array.shape[0]} products may not fit into 32 bits"
    return weight_obstacle(array)


def rewrite_attention(node: ir.Node, rewriter: ModelRewriter) -> None:
    """Replace the node by QAttention."""
    data, weight, bias, mask, past = (input_at(node, index) for index in range(PAST + 1))
    assert data is not None
    assert weight is not None
    levels, scale, zero = rewriter.quantized(data, node)
    factors, factor_scale = rewriter.packed(weight, 1, _LAYOUT)
    known = constant_value(factor_scale)
    assert known is not None
    factor_zero = rewriter.constant(f"{factor_scale.name}_zero_point", np.zeros(known.shape, np.int8))
    inputs = [levels, factors, bias, scale, factor_scale, mask, zero, factor_zero, past]
    rewriter.substitute(node, "QAttention", inputs, node.attributes)


def _flat(scale: Array) -> Array:
    """Flatten scales to ``[3 * hidden]``, or to ``()`` if they are per tensor."""
    return scale.reshape(-1) if scale.size > 1 else scale.reshape(())


_LAYOUT = Layout(scale=_flat)

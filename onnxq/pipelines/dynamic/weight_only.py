"""Store weights in fewer bits: the operator itself does not change, and runs in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxq.graph.nodes import constant_value, input_at, int_attribute, is_op
from onnxq.graph.operators import SUMMED_AXIS, WEIGHTED
from onnxq.pipelines.dynamic.input_checks import (
    LEAST_WEIGHTS,
    SCALING,
    half_obstacle,
    is_computed,
    needs_float,
    weight_obstacle,
)
from onnxq.pipelines.dynamic.rewriter import AS_IT_IS, Layout, ModelRewriter, pack_rows

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

POSITIONS: Mapping[str, tuple[int, ...]] = {
    **{op_type: (weighted.weight,) for op_type, weighted in WEIGHTED.items()},
    **dict.fromkeys(RECURRENT, (1, 2)),
}
"""Operator -> the indices of the inputs that are weights."""

RECURRENT_AXES = 3
"""Axes of the weights of `RECURRENT` operators: directions, rows of all gates, inputs."""

_STACKED = Layout(pack_rows)


def is_constant_first(node: ir.Node) -> bool:
    """Whether the node is a matrix product whose first operand alone is constant (``W @ x``)."""
    return is_op(node, *SUMMED_AXIS) and not is_computed(node.inputs[0]) and is_computed(node.inputs[1])


def stored_obstacle(node: ir.Node) -> str | None:
    """Say why the node's weights are not stored in int8; None if they are."""
    return _obstacle(node, weight_obstacle)


def half_stored_obstacle(node: ir.Node) -> str | None:
    """Say why the node's weights are not stored in float16; None if they are."""
    return _obstacle(node, half_obstacle)


def left_matrix_obstacle(node: ir.Node) -> str | None:
    """Say why the first operand of a product (see `is_constant_first`) is not stored in int8."""
    if (reason := stored_obstacle(node)) is not None:
        return reason
    weight = constant_value(node.inputs[0])
    assert weight is not None
    if weight.ndim != 2:
        return f"its weights have {weight.ndim} axes, expected a matrix"
    if weight.size < LEAST_WEIGHTS:
        return f"with less than {LEAST_WEIGHTS} weights there is little to save"
    return None


def rewrite_stored(node: ir.Node, rewriter: ModelRewriter) -> None:
    """Let the node read weights that are unpacked from the stored ones."""
    layout = _STACKED if node.op_type in RECURRENT else AS_IT_IS
    for index in _positions(node):
        weight = input_at(node, index)
        assert weight is not None
        node.replace_input_with(index, rewriter.unpacked(weight, _axis(node, index), layout))


def _positions(node: ir.Node) -> tuple[int, ...]:
    return (0,) if is_constant_first(node) else POSITIONS[node.op_type]


def _obstacle(node: ir.Node, check: Callable[..., str | None]) -> str | None:
    weights = [input_at(node, index) for index in _positions(node)]
    if (reason := needs_float(*weights)) is not None:
        return reason
    arrays = [constant_value(weight) for weight in weights]
    known = [array for array in arrays if array is not None]
    if len(known) < len(arrays):
        return "its weights are computed at run time"
    if node.op_type in RECURRENT and any(array.ndim != RECURRENT_AXES for array in known):
        return f"its weights do not have {RECURRENT_AXES} axes"
    return SCALING if _inner_size(node, known[0].shape) == 1 else check(*known)


def _inner_size(node: ir.Node, shape: tuple[int, ...]) -> int | None:
    """Return the number of products that a matrix product with constant weights sums; None for others."""
    if not is_op(node, *SUMMED_AXIS) or len(shape) < 2:
        return None
    if is_constant_first(node):
        return shape[-2 if int_attribute(node, "transA", 0) else -1]
    return shape[SUMMED_AXIS[node.op_type](node) - 2]


def _axis(node: ir.Node, index: int) -> int | None:
    """Get the axis of output channels of a weight; for stacked matrices that is the axis of rows."""
    if node.op_type in RECURRENT:
        return 1
    array = constant_value(input_at(node, index))
    assert array is not None
    if is_constant_first(node):
        return int(int_attribute(node, "transA", 0) != 0) if array.ndim == 2 else None
    return WEIGHTED[node.op_type].channel_axis(node, array.ndim)

"""Store weights in fewer bits: the operator itself does not change, and runs in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxq.graph.nodes import constant_value, input_at
from onnxq.graph.operators import WEIGHTED
from onnxq.pipelines.dynamic.input_checks import half_obstacle, needs_float, weight_obstacle
from onnxq.pipelines.dynamic.rewriter import AS_IT_IS, Layout, ModelRewriter, pack_rows

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

POSITIONS: Mapping[str, tuple[int, ...]] = {
    **{op_type: (weighted.weight,) for op_type, weighted in WEIGHTED.items()},
    **dict.fromkeys(RECURRENT, (1, 2)),
}
"""Operator -> the indices of the inputs that are weights."""


_STACKED = Layout(pack_rows)


def stored_obstacle(node: ir.Node) -> str | None:
    """Say why the node's weights are not stored in int8; None if they are."""
    return _obstacle(node, weight_obstacle)


def half_stored_obstacle(node: ir.Node) -> str | None:
    """Say why the node's weights are not stored in float16; None if they are."""
    return _obstacle(node, half_obstacle)


def rewrite_stored(node: ir.Node, rewriter: ModelRewriter) -> None:
    """Let the node read weights that are unpacked from the stored ones."""
    layout = _STACKED if node.op_type in RECURRENT else AS_IT_IS
    for index in POSITIONS[node.op_type]:
        weight = input_at(node, index)
        assert weight is not None
        node.replace_input_with(index, rewriter.unpacked(weight, _axis(node, weight), layout))


def _obstacle(node: ir.Node, check: Callable[..., str | None]) -> str | None:
    weights = [input_at(node, index) for index in POSITIONS[node.op_type]]
    if (reason := needs_float(*weights)) is not None:
        return reason
    arrays = [constant_value(weight) for weight in weights]
    known = [array for array in arrays if array is not None]
    return check(*known) if len(known) == len(arrays) else "its weights are computed at run time"


def _axis(node: ir.Node, weight: ir.Value) -> int | None:
    """Get the axis of output channels; for stacked matrices that is the axis of rows."""
    if node.op_type in RECURRENT:
        return 1
    array = constant_value(weight)
    assert array is not None
    return WEIGHTED[node.op_type].channel_axis(node, array.ndim)

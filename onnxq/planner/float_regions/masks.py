"""Attention masks: values that stand for minus infinity, which attention adds to the scores to be ignored.

Exporters write the lowest float, -65504, -10000, -1000 or -100. A range that holds such a value has few or no
levels left for the scores. With a range that does not hold it, the masked scores would count. So nodes that
compute with such values are kept in float, up to the Softmax.

No weight of a trained network is as low as `NEVER_WEIGHT`. Other numbers are masks only on their way to a
Softmax, and only if it gives zero for them.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import constant_value, is_op
from onnxq.graph.operators import MOVING, WEIGHTED, data_inputs
from onnxq.graph.walks import readers_of
from onnxq.planner.float_regions.feature_flow import computed_by_layers, nodes_before

NEVER_WEIGHT = -1e4
"""Constants as low as this are masks, wherever they are read."""

LOST = float(-np.log(np.finfo(np.float32).epsneg))
"""Scores that are lower by as much as this are lost in Softmax: in float32, ``1 + exp(-16.6)`` is 1."""

_KEEPING = (
    *("Where", "Add", "Sub", "Mul", "Div", "Neg", "Min", "Max", "Clip", "Concat", "Cast"),
    *sorted(MOVING),
)
"""Operators whose output may hold a mask value if an input does."""

_REASON = "it reads values that stand for minus infinity (a mask), and no range suits these and other values"


def masking_nodes(graph: ir.Graph) -> dict[ir.Node, str]:
    """Find the nodes that read values that stand for minus infinity."""
    scoring = nodes_before(graph, _is_softmax, _keeps)
    features = computed_by_layers(graph)
    masked, found = set[ir.Value | None](), set[ir.Node]()
    for node in graph:
        values = [node.inputs[index] for index in data_inputs(node) if index < len(node.inputs)]
        if not masked.isdisjoint(values) or _makes_mask(node, values, scoring, features):
            found.add(node)
            masked.update(node.outputs if _keeps(node) else ())
    return {node: _REASON for node in found if node.op_type not in WEIGHTED}


def _keeps(node: ir.Node) -> bool:
    return is_op(node, *_KEEPING)


def _is_softmax(node: ir.Node) -> bool:
    """Whether the node is a Softmax, or the Exp of one that is written in primitives."""
    if is_op(node, "Exp"):
        return any(is_op(reader, "ReduceSum") for reader in readers_of(node))
    return is_op(node, "Softmax", "LogSoftmax")


def _makes_mask(
    node: ir.Node,
    values: Collection[ir.Value | None],
    scoring: Collection[ir.Node],
    features: Collection[ir.Value | None],
) -> bool:
    """Whether the node reads a constant that holds values for minus infinity, alone or among others.

    A mask may be made of a large positive number, which is subtracted later. But a factor of scores, which
    layers have computed, is a scale.
    """
    if not _keeps(node):
        return False
    scales = is_op(node, "Mul", "Div", "Clip") and any(value in features for value in values)
    for array in map(constant_value, values):
        if array is None or array.dtype.kind != "f" or not array.size:
            continue
        if float(array.min()) <= NEVER_WEIGHT:
            return True
        if node in scoring and not scales and float(np.abs(array).max()) >= LOST:
            return True
    return False

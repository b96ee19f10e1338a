"""Attention masks: values that stand for minus infinity, which attention adds to the scores to be ignored.

Exporters write the lowest float, -65504, -10000, -1000 or -100. A range that holds such a value has few or no
levels left for the scores. With a range that does not hold it, the masked scores would count. So nodes that
compute with such values are kept in float, up to the Softmax.

No weight of a trained network is as low as `NEVER_WEIGHT`. Other numbers are masks only on their way to a
Softmax, and only if it gives zero for them. A mask may also be an input of the graph, or computed of one:
what is added to scores that layers have computed, but is not computed by a layer, is a mask, whatever its
values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import constant_value, is_op
from onnxq.graph.operators import MOVING, WEIGHTED, data_values
from onnxq.graph.walks import readers_of
from onnxq.planner.float_regions.feature_flow import computed_by_layers, nodes_before

NEVER_WEIGHT = -1e4
"""Constants as low as this are masks, wherever they are read."""

LOST = float(-np.log(np.finfo(np.float32).epsneg))
"""Scores that are lower by as much as this are lost in Softmax: in float32, ``1 + exp(-16.6)`` is 1."""

_MASKING = ("Add", "Sub", "Where", "Min", "Max")
"""Operators by which a mask gets among scores."""

_KEEPING = (
    *(*_MASKING, "Mul", "Div", "Neg", "Clip", "Concat", "Cast"),
    *sorted(MOVING),
)
"""Operators whose output may hold a mask value if an input does."""

_REASON = "it reads values that stand for minus infinity (a mask), and no range suits these and other values"


def masking_nodes(graph: ir.Graph) -> dict[ir.Node, str]:
    """Find the nodes that read values that stand for minus infinity."""
    view = _View(
        scoring=nodes_before(graph, _is_softmax, _keeps),
        features=computed_by_layers(graph),
    )
    masked, found = set[ir.Value | None](), set[ir.Node]()
    for node in graph:
        values = data_values(node)
        if not masked.isdisjoint(values) or _reads_mask(node, values, view):
            found.add(node)
            masked.update(node.outputs if _keeps(node) else ())
    before = nodes_before(graph, found.__contains__, lambda node: _makes_mask(node, view))
    found.update(node for node in before if _makes_mask(node, view))
    return {node: _REASON for node in found if node.op_type not in WEIGHTED}


@dataclass(frozen=True)
class _View:
    """What is known of the graph.

    Attributes:
        scoring: the nodes whose outputs lead to a Softmax.
        features: the tensors that layers have computed.
    """

    scoring: Collection[ir.Node]
    features: frozenset[ir.Value | None]


def _keeps(node: ir.Node) -> bool:
    return is_op(node, *_KEEPING)


def _makes_mask(node: ir.Node, view: _View) -> bool:
    """Whether the node, which leads to a node that reads a mask, computes that mask, and not the scores."""
    return _keeps(node) and view.features.isdisjoint(data_values(node))


def _is_softmax(node: ir.Node) -> bool:
    """Whether the node is a Softmax, or the Exp of one that is written in primitives."""
    if is_op(node, "Exp"):
        return any(is_op(reader, "ReduceSum") for reader in readers_of(node))
    return is_op(node, "Softmax", "LogSoftmax")


def _reads_mask(node: ir.Node, values: Collection[ir.Value], view: _View) -> bool:
    """Whether a mask gets among the values of ``node``: a constant, or what is added to scores of layers.

    A mask may be made of a large positive number, which is subtracted later. But a factor of scores is a
    scale.
    """
    if not _keeps(node):
        return False
    arrays = [array for array in map(constant_value, values) if array is not None and array.dtype.kind == "f"]
    if any(array.size and float(array.min()) <= NEVER_WEIGHT for array in arrays):
        return True
    scores = not view.features.isdisjoint(values)
    if node not in view.scoring or (scores and not is_op(node, *_MASKING)):
        return False
    given = any(value not in view.features and constant_value(value) is None for value in values)
    return (scores and given) or any(array.size and np.abs(array).max() >= LOST for array in arrays)

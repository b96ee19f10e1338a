"""Heads of detectors: a Concat that joins boxes (hundreds of pixels) and scores (zero to one).

In one range, the scores would have two or three levels left. Such a Concat lies at the end of the graph: its
values are only moved until they leave the graph or boxes are selected, or they are separated again, with no
layer after that. A Concat inside the network is not meant: a quantized node reads it, and the kernel of that
node takes only one scale for the joined tensor anyway.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxq.graph.nodes import is_op
from onnxq.graph.operators import MOVING
from onnxq.graph.walks import is_read, producer_of
from onnxq.planner.float_regions.feature_flow import LAYERS, nodes_before

_SELECTING = ("NonMaxSuppression", "TopK")
"""Operators that end detectors with their own selection of boxes: they compare their inputs."""

_SEPARATING = ("Split", "Slice", "Gather")
"""Operators that take out a part of a tensor."""

_MEASURING = ("Shape", "Size")
"""Operators that do not read the values."""

_JOINS = "it joins different outputs (such as boxes and scores), and one range would not suit them all"

_MOVES = "it only moves values that a Concat, kept in float, joins at the end of the graph"


def final_nodes(graph: ir.Graph) -> dict[ir.Node, str]:
    """Find each Concat of several tensors at the end of the graph, and what moves its values on."""
    inner = nodes_before(graph, lambda node: is_op(node, *LAYERS), lambda node: True)
    final: dict[ir.Node, str] = {}
    for node in graph:
        if _joins(node) and _is_last(node, inner):
            final[node] = _JOINS
        elif is_op(node, *MOVING) and producer_of(node.inputs[0]) in final:
            final[node] = _MOVES
    return final


def _joins(node: ir.Node) -> bool:
    return is_op(node, "Concat") and len({value for value in node.inputs if value is not None}) > 1


def _is_last(node: ir.Node, inner: Collection[ir.Node]) -> bool:
    """Whether the values of ``node`` are only moved, until they leave the graph, are selected or separated.

    Args:
        node: an operator that moves or joins values.
        inner: the nodes that have a layer after them.
    """
    return all(
        is_read(value) and all(_ends(use.node, inner) for use in value.uses()) for value in node.outputs
    )


def _ends(node: ir.Node, inner: Collection[ir.Node]) -> bool:
    if is_op(node, *_SELECTING, *_MEASURING) or (is_op(node, *_SEPARATING) and node not in inner):
        return True
    return is_op(node, *MOVING, "Concat") and _is_last(node, inner)

"""What joins different things right before they leave the graph, as the heads of detectors do.

Such a Concat lays boxes (hundreds of pixels) beside scores (zero to one). In one range the scores would have
two or three levels left. A Concat inside the network is another matter: what reads it is quantized, and
its kernel takes one scale, whatever stands before it.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import is_op
from onnxq.operators import MOVING

_SELECTING = ("NonMaxSuppression", "TopK")
"""Where detectors that hold their own selection end: what is read here is compared, not computed with."""


def final_nodes(graph: ir.Graph) -> frozenset[ir.Node]:
    """Every Concat of several tensors with nothing behind it but operators that move values, and those.

    The end is a graph output, or the selection of boxes.
    """
    final: set[ir.Node] = set()
    for node in graph:
        if (_joins(node) and _is_last(node)) or (is_op(node, *MOVING) and _after(node, final)):
            final.add(node)
    return frozenset(final)


def _joins(node: ir.Node) -> bool:
    return is_op(node, "Concat") and len({value for value in node.inputs if value is not None}) > 1


def _is_last(node: ir.Node) -> bool:
    """Whether values of ``node`` leave the graph, and all readers only move them there."""
    return all(
        (value.uses() or value.is_graph_output())
        and all(is_op(use.node, *_SELECTING) or _moves_on(use.node) for use in value.uses())
        for value in node.outputs
    )


def _moves_on(node: ir.Node) -> bool:
    return is_op(node, *MOVING, "Concat") and _is_last(node)


def _after(node: ir.Node, final: set[ir.Node]) -> bool:
    source = node.inputs[0]
    return source is not None and source.producer() in final

"""Parts of a graph that stay float because no range suits them: detector heads and attention masks.

What joins different things right before they leave the graph, as the heads of detectors do.

Such a Concat lays boxes (hundreds of pixels) beside scores (zero to one). In one range the scores would have
two or three levels left. A Concat inside the network is another matter: what reads it is quantized, and
its kernel takes one scale, whatever stands before it.

Values that stand for minus infinity: what attention adds to the scores that are to count for nothing.

Exporters write the lowest float there, or -10000. A range that holds it has no levels left for the scores,
and one that does not lets them count for something. So what computes with it stays float, until a Softmax.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxq.graph.nodes import constant_value, is_op
from onnxq.graph.operators import MOVING, data_inputs

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


MASKING = -1e4
"""Constants as low as this hide something; no weight of a trained network is."""


_KEEPING = ("Where", "Add", "Sub", "Mul", "Min", "Concat", "Cast", *sorted(MOVING))
"""Operators whose output may hold such a value where an input does."""


def masking_nodes(nodes: Iterable[ir.Node]) -> frozenset[ir.Node]:
    """Every node, of those given in order, that reads such values."""
    masked: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in nodes:
        values = [node.inputs[index] for index in data_inputs(node) if index < len(node.inputs)]
        keeps = is_op(node, *_KEEPING)
        if any(value in masked or (keeps and _hides(value)) for value in values):
            found.add(node)
            masked.update(node.outputs if keeps else ())
    return frozenset(found)


def _hides(value: ir.Value | None) -> bool:
    """Whether this is a constant for minus infinity, alone or among others."""
    array = constant_value(value)
    return (
        array is not None and array.dtype.kind == "f" and bool(array.size) and float(array.min()) <= MASKING
    )

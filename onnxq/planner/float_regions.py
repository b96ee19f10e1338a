"""Find the parts of a graph that are kept in float because no range suits them.

Detector heads: a Concat at the end of the graph that joins boxes (hundreds of pixels) and scores (zero to
one). In one range, the scores would have two or three levels left. A Concat inside the network is not meant:
a quantized node reads it, and the kernel of that node takes only one scale for the joined tensor anyway.

Attention masks: values that stand for minus infinity, which attention adds to the scores to be ignored.
Exporters write the lowest float or -10000. A range that holds such a value has no levels left for the
scores. With a range that does not hold it, the masked scores would count. So nodes that compute with such
values are kept in float, up to the Softmax.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxq.graph.nodes import constant_value, is_op
from onnxq.graph.operators import MOVING, data_inputs
from onnxq.graph.walks import is_read, producer_of

_SELECTING = ("NonMaxSuppression", "TopK")
"""Operators that end detectors with their own selection of boxes: they compare their inputs."""


def final_nodes(graph: ir.Graph) -> frozenset[ir.Node]:
    """Find each Concat of several tensors at the end of the graph, and the operators that move its values on.

    Only operators that move values may lie between the Concat and a graph output or a selection of boxes.
    """
    final: set[ir.Node] = set()
    for node in graph:
        if (_joins(node) and _is_last(node)) or (is_op(node, *MOVING) and _after(node, final)):
            final.add(node)
    return frozenset(final)


def _joins(node: ir.Node) -> bool:
    return is_op(node, "Concat") and len({value for value in node.inputs if value is not None}) > 1


def _is_last(node: ir.Node) -> bool:
    """Whether the values of ``node`` are only moved, until they leave the graph or boxes are selected."""
    return all(
        is_read(value) and all(is_op(use.node, *_SELECTING) or _moves_on(use.node) for use in value.uses())
        for value in node.outputs
    )


def _moves_on(node: ir.Node) -> bool:
    return is_op(node, *MOVING, "Concat") and _is_last(node)


def _after(node: ir.Node, final: set[ir.Node]) -> bool:
    return producer_of(node.inputs[0]) in final


MASKING = -1e4
"""Constants as low as this are masks; no weight of a trained network is that low."""


_KEEPING = ("Where", "Add", "Sub", "Mul", "Min", "Concat", "Cast", *sorted(MOVING))
"""Operators whose output may hold a mask value if an input does."""


def masking_nodes(nodes: Iterable[ir.Node]) -> frozenset[ir.Node]:
    """Find the nodes that read values that stand for minus infinity. ``nodes`` must be in graph order."""
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
    """Whether this is a constant that holds a value for minus infinity, alone or among others."""
    array = constant_value(value)
    return (
        array is not None and array.dtype.kind == "f" and bool(array.size) and float(array.min()) <= MASKING
    )

"""Normalizations written in primitives: data divided by a statistic of the same data.

For example LayerNormalization, RMS, instance, group and L2 normalization, and Softmax:

    (x - mean) / Sqrt(ReduceMean((x - mean)²) + eps) * scale + bias
    x * Reciprocal(Sqrt(ReduceMean(x²) + eps)) * scale
    x / Max(ReduceL2(x), eps)
    Exp(x - ReduceMax(x)) / ReduceSum(Exp(x - ReduceMax(x)))

What is divided by may differ a thousandfold between two parts of a picture. With one scale for all, the small
ones are zero or one step. Squares double the span. So all of it is kept in float, from the data to the scale
and bias, as in a runtime's own kernel for such a normalization.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum

import onnx_ir as ir

from onnxq.graph.nodes import constant_value, input_at, is_op
from onnxq.graph.operators import MOVING, data_values
from onnxq.graph.walks import only_reader, readers_of

_REDUCING = (
    *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin"),
    *("GlobalAveragePool", "AveragePool"),
)
"""Operators whose output is a statistic of their input."""

_KEEPING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Abs", "Neg", "Exp", "Log"),
    *("Min", "Max", "Clip", "Cast", *sorted(MOVING)),
)
"""Operators that give a statistic if they read nothing but statistics and constants."""

_PREPARING = ("Pow", "Abs", "Exp", "Pad", "Cast", *sorted(MOVING))
"""Operators before the statistic that belong to the normalization if nothing else reads their output."""

_REASON = (
    "it is part of a normalization, which divides by a statistic of the data, and no range suits "
    "small and large ones"
)


class Kind(Enum):
    """What a tensor is, if it is no data."""

    CONSTANT = "constant"
    STATISTIC = "statistic"
    INVERSE = "1 / statistic"


Kinds = Mapping[ir.Value, Kind]

_COMPUTED = (Kind.STATISTIC, Kind.INVERSE)


def dividing_nodes(graph: ir.Graph) -> dict[ir.Node, str]:
    """Find the nodes of normalizations that are written in primitives."""
    kinds = _kinds(graph)
    found = {node for node in graph if _divides(node, kinds)}
    found |= {after for node in found for after in _scale_and_bias(node, kinds)}
    for node in reversed(list(graph)):
        into = [reader in found for reader in readers_of(node)]
        if any(into) and (_is_statistic(node, kinds) or (all(into) and _prepares(node, kinds))):
            found.add(node)
    return dict.fromkeys(found, _REASON)


def _kinds(graph: ir.Graph) -> Kinds:
    """Find the tensors that are constants, statistics or inverse statistics."""
    kinds = dict.fromkeys(graph.initializers.values(), Kind.CONSTANT)
    for node in graph:
        if is_op(node, *_REDUCING):
            kinds[node.outputs[0]] = Kind.STATISTIC
        elif is_op(node, *_KEEPING) and (kind := _kind(node, kinds)):
            kinds |= dict.fromkeys(node.outputs, kind)
    return kinds


def _kind(node: ir.Node, kinds: Kinds) -> Kind | None:
    """What a node gives that reads nothing but statistics and constants; None if it reads data.

    Rows of a constant that computed indices choose, as in an embedding, are data.
    """
    read = [kinds.get(value) for value in data_values(node)]
    if None in read:
        return None
    if not set(read) & set(_COMPUTED):
        return Kind.CONSTANT if all(value is None or value in kinds for value in node.inputs) else None
    inverse = Kind.INVERSE in read
    if _inverts(node, kinds):
        inverse = not inverse
    return Kind.INVERSE if inverse else Kind.STATISTIC


def _inverts(node: ir.Node, kinds: Kinds) -> bool:
    if is_op(node, "Div"):
        return node.inputs[1] is not None and kinds.get(node.inputs[1]) in _COMPUTED
    exponent = constant_value(input_at(node, 1)) if is_op(node, "Pow") else None
    return is_op(node, "Reciprocal") or (exponent is not None and float(exponent.max()) < 0)


def _divides(node: ir.Node, kinds: Kinds) -> bool:
    """Whether a node divides by a statistic, or multiplies data by an inverse one."""
    if is_op(node, "Div"):
        return _inverts(node, kinds)
    read = [kinds.get(value) for value in node.inputs if value is not None]
    return is_op(node, "Mul") and Kind.INVERSE in read and None in read


def _scale_and_bias(node: ir.Node, kinds: Kinds) -> Iterator[ir.Node]:
    """Yield the nodes after a division that scale and shift its output, or move it before that."""
    between: list[ir.Node] = []
    while (reader := only_reader(node.outputs[0])) is not None:
        between.append(reader)
        if is_op(reader, "Mul", "Add", "Sub") and any(value in kinds for value in reader.inputs):
            yield from between
            between = []
        elif not is_op(reader, *MOVING):
            return
        node = reader


def _is_statistic(node: ir.Node, kinds: Kinds) -> bool:
    return any(kinds.get(value) in _COMPUTED for value in node.outputs)


def _prepares(node: ir.Node, kinds: Kinds) -> bool:
    """Whether a node, which leads only to a normalization, is part of it: it squares or centers the data."""
    if any(value.is_graph_output() for value in node.outputs):
        return False
    if is_op(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    if is_op(node, "Sub"):
        return any(value is not None and kinds.get(value) in _COMPUTED for value in node.inputs)
    return is_op(node, *_PREPARING)

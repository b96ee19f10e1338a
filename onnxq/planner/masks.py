"""Values that stand for minus infinity: what attention adds to the scores that are to count for nothing.

Exporters write the lowest float there, or -10000. A range that holds it has no levels left for the scores,
and one that does not lets them count for something. So what computes with it stays float, until a Softmax.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxq.graph import constant_value, is_op
from onnxq.operators import MOVING, data_inputs

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

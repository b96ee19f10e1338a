"""Which inputs are indices into a table, and how large that table is."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

CARRIERS = frozenset(
    {
        "Cast",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that only pass their first input's integers on."""


def id_bounds(model: ir.Model) -> dict[str, int]:
    """Input name -> number of entries of the smallest table that a Gather looks up with its values.

    Only tables of a known size count, and only values that reach the Gather unchanged.
    """
    bounds = {value.name or "": list(_tables(value)) for value in model.graph.inputs}
    return {name: min(sizes) for name, sizes in bounds.items() if sizes}


def _tables(start: ir.Value) -> Iterator[int]:
    waiting, seen = [start], {id(start)}
    while waiting:
        value = waiting.pop()
        for node, index in value.uses():
            if (size := _table_size(node, index)) is not None:
                yield size
            if node.op_type in CARRIERS and index == 0:
                waiting += [out for out in node.outputs if id(out) not in seen]
                seen |= {id(out) for out in node.outputs}


def _table_size(node: ir.Node, index: int) -> int | None:
    """The length of the axis that ``node`` indexes with its input ``index``, if it is fixed."""
    if node.op_type != "Gather" or index != 1 or node.inputs[0] is None:
        return None
    table, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    shape = table.const_value.shape if table.const_value is not None else table.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) and size > 0 else None

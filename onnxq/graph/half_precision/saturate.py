"""Numbers that stand for minus infinity, or for no limit, and are too large for float16.

Exporters write the lowest float32 (-3.4e38) or -1e9 where attention is to ignore a score, and as limits of
Clip, Min and Max that limit nothing. In float16 they would become infinite, and ``0 * inf`` is NaN. A score
that is lower than all others by `LOWEST` is lost in Softmax just as well, so there the numbers are replaced.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import all_nodes, constant_value, is_op, replace_constant
from onnxq.graph.operators import MOVING

Array = NDArray[np.generic]

LARGEST = float(np.finfo(np.float16).max)
"""The largest number in float16, 65504."""

LOWEST = -LARGEST / 2
"""What stands for minus infinity: half the range is left for the scores that it is added to."""

_KEEPING = ("Add", "Sub", "Where", "Mul", "Min", "Max", "Concat", "Cast", *sorted(MOVING))
"""Operators that a mask may go through on its way to Softmax."""

_LIMITING = {"Clip": (1, 2), "Min": None, "Max": None}
"""Operators that compare with numbers -> positions of these inputs; None: all."""


def saturate(model: ir.Model) -> None:
    """Replace numbers beyond the range of float16 that only mask scores or limit values; in place.

    Masks become `LOWEST`, limits the largest number of float16.
    """
    for node in list(all_nodes(model)):
        for index, value in enumerate(node.inputs):
            array = constant_value(value)
            if array is not None and (bounds := _bounds(node, index, array)) is not None:
                replace_constant(model, node, index, _clipped(array, bounds))
        fill = node.attributes.get("value")
        if is_op(node, "ConstantOfShape") and fill is not None:
            array = fill.as_tensor().numpy()
            if (bounds := _bounds(node, 0, array)) is not None:
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_clipped(array, bounds)))


def _bounds(node: ir.Node, index: int, array: Array) -> tuple[float, float] | None:
    """Return the range to which a constant that ``node`` reads, or repeats, may be clipped; None: none."""
    if array.dtype != np.float32:
        return None
    if not array.size or (array.min() >= -LARGEST and array.max() <= LARGEST):
        return None
    finite = array[np.isfinite(array)]
    if not finite.size or np.abs(finite).max() <= LARGEST:
        return None
    if _limits(node, index):
        return -LARGEST, LARGEST
    return (LOWEST, LARGEST) if finite.max() <= LARGEST and set(_ends(node, set())) == {True} else None


def _clipped(array: Array, bounds: tuple[float, float]) -> NDArray[np.float32]:
    """Clip the finite numbers; infinity is the same in float16."""
    return np.where(np.isfinite(array), array.clip(*bounds), array).astype(np.float32)


def _limits(node: ir.Node, index: int) -> bool:
    """Whether the input only limits the others."""
    if not is_op(node, *_LIMITING):
        return False
    places = _LIMITING[node.op_type]
    return places is None or index in places


def _ends(node: ir.Node, seen: set[ir.Node]) -> Iterator[bool]:
    """Yield for each end of the ways from ``node`` on whether it is a Softmax."""
    if node in seen:
        return
    seen.add(node)
    if is_op(node, "Softmax", "LogSoftmax"):
        yield True
        return
    if not is_op(node, *_KEEPING, "ConstantOfShape"):
        yield False
        return
    for value in node.outputs:
        if value.is_graph_output() or not value.uses():
            yield False
        for use in value.uses():
            yield from _ends(use.node, seen)

"""Recognize clipped straight lines in any combination of nodes that exporters write.

    height * clip(slope * x + offset, 0, 1)

Only constants of one element that do not change the shape count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import constant_value, is_op, rank
from onnxq.graph.operators import Range, attribute_value, clip_range
from onnxq.graph.passes._affine import Affine, arithmetic_affine

LONGEST = 4
"""Longest chain of nodes of one kind that is followed; exporters do not write longer ones."""


@dataclass(frozen=True)
class Line:
    """A line ``slope * source + offset``, computed by ``nodes`` nodes."""

    source: ir.Value
    slope: float = 1.0
    offset: float = 0.0
    nodes: int = 0


@dataclass(frozen=True)
class Ramp:
    """A ramp ``height * clip(slope * source + offset, 0, 1)``, computed by ``nodes`` nodes."""

    source: ir.Value
    slope: float
    offset: float
    height: float
    nodes: int


def scalar_affine(node: ir.Node | None) -> Affine | None:
    """Read an Add, Sub, Mul or Div with a constant of one element as affine; else None."""
    affine = None if node is None else arithmetic_affine(node)
    if affine is None or affine.scale.size * affine.shift.size != 1:
        return None
    return affine if max(affine.scale.ndim, affine.shift.ndim) <= (rank(affine.source) or 0) else None


def lines(value: ir.Value) -> Iterator[Line]:
    """Yield all ways to write a value as a line: of itself, of what it is computed from, and so on."""
    line = Line(value)
    yield line
    while line.nodes < LONGEST and (affine := scalar_affine(line.source.producer())) is not None:
        slope, offset = line.slope * affine.scale.item(), line.slope * affine.shift.item() + line.offset
        line = Line(affine.source, slope, offset, line.nodes + 1)
        yield line


def multiples(value: ir.Value) -> Iterator[Line]:
    """Yield those of `lines` that go through zero."""
    return (line for line in lines(value) if line.offset == 0)


def ramps(value: ir.Value) -> Iterator[Ramp]:
    """Yield all ways to write a value as a ramp."""
    for multiple in multiples(value):
        node = multiple.source.producer()
        cut = None if node is None else _cut(multiple.source)
        for ramp in [] if cut is None else _of(*cut):
            yield replace(ramp, height=ramp.height * multiple.slope, nodes=ramp.nodes + multiple.nodes)


def _of(line: Line, limits: Range) -> Iterator[Ramp]:
    """Yield the ramps of a ``line`` clipped to ``limits``, the lower of which is 0."""
    height = limits[1]
    for inner in lines(line.source):
        slope, offset = line.slope * inner.slope, line.slope * inner.offset + line.offset
        yield Ramp(inner.source, slope / height, offset / height, height, line.nodes + inner.nodes)


def _cut(value: ir.Value) -> tuple[Line, Range] | None:
    """Return the line that is clipped at 0 and at a limit above it, and these limits; else None."""
    node = value.producer()
    if node is not None and is_op(node, "HardSigmoid") and node.inputs[0] is not None:
        slope, offset = attribute_value(node, "alpha"), attribute_value(node, "beta")
        return Line(node.inputs[0], slope, offset, nodes=1), (0.0, 1.0)
    source, limits, count = value, (-math.inf, math.inf), 0
    while count < LONGEST and (found := limited(source.producer())) is not None:
        source, inner = found
        low, high = np.clip(inner, *limits)
        limits, count = (float(low), float(high)), count + 1
    return (Line(source, nodes=count), limits) if limits[0] == 0 < limits[1] < math.inf else None


def limited(node: ir.Node | None) -> tuple[ir.Value, Range] | None:
    """Return the input of a Relu, Clip, or Min or Max with constants, and its limits; else None.

    The limits are the same for all elements, and the lower one is not above the upper one.
    """
    if node is None or not is_op(node, "Relu", "Clip", "Min", "Max") or node.inputs[0] is None:
        return None
    if node.op_type in ("Min", "Max"):
        return _one_limit(node)
    limits = clip_range(node)
    return None if limits is None or not limits[0] <= limits[1] else (node.inputs[0], limits)


def _one_limit(node: ir.Node) -> tuple[ir.Value, Range] | None:
    computed = [value for value in node.inputs if value is not None and constant_value(value) is None]
    constants = [constant for value in node.inputs if (constant := constant_value(value)) is not None]
    if len(computed) != 1 or not constants or not all(_is_one_number(c, computed[0]) for c in constants):
        return None
    numbers = [float(constant.reshape(-1)[0]) for constant in constants]
    if node.op_type == "Min":
        return computed[0], (-math.inf, min(numbers))
    return computed[0], (max(numbers), math.inf)


def _is_one_number(constant: NDArray[np.generic], other: ir.Value) -> bool:
    """Whether a constant broadcasts to ``other`` without changing its shape, and repeats one number."""
    sizes = () if other.shape is None else tuple(other.shape)[len(other.shape) - constant.ndim :]
    fits = len(sizes) == constant.ndim and all(
        a in (1, b) for a, b in zip(constant.shape, sizes, strict=True)
    )
    return fits and constant.size > 0 and bool((constant == constant.reshape(-1)[0]).all())


def same(a: float, b: float, dtype: ir.DataType | None) -> bool:
    """Whether two constants are equal up to rounding.

    Args:
        a: the first constant.
        b: the second constant.
        dtype: the type to which they were rounded; None: float32.
    """
    epsilon = np.finfo(np.float32 if dtype is None else dtype.numpy()).eps
    return math.isclose(a, b, rel_tol=4 * float(epsilon))

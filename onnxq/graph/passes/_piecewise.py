"""Values that are a straight line with both ends cut off, in whatever nodes an exporter wrote that.

    height * clip(slope * x + offset, 0, 1)

Only constants of one element count, which change no shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import constant_value, is_op, rank
from onnxq.graph.operators import Range, attribute_value, clip_range
from onnxq.graph.passes._affine import Affine, arithmetic_affine

LONGEST = 4
"""Nodes of one kind in a row that are looked through: nobody writes more."""


@dataclass(frozen=True)
class Line:
    """``slope * source + offset``, written in so many ``nodes``."""

    source: ir.Value
    slope: float = 1.0
    offset: float = 0.0
    nodes: int = 0


@dataclass(frozen=True)
class Ramp:
    """``height * clip(slope * source + offset, 0, 1)``, written in so many ``nodes``."""

    source: ir.Value
    slope: float
    offset: float
    height: float
    nodes: int


def scalar_affine(node: ir.Node | None) -> Affine | None:
    """An Add, Sub, Mul or Div with a constant of one element."""
    affine = None if node is None else arithmetic_affine(node)
    if affine is None or affine.scale.size * affine.shift.size != 1:
        return None
    return affine if max(affine.scale.ndim, affine.shift.ndim) <= (rank(affine.source) or 0) else None


def lines(value: ir.Value) -> Iterator[Line]:
    """All ways to see a value as a line: as itself, of what it is computed from, and so on."""
    line = Line(value)
    yield line
    while line.nodes < LONGEST and (affine := scalar_affine(line.source.producer())) is not None:
        slope, offset = line.slope * affine.scale.item(), line.slope * affine.shift.item() + line.offset
        line = Line(affine.source, slope, offset, line.nodes + 1)
        yield line


def multiples(value: ir.Value) -> Iterator[Line]:
    """Those of `lines` that go through zero."""
    return (line for line in lines(value) if line.offset == 0)


def ramps(value: ir.Value) -> Iterator[Ramp]:
    """All ways to see a value as a ramp."""
    for multiple in multiples(value):
        node = multiple.source.producer()
        cut = None if node is None else _cut(multiple.source)
        for ramp in [] if cut is None else _of(*cut):
            yield replace(ramp, height=ramp.height * multiple.slope, nodes=ramp.nodes + multiple.nodes)


def _of(line: Line, limits: Range) -> Iterator[Ramp]:
    """A ``line`` whose values are kept within ``limits``, one of which is 0."""
    height = limits[1]
    for inner in lines(line.source):
        slope, offset = line.slope * inner.slope, line.slope * inner.offset + line.offset
        yield Ramp(inner.source, slope / height, offset / height, height, line.nodes + inner.nodes)


def _cut(value: ir.Value) -> tuple[Line, Range] | None:
    """What is cut off at 0 and at a limit above it, and these limits."""
    node = value.producer()
    if node is not None and is_op(node, "HardSigmoid") and node.inputs[0] is not None:
        slope, offset = attribute_value(node, "alpha"), attribute_value(node, "beta")
        return Line(node.inputs[0], slope, offset, nodes=1), (0.0, 1.0)
    source, limits, count = value, (-math.inf, math.inf), 0
    while count < LONGEST and (found := _limited(source.producer())) is not None:
        source, inner = found
        low, high = np.clip(inner, *limits)
        limits, count = (float(low), float(high)), count + 1
    return (Line(source, nodes=count), limits) if limits[0] == 0 < limits[1] < math.inf else None


def _limited(node: ir.Node | None) -> tuple[ir.Value, Range] | None:
    """What a Relu, Clip, or a Min or Max with a constant reads, and its limits."""
    if node is None or not is_op(node, "Relu", "Clip", "Min", "Max") or node.inputs[0] is None:
        return None
    if node.op_type in ("Relu", "Clip"):
        limits = clip_range(node)
        return None if limits is None or limits[0] > limits[1] else (node.inputs[0], limits)
    return _one_limit(node)


def _one_limit(node: ir.Node) -> tuple[ir.Value, Range] | None:
    computed = [value for value in node.inputs if value is not None and constant_value(value) is None]
    constants = [constant for value in node.inputs if (constant := constant_value(value)) is not None]
    if len(computed) != 1 or len(constants) != 1 or constants[0].size != 1:
        return None
    if constants[0].ndim > (rank(computed[0]) or 0):
        return None
    limit = float(constants[0].item())
    return computed[0], ((-math.inf, limit) if node.op_type == "Min" else (limit, math.inf))


def same(a: float, b: float, dtype: ir.DataType | None) -> bool:
    """Whether two constants differ by no more than rounding them to a type can explain."""
    epsilon = np.finfo(np.float32 if dtype is None else dtype.numpy()).eps
    return math.isclose(a, b, rel_tol=4 * float(epsilon))

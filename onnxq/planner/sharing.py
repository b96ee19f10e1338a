"""Quantized tensors with nothing between them but operators that a target moves Q and DQ across.

They share parameters, so that the runtime need not rescale on the way: what goes into a Concat and what
comes out of it, both sides of a MaxPool, a tensor and its transpose.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph import is_op
from onnxq.operators import data_inputs
from onnxq.planner.scene import Scene


@dataclass(frozen=True)
class Bridge:
    """Two quantized tensors that are to share parameters.

    Attributes:
        above, below: the second is made of the first.
        whole: the one of them that holds all the values of the other; None if neither does.
    """

    above: ir.Value
    below: ir.Value
    whole: ir.Value | None

    @property
    def part(self) -> ir.Value | None:
        """The one whose values the other holds."""
        return {self.above: self.below, self.below: self.above}.get(self.whole) if self.whole else None


def bridges(quantized: Iterable[ir.Value], scene: Scene) -> Iterator[Bridge]:
    """Every pair among ``quantized`` that only transparent operators and no third one lie between."""
    known = frozenset(quantized)
    for below in dict.fromkeys(quantized):
        for above, steps in _sources(below, known, scene):
            whole = below if all(steps) else above if not any(steps) else None
            yield Bridge(above, below, whole)


def _sources(
    value: ir.Value, quantized: Collection[ir.Value], scene: Scene
) -> Iterator[tuple[ir.Value, tuple[bool, ...]]]:
    """The nearest quantized tensors that ``value`` is made of, and which steps on the way add others."""
    node = value.producer()
    if node is None or not is_op(node, *(scene.target.transparent - scene.target.unequal)):
        return
    joins = node.op_type == "Concat"
    for source in (node.inputs[index] for index in data_inputs(node)):
        if source is not None and source in quantized:
            yield source, (joins,)
        elif source is not None:
            for found, steps in _sources(source, quantized, scene):
                yield found, (*steps, joins)

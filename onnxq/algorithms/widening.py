"""In which order weights get wider: those first that take the most noise along for each byte that they cost.

Rounding noise goes with the square of the step between two levels, so what is left of it in a wider format
follows from that of the narrow one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

import onnx_ir as ir

from onnxq.algorithms.ladder import wider_formats
from onnxq.operators import WEIGHTED
from onnxq.plan import Group, QuantPlan, QuantSpec
from onnxq.targets import get_target
from onnxq.targets.target import Target


@dataclass(frozen=True)
class Widening:
    """A group of weights in a wider format.

    Attributes:
        group: its name.
        nodes: those that read it.
        form: the type that it gets.
        left: its noise over signal, at the outputs, in that type.
        gain: the noise that goes.
        cost: the bytes that come.
    """

    group: str
    nodes: tuple[str, ...]
    form: ir.DataType
    left: float
    gain: float
    cost: float

    @property
    def worth(self) -> float:
        """Noise for each byte."""
        return self.gain / self.cost


def widenings(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[list[Widening]]:
    """Rung by rung, all that the target takes in wider formats, those that are worth most first.

    Args:
        model: the model of ``plan``.
        plan: what is quantized.
        noises: of its groups, what each alone does to the outputs (noise over signal).
    """
    readers, target = _readers(model, plan), get_target(plan.target)
    ladders = [
        list(_ladder(plan.groups[name], nodes, noises[name], _elements(model, plan.groups[name]), target))
        for name, nodes in readers.items()
    ]
    rungs = [[one for one in rung if one is not None] for rung in zip_longest(*ladders)]
    return [sorted(rung, key=lambda one: -one.worth) for rung in rungs]


def _ladder(
    group: Group, nodes: tuple[str, ...], noise: float, elements: int, target: Target
) -> Iterator[Widening]:
    before = group.spec
    for spec in wider_formats(before, target):
        left = noise * (_span(before) / _span(spec)) ** 2
        cost = max(elements, 1) * (spec.dtype.bitwidth - before.dtype.bitwidth) / 8
        yield Widening(group.name, nodes, spec.dtype, left, noise - left, cost)
        noise, before = left, spec


def _readers(model: ir.Model, plan: QuantPlan) -> Mapping[str, tuple[str, ...]]:
    """Groups of weights -> the nodes that read them, if nobody reads them as something else."""
    operators = {node.name or "": WEIGHTED.get(node.op_type) for node in model.graph}
    readers: dict[str, list[str]] = {}
    others = set[str]()
    for point in plan.points:
        operator = operators.get(point.consumer)
        if plan.groups[point.group].constant and operator and point.input_index == operator.weight:
            readers.setdefault(point.group, []).append(point.consumer)
        else:
            others.add(point.group)
    return {name: tuple(nodes) for name, nodes in readers.items() if name not in others}


def _span(spec: QuantSpec) -> int:
    """From the lowest level to the highest, in steps."""
    return spec.limits[1] - spec.limits[0]


def _elements(model: ir.Model, group: Group) -> int:
    tensors = (model.graph.initializers[name].const_value for name in group.tensors)
    return sum(tensor.size for tensor in tensors if tensor is not None)

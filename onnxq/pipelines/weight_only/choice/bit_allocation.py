"""The order in which groups of products get more bits: by what that gains, for each byte that it takes.

The squared rounding error of a weight falls with the square of the number of levels, and so does what a group
costs. From what it costs at one width the others follow: the cost of a step is known without a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from onnxq.core.plan import FloatNode
from onnxq.graph.nodes import name_of
from onnxq.pipelines.weight_only.block_scheme import BlockScheme
from onnxq.pipelines.weight_only.choice.group_costs import Group
from onnxq.pipelines.weight_only.products import Product
from onnxq.pipelines.weight_only.streaming import WeightWork

FLOAT = 0
"""The width of what stays float."""

_KEPT = "it stays float for the sake of the goal"


@dataclass(frozen=True)
class Step:
    """One group gets more bits.

    Attributes:
        group: its number.
        bits: its new width.
        gain: by how much its cost falls.
        size: the bytes that it takes.
    """

    group: int
    bits: int
    gain: float
    size: int


@dataclass(frozen=True)
class BitAllocation:
    """All models that the search may choose: the first ``t`` steps are taken.

    Attributes:
        groups: the groups.
        lowest: the width of all groups before the first step.
        steps: in the order in which they are taken.
        costs: the predicted cost after 0, 1, 2 … steps.
        sizes: the bytes that they add.
    """

    groups: tuple[Group, ...]
    lowest: int
    steps: tuple[Step, ...]
    costs: tuple[float, ...]
    sizes: tuple[int, ...]

    def bits(self, taken: int) -> dict[str, int]:
        """Return the width of each node after so many steps."""
        widths = dict.fromkeys(range(len(self.groups)), self.lowest)
        widths |= {step.group: step.bits for step in self.steps[:taken]}
        return {
            name_of(product.node): widths[number]
            for number, group in enumerate(self.groups)
            for product in group
        }


def allocate_bits(
    groups: Sequence[Group], costs: Sequence[float], scheme: BlockScheme, widths: Sequence[int]
) -> BitAllocation:
    """Order the steps of all groups.

    Args:
        groups: the groups.
        costs: what each costs with the weights of ``scheme``.
        scheme: these weights.
        widths: the widths that a group may have, rising; `FLOAT` comes last.
    """
    steps = []
    for number, (group, cost) in enumerate(zip(groups, costs, strict=True)):
        for before, after in pairwise(widths):
            gain = cost * (_noise(before) - _noise(after)) / _noise(scheme.dtype.bitwidth)
            size = sum(_bytes(product, after, scheme) - _bytes(product, before, scheme) for product in group)
            steps.append(Step(number, after, gain, max(size, 1)))
    # A later step of a group gains less for each byte than its earlier ones: so the order is possible.
    steps.sort(key=lambda step: -step.gain / step.size)
    start = sum(costs) * _noise(widths[0]) / _noise(scheme.dtype.bitwidth)
    left = tuple(accumulate((-step.gain for step in steps), initial=start))
    sizes = tuple(accumulate((step.size for step in steps), initial=0))
    return BitAllocation(tuple(groups), widths[0], tuple(steps), left, sizes)


def with_bits(work: WeightWork, bits: Mapping[str, int]) -> WeightWork:
    """Give the products of ``work`` other widths, by the name of their nodes.

    What stays float gets the factors of its channels: then the model of ``work`` is changed.
    """
    schemes, floats = dict[str, BlockScheme](), dict[str, FloatNode]()
    for product in work.products:
        name = name_of(product.node)
        scheme = work.scheme.with_bits(bits.get(name, work.scheme.dtype.bitwidth))
        if scheme is None:
            floats[name] = FloatNode(product.node.op_type, _KEPT)
            product.keep_float()
        else:
            schemes[name] = scheme
    integers = {name: kind for name, kind in work.plan.integer_nodes.items() if name not in floats}
    plan = replace(work.plan, integer_nodes=integers, float_nodes={**work.plan.float_nodes, **floats})
    products = tuple(each for each in work.products if name_of(each.node) in schemes)
    return replace(work, products=products, plan=plan, schemes=schemes)


def _noise(bits: int) -> float:
    """The power of the rounding error, up to a factor."""
    return 0.0 if bits == FLOAT else float((2**bits - 1) ** -2)


def _bytes(product: Product, bits: int, scheme: BlockScheme) -> int:
    """The bytes of a matrix with its scales and zero points."""
    if bits == FLOAT:
        return product.operand.tensor.nbytes
    found = scheme.with_bits(bits)
    assert found is not None
    count, columns = product.sizes
    blocks = count * product.stacked * -(-columns // scheme.size)
    each = 0 if found.dtype.is_signed() else bits
    scales = blocks * product.operand.dtype.itemsize
    return int(scales + (product.operand.tensor.size * bits + blocks * each) // 8)

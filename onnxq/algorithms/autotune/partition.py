"""Find the fused groups to run in integers: the costs of groups and of Q/DQ, and the minimum cut.

Each fused group has a time in float and a time in integers. Each tensor between a group in float and a group
in integers costs the time of its Q or DQ. If these times are additive, the fastest assignment is a minimum
s-t cut. Source: Kolmogorov and Zabih, "What energy functions can be minimized via graph cuts?", 2004.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxq.algorithms.autotune.fusion_groups import Boundary, FusionGroup, Parts
from onnxq.algorithms.autotune.kernel_trace import Traced

if TYPE_CHECKING:
    import networkx


@dataclass
class Costs:
    """The measured times of groups and conversions, extended with every profiled model. All times in seconds.

    Attributes:
        parts: the fused groups.
        reference: the time of a run of the float model. Later measurements are scaled to it, because the
            speed of the machine varies.
    """

    parts: Parts
    reference: float
    _units: dict[tuple[FusionGroup, bool], list[float]] = field(default_factory=lambda: defaultdict(list))
    _ties: dict[tuple[str, bool], list[float]] = field(default_factory=lambda: defaultdict(list))
    _elements: dict[str, int] = field(default_factory=dict)

    def learn(self, traced: Traced, integers: Collection[str], reference: float) -> None:
        """Add the times of a profiled model.

        Args:
            traced: the traced profile of the model.
            integers: the names of the nodes that are in integers in it.
            reference: the time of a run of the float model during this measurement, in seconds.
        """
        scale = self.reference / reference
        self._elements |= traced.elements
        times: dict[FusionGroup, float] = defaultdict(float)
        for name, seconds in traced.nodes.items():
            times[self.parts.of_node[name]] += seconds * scale
        for tensor, unit in self.parts.makers.items():
            times[unit] += traced.tensors.get(tensor, 0.0) * scale
        inside = {unit for unit in self.parts.units if not unit.planned.isdisjoint(integers)}
        for tie in self.parts.ties:
            self._learn_tie(tie, traced.tensors.get(tie.tensor, 0.0) * scale, inside, times)
        for unit in self.parts.units:
            self._units[unit, unit in inside].append(times[unit])

    def _learn_tie(
        self, tie: Boundary, seconds: float, inside: set[FusionGroup], times: dict[FusionGroup, float]
    ) -> None:
        made = tie.source in inside
        reads = any(unit in inside for unit in tie.integers)
        floats = [u for u in (*tie.integers, *tie.floats) if u not in inside or u in tie.floats]
        if made and floats:
            self._ties[tie.tensor, True].append(seconds / len(floats))
        elif not made and reads:
            self._ties[tie.tensor, False].append(seconds)
        elif tie.source is not None:
            times[tie.source] += seconds

    def seconds(self, unit: FusionGroup, in_integers: bool) -> float:
        """Return the last measured time of a group, or 0 if it was not measured.

        The last measurement is the best one, because it comes from the model closest to the optimum.
        """
        seen = self._units[unit, in_integers]
        return seen[-1] if seen else 0.0

    def to_integers(self, tie: Boundary) -> float:
        """Return the time to quantize the tensor."""
        return self._crossing(tie, leaves=False)

    def to_float(self, tie: Boundary) -> float:
        """Return the time to dequantize the tensor for one consumer."""
        return self._crossing(tie, leaves=True)

    def _crossing(self, tie: Boundary, leaves: bool) -> float:
        seen = self._ties.get((tie.tensor, leaves))
        if seen:
            return seen[-1]
        return _line(self._seen(leaves) or self._seen(not leaves), self._elements.get(tie.tensor, 0))

    def _seen(self, leaves: bool) -> list[tuple[int, float]]:
        """Return (elements, seconds) of the tensors whose conversion was measured."""
        return [
            (self._elements.get(tensor, 0), seen[-1])
            for (tensor, way), seen in self._ties.items()
            if way is leaves
        ]


def _line(points: Sequence[tuple[int, float]], elements: int) -> float:
    """Estimate the time for ``elements`` from measured (elements, seconds).

    The estimate is a least squares line if there are enough points and its coefficients are positive;
    otherwise the time is proportional to the number of elements.
    """
    if not points:
        return 0.0
    counts, times = np.array(points).T
    if len(points) > 2 and np.ptp(counts):
        slope, start = np.polyfit(counts, times, 1)
        if slope > 0 and start > 0:
            return float(start + slope * elements)
    return float(times.sum() / max(counts.sum(), 1) * elements)


_INTEGERS, _FLOAT = object(), object()
"""The source and the sink of the cut."""


_NANO = 1e9
"""Capacities are integer nanoseconds, because sums of floats would have rounding errors."""


def cheapest(costs: Costs) -> frozenset[FusionGroup]:
    """Return the groups that the fastest assignment has in integers."""
    import networkx  # here, because it takes long and few models need it

    graph = networkx.DiGraph()
    graph.add_nodes_from((_INTEGERS, _FLOAT))
    for unit in costs.parts.units:
        if unit.planned:
            _pay(graph, _INTEGERS, unit, costs.seconds(unit, in_integers=False))
            _pay(graph, unit, _FLOAT, costs.seconds(unit, in_integers=True))
    for tie in costs.parts.ties:
        _tie(graph, tie, costs)
    _, (inside, _) = networkx.minimum_cut(graph, _INTEGERS, _FLOAT)
    return frozenset(unit for unit in inside if isinstance(unit, FusionGroup))


def _tie(graph: networkx.DiGraph, tie: Boundary, costs: Costs) -> None:
    """Add the costs of a tensor: one DQ for each float consumer, or one Q for all integer consumers."""
    if tie.source is not None:
        for reader in (*tie.integers, *tie.floats):
            outside = reader in tie.floats or reader is None
            _pay(graph, tie.source, _FLOAT if outside else reader, costs.to_float(tie))
    if tie.integers:
        for reader in tie.integers:
            graph.add_edge(reader, tie)  # infinite capacity
        _pay(graph, tie, tie.source or _FLOAT, costs.to_integers(tie))


def _pay(graph: networkx.DiGraph, here: object, there: object, seconds: float) -> None:
    """Add to the cost of having ``here`` in integers and ``there`` in float."""
    paid = graph.get_edge_data(here, there, {}).get("capacity", 0)
    graph.add_edge(here, there, capacity=paid + round(seconds * _NANO))

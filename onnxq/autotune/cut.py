"""Which fused groups are best run in integers, if times add up: the cheapest cut between both worlds.

Each group pays for the side that it is on, and each tensor that crosses from one side to the other pays for Q
or DQ. That is a minimum s-t cut; see Kolmogorov and Zabih, "What energy functions can be minimized via graph
cuts?", 2004.
"""

from __future__ import annotations

import networkx

from onnxq.autotune.costs import Costs
from onnxq.autotune.units import Tie, Unit

_INTEGERS, _FLOAT = object(), object()
"""Source and sink."""

_NANO = 1e9
"""Capacities are whole nanoseconds: sums of fractions would never quite agree."""


def cheapest(costs: Costs) -> frozenset[Unit]:
    """The groups that are to be in integers, of those that the plan has in integers."""
    graph = networkx.DiGraph()
    graph.add_nodes_from((_INTEGERS, _FLOAT))
    for unit in costs.parts.units:
        if unit.planned:
            _pay(graph, _INTEGERS, unit, costs.seconds(unit, in_integers=False))
            _pay(graph, unit, _FLOAT, costs.seconds(unit, in_integers=True))
    for tie in costs.parts.ties:
        _tie(graph, tie, costs)
    _, (inside, _) = networkx.minimum_cut(graph, _INTEGERS, _FLOAT)
    return frozenset(unit for unit in inside if isinstance(unit, Unit))


def _tie(graph: networkx.DiGraph, tie: Tie, costs: Costs) -> None:
    """DQ for each float reader of a tensor in integers; one Q for all integer readers of a float one."""
    if tie.source is not None:
        for reader in (*tie.integers, *tie.floats):
            outside = reader in tie.floats or reader is None
            _pay(graph, tie.source, _FLOAT if outside else reader, costs.to_float(tie))
    if tie.integers:
        for reader in tie.integers:
            graph.add_edge(reader, tie)  # without a capacity it cannot be cut
        _pay(graph, tie, tie.source or _FLOAT, costs.to_integers(tie))


def _pay(graph: networkx.DiGraph, here: object, there: object, seconds: float) -> None:
    """What it costs to have ``here`` in integers and ``there`` in float; several such costs add up."""
    paid = graph.get_edge_data(here, there, {}).get("capacity", 0)
    graph.add_edge(here, there, capacity=paid + round(seconds * _NANO))

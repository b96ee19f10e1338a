"""How many nodes of a plan compute with which types: activations and weights of 8 bits, of 16 bits, float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnxq.core.plan import QuantPlan
from onnxq.graph.operators import WEIGHTED


@dataclass(frozen=True)
class NodeTypes:
    """The integer types that a node computes with, in words.

    Attributes:
        activation: the type of the activations that it reads; empty: float.
        weight: its weights, such as "int8 weights"; empty: it has none.
    """

    activation: str
    weight: str

    def __str__(self) -> str:
        activations = f"{self.activation or 'float'} activations"
        return f"{activations}, {self.weight}" if self.weight else activations


def counted_types(plan: QuantPlan) -> Mapping[NodeTypes, int]:
    """Count the nodes in integers by their types, the most frequent first.

    Nodes that the plan knows no types of are left out.
    """
    activations, weights = _activation_types(plan), _weight_types(plan)
    known = (name for name in plan.integer_nodes if name in activations or name in weights)
    found = Counter(NodeTypes(activations.get(name, ""), weights.get(name, "")) for name in known)
    return dict(found.most_common())


def _activation_types(plan: QuantPlan) -> dict[str, str]:
    planned = {name: dtype.name.lower() for name, dtype in plan.activation_types.items()}
    at_run_time = {name: "run-time quantized" for name, w in plan.stored_weights.items() if w.multiplied}
    return planned | at_run_time


def _weight_types(plan: QuantPlan) -> dict[str, str]:
    """Map the nodes with constant weights to these, in words."""
    planned = {
        point.consumer: f"{point.spec.dtype.name.lower()} weights"
        for point in plan.points
        if plan.groups[point.group].constant
        and (operator := WEIGHTED.get(plan.integer_nodes.get(point.consumer, ""))) is not None
        and point.input_index == operator.weight
    }
    return planned | {name: str(stored) for name, stored in plan.stored_weights.items()}


def told_types(plan: QuantPlan) -> Iterator[str]:
    """Yield each kind of nodes in words with their number, the most frequent first, float nodes last."""
    for types, count in counted_types(plan).items():
        yield f"{count} {'node' if count == 1 else 'nodes'}: {types}"
    if plan.conversions:
        yield f"conversions between the widths: {plan.conversions}"
    if plan.float_nodes:
        yield f"{len(plan.float_nodes)} float"

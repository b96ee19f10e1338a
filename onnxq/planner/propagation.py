"""Which links (Add, Concat, pooling, Reshape ...) join the quantized operators around them.

A link is quantized where its inputs are integers anyway and somebody reads its output as integers:
elsewhere Q/DQ would cost time and accuracy for nothing. Links depend on each other, so those that fail
are dropped until none does.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.nodes import is_broadcast, is_op
from onnxq.planner.context import PlanningContext, integer_inputs, integer_outputs
from onnxq.targets.target import FloatInputs


@dataclass(frozen=True)
class _Integers:
    """Tensors that are in integers as things stand.

    Attributes:
        made: a quantized node gives them in integers.
        read: an anchor reads them in integers, so that a Q stands there anyway.
        wanted: somebody reads them in integers.
    """

    made: Set[ir.Value | None]
    read: Set[ir.Value | None]
    wanted: Set[ir.Value | None]


def join(
    anchors: Sequence[ir.Node], candidates: Sequence[ir.Node], context: PlanningContext
) -> tuple[list[ir.Node], dict[str, str]]:
    """The links among ``candidates``, and by name why each of the others is none."""
    kept, reasons = list(candidates), dict[str, str]()
    while True:
        integers = _integers(anchors, kept, context)
        failing = {node: why for node in kept if (why := _no_gain(node, integers, context))}
        if not failing:
            return kept, reasons
        reasons |= {node.name or "": why for node, why in failing.items()}
        kept = [node for node in kept if node not in failing]


def _integers(anchors: Sequence[ir.Node], links: Sequence[ir.Node], context: PlanningContext) -> _Integers:
    made = {value for node in (*anchors, *links) for value in integer_outputs(node, context)}
    read = {node.inputs[i] for node in anchors for i in integer_inputs(node, context)}
    return _Integers(
        made, read, read | {node.inputs[i] for node in links for i in integer_inputs(node, context)}
    )


def _no_gain(node: ir.Node, integers: _Integers, context: PlanningContext) -> str | None:
    """Why quantizing this link gains nothing; None if it does."""
    inputs = [v for i in integer_inputs(node, context) if (v := node.inputs[i]) is not None]
    computed = [value for value in inputs if not value.is_initializer()]
    if not computed:
        return "all its inputs are constants"
    made = [value for value in computed if value in integers.made]
    for value in computed:
        if (
            value not in made
            and value not in integers.read
            and not _quantized_here(value, made, node, context)
        ):
            return f"its input {value.name!r} comes in float"
    if not any(v in integers.wanted or v.is_graph_output() for v in integer_outputs(node, context)):
        return "nothing reads its output as integers"
    return None


def _quantized_here(
    value: ir.Value, integers: Sequence[ir.Value], node: ir.Node, context: PlanningContext
) -> bool:
    """Whether it pays to quantize this float input for the sake of the ``integers`` beside it."""
    floats = context.target.rules[node.op_type].float_inputs
    if _source(value).is_graph_output():
        return False  # the kernel that gives it may have no integers to give
    if floats is FloatInputs.BROADCAST:
        return any(is_broadcast(value, other) for other in integers)
    return floats is FloatInputs.ANY and bool(integers)


def _source(value: ir.Value) -> ir.Value:
    """What Relu and Clip made ``value`` of."""
    producer = value.producer()
    if producer is None or not is_op(producer, "Relu", "Clip") or producer.inputs[0] is None:
        return value
    return _source(producer.inputs[0])

"""Decide which links (Add, Concat, pooling, Reshape ...) join the quantized operators around them.

A link is quantized if its inputs are in integers anyway and a consumer reads its output in integers.
Elsewhere Q/DQ would cost time and accuracy for nothing. Links depend on each other, so failing ones are
dropped and the others checked again until none fails.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.nodes import is_broadcast, is_op, name_of
from onnxq.graph.operators import is_single_channel
from onnxq.graph.walks import upstream
from onnxq.planner.context import PlanningContext, integer_inputs, integer_outputs
from onnxq.planner.moving import quantized_before_moves
from onnxq.targets.target import FloatInputs


@dataclass(frozen=True)
class _Integers:
    """The tensors that are in integers with the current anchors and links.

    Attributes:
        made: tensors that a quantized node gives in integers.
        read: tensors that an anchor reads in integers, so they have a Q anyway.
        wanted: tensors that any quantized node reads in integers.
        moved: float tensors that are quantized before links that only move their values.
    """

    made: Set[ir.Value | None]
    read: Set[ir.Value | None]
    wanted: Set[ir.Value | None]
    moved: Set[ir.Value]


def join(
    anchors: Sequence[ir.Node], candidates: Sequence[ir.Node], context: PlanningContext
) -> tuple[list[ir.Node], dict[str, str]]:
    """Choose the links to quantize.

    Args:
        anchors: the quantized anchors.
        candidates: the eligible links.
        context: the planning context.

    Returns:
        The chosen links, and for each of the others the reason by name.
    """
    kept, reasons = list(candidates), dict[str, str]()
    while True:
        integers = _integers(anchors, kept, context)
        failing = {node: why for node in kept if (why := _no_gain(node, integers, context))}
        if not failing:
            return kept, reasons
        reasons |= {name_of(node): why for node, why in failing.items()}
        kept = [node for node in kept if node not in failing]


def _integers(anchors: Sequence[ir.Node], links: Sequence[ir.Node], context: PlanningContext) -> _Integers:
    made = {value for node in (*anchors, *links) for value in integer_outputs(node, context)}
    read = {node.inputs[i] for node in anchors for i in integer_inputs(node, context)}
    wanted = read | {node.inputs[i] for node in links for i in integer_inputs(node, context)}
    planned = sorted((*anchors, *links), key=context.position.__getitem__)
    moved = quantized_before_moves(planned, read | made, context)
    return _Integers(made, read, wanted, moved)


def _no_gain(node: ir.Node, integers: _Integers, context: PlanningContext) -> str | None:
    """Explain why quantizing this link gains nothing; None if it gains something."""
    inputs = [v for i in integer_inputs(node, context) if (v := node.inputs[i]) is not None]
    computed = [value for value in inputs if not value.is_initializer()]
    if not computed:
        return "all its inputs are constants"
    made = [value for value in computed if value in integers.made]
    for value in computed:
        if (
            value not in made
            and (value not in integers.read or is_single_channel(node))
            and value not in integers.moved
            and not _quantized_here(value, made, node, context)
        ):
            return f"its input {value.name!r} is in float"
    if not any(v in integers.wanted or v.is_graph_output() for v in integer_outputs(node, context)):
        return "no node reads its output in integers"
    return None


def _quantized_here(
    value: ir.Value, integers: Sequence[ir.Value], node: ir.Node, context: PlanningContext
) -> bool:
    """Whether this float input is worth quantizing because of the other inputs, which are ``integers``."""
    floats = context.target.rules[node.op_type].float_inputs
    *_, source = upstream(value, lambda node: is_op(node, "Relu", "Clip"))
    if source.is_graph_output():
        return False  # the kernel that computes it may have no integer output
    if floats is FloatInputs.BROADCAST:
        return any(is_broadcast(value, other) for other in integers)
    return floats is FloatInputs.ANY and bool(integers)

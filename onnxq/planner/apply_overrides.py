"""Apply the user's overrides: options for single nodes. Of several that match a node, the last one counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from onnxq.core.overrides import Override
from onnxq.core.plan import Group, QuantPoint, QuantSpec
from onnxq.graph.operators import WEIGHTED
from onnxq.planner.context import PlanningContext, matches
from onnxq.planner.number_formats import activation_format, weight_format


def weight_spec(node: ir.Node, context: PlanningContext) -> QuantSpec | None:
    """The number format of the node's weights, without the axis, if an override requests one."""
    found = (weight_format(context.target, override) for override in _overrides(node, context))
    return next((spec for spec in found if spec is not None), None)


def activation_spec(node: ir.Node, context: PlanningContext) -> QuantSpec | None:
    """The number format of the node's activations, if an override requests one."""
    found = (activation_format(context.target, override) for override in _overrides(node, context))
    return next((spec for spec in found if spec is not None), None)


def block_spec(node: ir.Node, context: PlanningContext) -> QuantSpec | None:
    """The number format of the node's weights in blocks, without the axis.

    None if no blocks are requested, or if the target does not take the weights' type in blocks.
    """
    blocked, blocks = context.formats.blocked, context.target.blocks
    if blocked is None or blocks is None:
        return None
    own = (one.weight for one in _overrides(node, context) if one.weight)
    spec = blocks.types.get(ir.DataType[next(own, blocked.dtype.name).upper()])
    return None if spec is None else replace(spec, block_size=blocked.block_size)


def is_per_tensor(node: ir.Node, context: PlanningContext) -> bool:
    """Whether one scale is requested for all weights of ``node``."""
    own = (one.per_tensor for one in _overrides(node, context) if one.per_tensor is not None)
    return next(own, context.config.per_tensor)


def with_methods(
    groups: Mapping[str, Group],
    points: Iterable[QuantPoint],
    nodes: Mapping[str, ir.Node],
    context: PlanningContext,
) -> dict[str, Group]:
    """Add to ``groups`` the range methods that are requested for the nodes that read them.

    Args:
        groups: the groups by name.
        points: all quantized edges.
        nodes: the nodes of the main graph by name.
        context: the planning context, which holds the overrides.

    Returns:
        The groups by name.
    """
    result = dict(groups)
    for point in points:
        node, group = nodes.get(point.consumer), result[point.group]
        if node is not None and (method := _method(node, point, group, context)):
            result[point.group] = replace(group, method=method, percentile=context.config.percentile)
    return result


def _method(node: ir.Node, point: QuantPoint, group: Group, context: PlanningContext) -> str | None:
    if not group.constant:
        return next((one.method for one in _overrides(node, context) if one.method), None)
    operator = WEIGHTED.get(node.op_type)
    if operator is None or point.input_index != operator.weight:
        return None
    own = (one.weight_method for one in _overrides(node, context) if one.weight_method)
    method = next(own, context.config.weight_method)
    return None if method == "mse" else method


def _overrides(node: ir.Node, context: PlanningContext) -> Iterator[Override]:
    """The overrides that match ``node``, the one with the highest precedence first."""
    return (one for one in reversed(context.config.overrides) if matches(node, one.pattern))

"""Plan the quantization of a model for a target: which edges are quantized, how, and why the others are not.

1. *Anchors* (operators with weights) are quantized wherever the target allows it (`eligibility`).
2. *Links* (Add, Concat, pooling, Reshape ...) join them only where that is faster (`propagation`).
3. *Residual* additions are quantized for targets that fuse them into the convolution before them.
4. Nodes whose weights are cut into blocks have no other quantized inputs (`blockwise`).
5. Tensors that must or should share parameters form groups (`groups`).

Every other node is kept in float, with a reason, or runs in the type of its neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import onnx_ir as ir

from onnxq.core.config import QuantConfig
from onnxq.core.plan import FloatNode, QuantPlan, QuantPoint
from onnxq.graph.half_precision.widen import given_types
from onnxq.graph.nodes import all_nodes, is_op, name_of
from onnxq.graph.operators import SUMMED_AXIS, WEIGHTED, misfit
from onnxq.graph.ort_rewrites import adds_before_layernorm
from onnxq.graph.qdq.integer_tables import lone_tables, tied_tables
from onnxq.graph.share_transposed import find_transposed
from onnxq.graph.walks import clips_after, raw_values
from onnxq.planner.activation_widths import own_activations
from onnxq.planner.apply_overrides import with_methods
from onnxq.planner.blockwise import among_integers, blocked_nodes, fused_products, warn_of_whole
from onnxq.planner.context import (
    PlanningContext,
    bias_add,
    deselected,
    fused_clips,
    integer_inputs,
    matches,
    mixed_consumers,
    skip_inputs,
)
from onnxq.planner.edges import Edge, find_edges, is_constant
from onnxq.planner.eligibility import computes_reals, ineligible_because, is_carried
from onnxq.planner.float_regions import REGIONS
from onnxq.planner.groups import find_groups
from onnxq.planner.number_formats import find_formats, float_type
from onnxq.planner.points import find_biases, find_points
from onnxq.planner.propagation import join
from onnxq.targets.target import Output, Role, Target

__all__ = ["make_plan", "matches"]

_IN_BODY = "it is in the body of a control-flow operator, whose tensors calibration cannot observe"

_TABLE = "only its table is in integers: it looks up rows"

_MIXED = (
    "its output is both a float graph output and read in integers, but the kernel gives only one of these"
)


def make_plan(model: ir.Model, target: Target, config: QuantConfig) -> QuantPlan:
    """Decide what is quantized and how.

    Args:
        model: a simplified model: nodes are named, tensors have types, constants are initializers.
        target: the deployment target.
        config: the user's options.

    Raises:
        TargetError: the target does not take the number formats that ``config`` requests.
    """
    position = {node: i for i, node in enumerate(model.graph)}
    context = PlanningContext(model.graph, target, config, find_formats(target, config), position)
    context = replace(context, float_regions=_float_regions(model.graph), raw=raw_values(model.graph))
    context = replace(
        context, in_blocks=blocked_nodes(model.graph, context), ends=_ends(model.graph, context)
    )
    context = replace(context, own_activations=own_activations(context))
    planned, edges, floats = _decide(model, context)
    while lost := among_integers(context, {edge.value for edge in edges if edge.spec in context.activations}):
        context = replace(context, in_blocks=context.in_blocks - lost)
        planned, edges, floats = _decide(model, context)
    warn_of_whole(planned, context)
    groups = find_groups(edges, planned, context)
    points = tuple(find_points(edges, groups, set(planned), context))
    nodes = {name_of(node): node for node in model.graph}
    tables = _integer_tables(model, points, nodes, context)
    return QuantPlan(
        target=target.name,
        points=points,
        biases=tuple(find_biases(planned, groups, context)),
        groups=with_methods({group.name: group for group in groups.values()}, points, nodes, context),
        integer_nodes={name_of(node): node.op_type for node in planned},
        float_nodes=_float_reasons({**floats, **dict.fromkeys(tables, _TABLE)}, planned, context, model),
        passthrough_nodes={name_of(n): n.op_type for n in model.graph if is_carried(n, context)},
        unfused_sums=_sums(model, planned, target),
        separated=_separated(edges, target),
        on_integers=frozenset(name_of(n) for n in planned if target.rules[n.op_type].on_integers),
        unfused_products=fused_products(context),
        join_float_readers=target.join_float_readers,
        float_type=float_type(target, config, given_types(model).dtype),
        integer_tables=tables,
        weight_only_nodes=frozenset(tables),
        channel_padding={
            name_of(n): rule.channels for n in planned if (rule := target.rules[n.op_type]).channels > 1
        },
    )


def _float_regions(graph: ir.Graph) -> dict[ir.Node, str]:
    """Find the nodes that are kept in float because no range suits them, and the reasons."""
    return {node: reason for find in reversed(REGIONS) for node, reason in find(graph).items()}


def _integer_tables(
    model: ir.Model, points: Iterable[QuantPoint], nodes: Mapping[str, ir.Node], context: PlanningContext
) -> dict[str, str]:
    """Map each look-up of rows in integers, if the target has them, to the group of weights with that table.

    It is empty for a table that is no weight. Such a table stays float where a goal is set: the search for it
    goes by the noise of nodes between Q/DQ, and would not know of it.
    """
    if not context.target.integer_tables or not any(is_op(node, "Gather") for node in model.graph):
        return {}
    same = find_transposed(model)
    tables = _tied_tables(model, same, points, nodes, context)
    if context.config.goal is None:
        taken = {*tables, *(point.consumer for point in points)}
        lone = (node for node in lone_tables(model.graph, same) if node.name not in taken)
        tables |= {name_of(node): "" for node in lone if not deselected(node, context.config)}
    return tables


def _tied_tables(
    model: ir.Model,
    same: Mapping[ir.Value, ir.Value],
    points: Iterable[QuantPoint],
    nodes: Mapping[str, ir.Node],
    context: PlanningContext,
) -> dict[str, str]:
    """Map each look-up of rows in a quantized weight to the group of the weight."""
    weights = {
        point.tensor: point.group
        for point in points
        if (node := nodes.get(point.consumer)) is not None
        and node.op_type in SUMMED_AXIS
        and point.input_index == WEIGHTED[node.op_type].weight
        and is_constant(node, point.input_index)
    }
    tied = tied_tables(model.graph, same, weights) if weights else ()
    found = {node: group for node, group in tied if not deselected(node, context.config)}
    quantized = {(point.tensor, point.consumer) for point in points}
    return {
        name_of(node): group
        for node, group in found.items()
        if (table := node.inputs[0]) is not None
        and all(use.node in found or (table.name, use.node.name) in quantized for use in table.uses())
    }


def _sums(model: ir.Model, planned: Iterable[ir.Node], target: Target) -> frozenset[str]:
    return (
        adds_before_layernorm(model) - {node.name for node in planned}
        if target.unfuse_layernorm_add
        else frozenset()
    )


def _separated(edges: Iterable[Edge], target: Target) -> frozenset[str]:
    """The nodes that read integers, but whose attributes the integer kernel does not compute."""
    nodes = {edge.node for edge in edges if edge.node is not None}
    rules = {node: rule for node in nodes if (rule := target.rules.get(node.op_type)) is not None}
    return frozenset(
        name_of(node)
        for node, rule in rules.items()
        if misfit(node, rule.unknown_attributes, rule.wrong_together)
    )


def _ends(graph: ir.Graph, context: PlanningContext) -> frozenset[ir.Node]:
    """The first and the last node with weights, if the target has separate formats for them."""
    if context.target.first_last_formats is None:
        return frozenset()
    layers = [
        n
        for n in graph
        if n.op_type in WEIGHTED and context.rule(n) and ineligible_because(n, context) is None
    ]
    return frozenset(layers[:1] + layers[-1:])


def _decide(model: ir.Model, context: PlanningContext) -> tuple[list[ir.Node], list[Edge], dict[str, str]]:
    """Find the planned nodes in graph order, the quantized edges, and the reasons of float nodes by name."""
    floats = {name_of(node): reason for node in model.graph if (reason := ineligible_because(node, context))}
    able = [node for node in model.graph if computes_reals(node) and node.name not in floats]
    anchors = _without_fused([node for node in able if context.role(node) is Role.ANCHOR], context)
    mixed = _with_mixed_consumers(anchors, context)
    anchors = [node for node in anchors if node not in mixed]
    floats |= {name_of(node): _MIXED for node in mixed}
    links, useless = join(anchors, [n for n in able if context.role(n) is Role.LINK], context)
    residuals = [
        node
        for node in able
        if context.role(node) is Role.RESIDUAL
        and skip_inputs(node, context.target.rules[node.op_type], context)
        and any(value is not None and value.producer() in anchors for value in node.inputs)
    ]
    alone = [n for n in able if context.role(n) is Role.RESIDUAL and n not in residuals]
    floats |= useless | {
        name_of(node): "it adds no output of a convolution, and the runtime fuses no other sums"
        for node in alone
    }
    planned = sorted({*anchors, *links, *residuals}, key=context.position.__getitem__)
    return planned, find_edges(planned, context), floats


def _without_fused(anchors: Iterable[ir.Node], context: PlanningContext) -> list[ir.Node]:
    """Remove the Relu and Clip nodes that fuse with another anchor; ``anchors`` are in graph order."""
    fused, alone = set[ir.Node](), list[ir.Node]()
    for node in anchors:
        rule = context.target.rules[node.op_type]
        if node in fused:
            continue
        alone.append(node)
        if rule.output is Output.QUANTIZED:
            fused.update(clip for value in node.outputs for clip in fused_clips(value, rule, context))
    return alone


def _with_mixed_consumers(anchors: Collection[ir.Node], context: PlanningContext) -> set[ir.Node]:
    """The anchors with mixed consumers: a graph output needs float, and another anchor needs integers."""
    if context.quantize_outputs:
        return set()
    read = {node.inputs[i] for node in anchors for i in integer_inputs(node, context)}
    mixed = {node: mixed_consumers(node, read, context) for node in anchors}
    return {node for node, values in mixed.items() if any(value.is_graph_output() for value in values)}


def _float_reasons(
    floats: Mapping[str, str], planned: Iterable[ir.Node], context: PlanningContext, model: ir.Model
) -> dict[str, FloatNode]:
    """List the float nodes with their reasons in graph order.

    Nodes that fuse into a planned node (Relu, Clip, the Add of a bias) need no reason.
    """
    adds = [found[0] for node in planned if (found := bias_add(node, context))]
    fused = {
        *adds,
        *(clip for node in (*planned, *adds) for value in node.outputs for clip in clips_after(value)),
    }
    reasons = {n: floats[name_of(n)] for n in model.graph if n.name in floats and n not in fused}
    bodies = {n: _IN_BODY for n in all_nodes(model) if n.graph is not model.graph and n.op_type in WEIGHTED}
    return {name_of(n): FloatNode(n.op_type, reason) for n, reason in {**reasons, **bodies}.items()}

"""Decide whether a node, regardless of its neighbours, is eligible, and give users the reason if not."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.graph.batchnorm_statistics import MOST_LOST_BITS, lost_bits, read_batchnorm
from onnxq.graph.nodes import constant_value, input_at, is_op, rank
from onnxq.graph.operators import (
    WEIGHTED,
    attribute_value,
    clip_range,
    data_values,
    group_channels,
    groups_of,
    is_depthwise,
    misfit,
    weight_sizes,
    window_elements,
)
from onnxq.graph.walks import holds_reals
from onnxq.planner.apply_overrides import weight_spec
from onnxq.planner.context import PlanningContext, deselected, fused_output
from onnxq.targets.target import BiasStyle, OpRule, Output


def computes_reals(node: ir.Node) -> bool:
    """Whether an output of the node holds float numbers or has an unknown type."""
    return any(holds_reals(out) for out in node.outputs if out.name)


def is_carried(node: ir.Node, context: PlanningContext) -> bool:
    """Whether ``node`` is Q/DQ-transparent: it gets no Q/DQ of its own and runs in its neighbours' type."""
    return computes_reals(node) and context.rule(node) is None and is_op(node, *context.target.transparent)


def ineligible_because(node: ir.Node, context: PlanningContext) -> str | None:
    """Explain why ``node`` is kept in float regardless of its neighbours.

    Returns:
        The reason; None if the node is eligible, or if it needs none (it computes no float numbers or is
        Q/DQ-transparent).
    """
    if not computes_reals(node) or is_carried(node, context):
        return None
    rule = context.rule(node)
    if rule is None and clip_range(node) is not None:
        return "it does not follow a quantized node that it could be fused with"
    if rule is None:
        kind = "FP8" if context.activation.is_floating else "integer"
        return f"target {context.target.name} has no {kind} kernel for {node.op_identifier()[1]}"
    checks = (
        _not_selected,
        _in_float_region,
        _wrong_attribute,
        _not_float32,
        _bad_weight,
        _no_format,
        _bad_bias,
        _bad_batchnorm,
        _grouped,
        _narrow,
        _small,
        _wide_window,
        _moves_constants,
        _fills,
        _signed,
        _float_output,
    )
    return next((reason for check in checks if (reason := check(node, rule, context))), None)


def _not_selected(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    return deselected(node, context.config)


def _in_float_region(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    return context.float_regions.get(node)


def _wrong_attribute(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    for name, wanted in rule.attributes.items():
        actual = attribute_value(node, name)
        if actual != wanted:
            return f"its attribute {name} is {actual}, but the integer kernel needs {wanted}"
    return misfit(node, rule.unknown_attributes, rule.wrong_together)


def _not_float32(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    for value in (*data_values(node), *node.outputs):
        if value.name and value.dtype != ir.DataType.FLOAT:
            return (
                f"its tensor {value.name!r} is {value.dtype.name if value.dtype else 'untyped'}, "
                "expected FLOAT"
            )
    if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
        return "its second output (the indices) is used"
    return None


def _bad_weight(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    operator = WEIGHTED.get(node.op_type)
    if operator is None:
        return None
    if _constant(node, operator.data):
        return "its first operand is a constant, and integer kernels take weights only as the second"
    if not _constant(node, operator.weight) and not rule.dynamic_weight:
        return "its second operand is computed at run time"
    return None


def _no_format(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    operator, blocked = WEIGHTED.get(node.op_type), context.formats.blocked
    if operator is None or blocked is None or context.formats.weight is not None or node in context.in_blocks:
        return None
    if not _constant(node, operator.weight) or weight_spec(node, context) is not None:
        return None
    kind = blocked.dtype.name.lower()
    return f"{kind} weights need blocks, and its weights cannot be cut into blocks of {blocked.block_size}"


def _bad_bias(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    operator = WEIGHTED.get(node.op_type)
    if operator is None or context.target.bias is BiasStyle.FLOAT or node in context.in_blocks:
        return None
    bias = input_at(node, operator.bias) if operator.bias is not None else None
    if bias is None:
        return None
    if not bias.is_initializer():
        return "its bias is computed at run time"
    channels = _channels(node)
    shape = bias.shape.numpy() if bias.shape is not None and bias.shape.is_static() else ()
    if math.prod(shape) not in (1, channels) or (shape and shape[-1] not in (1, channels)):
        return f"its bias has shape {list(shape)}, expected one value per channel"
    return None


def _bad_batchnorm(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    if not is_op(node, "BatchNormalization"):
        return None
    norm = read_batchnorm(node)
    if norm is None:
        return "its statistics are computed at run time"
    if rule.on_integers and rank(node.inputs[0]) not in (3, 4, 5):
        return "it is written as a convolution, which needs one to three spatial axes"
    if node.inputs[0] not in context.raw or lost_bits(norm, np.ones_like(norm.gamma)) <= MOST_LOST_BITS:
        return None
    return "it reads raw features of very different sizes, and no range suits them all"


def _grouped(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    groups = attribute_value(node, "group") if rule.single_group else 1
    return None if groups == 1 else f"it has {groups} groups, but the integer kernel takes only one"


def _moves_constants(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    return "all its inputs are constants" if rule.same_params and _constant(node, 0) else None


def _narrow(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    if not rule.group_channels or groups_of(node) == 1 or is_depthwise(node):
        return None
    channels = group_channels(node)
    if channels is None or channels >= rule.group_channels:
        return None
    return f"with {channels} channels per group it is faster in float"


def _small(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    """Few channels, or a small matrix: both sides of a product count, where they are known."""
    if not rule.least_channels:
        return None
    least = min(weight_sizes(node), default=rule.least_channels)
    return None if least >= rule.least_channels else f"with {least} channels it is faster in float"


def _wide_window(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    count = window_elements(node) if rule.kernel_elements is not None else None
    if rule.kernel_elements is None or count is None or count <= rule.kernel_elements:
        return None
    return f"its window has {count} elements, and there are kernels for at most {rule.kernel_elements}"


def _fills(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    fill = input_at(node, 2) if rule.on_integers and is_op(node, "Pad") else None
    if fill is None or attribute_value(node, "mode") != "constant":
        return None
    filled = constant_value(fill)
    return None if filled is not None and not filled.any() else "it fills in other numbers than zero"


def _signed(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    # On x86, ONNX Runtime makes signed integers unsigned only where Q and DQ stand side by side.
    if not rule.on_integers or context.activation_of(node).dtype == ir.DataType.UINT8:
        return None
    return "it works on integers of type uint8 only"


def _float_output(node: ir.Node, rule: OpRule, context: PlanningContext) -> str | None:
    if rule.output is not Output.QUANTIZED or context.quantize_outputs:
        return None
    for value in node.outputs:
        if fused_output(value, rule, context).is_graph_output():
            return "its output is a graph output, and these are kept in float (see --quantize-outputs)"
    return None


def _constant(node: ir.Node, index: int) -> bool:
    return constant_value(input_at(node, index)) is not None


def _channels(node: ir.Node) -> int:
    """The number of output channels of an operator with constant weights."""
    operator = WEIGHTED[node.op_type]
    weight = node.inputs[operator.weight]
    assert weight is not None
    assert weight.shape is not None
    axis = operator.channel_axis(node, len(weight.shape))
    return int(weight.shape.numpy()[axis]) if axis is not None else 1

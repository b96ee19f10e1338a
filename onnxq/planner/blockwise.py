"""Decide which weights are cut into blocks. Their node's activations are kept in float, as the kernels need.

Some runtimes use a block kernel only between float tensors. For them, weights are not cut where the data
input is in integers or where the output is read in integers. Such a node is planned like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator

import onnx_ir as ir

from calibrators.errors import shorten
from onnxq.graph.nodes import constant_value, input_at, is_op, name_of
from onnxq.graph.operators import SUMMED_AXIS, WEIGHTED, attribute_value, clip_range, weight_of
from onnxq.graph.walks import downstream, upstream
from onnxq.planner.apply_overrides import block_spec
from onnxq.planner.context import PlanningContext, bias_add, fused_in_float

logger = logging.getLogger(__name__)


def blocked_nodes(nodes: Iterable[ir.Node], context: PlanningContext) -> frozenset[ir.Node]:
    """The nodes among ``nodes`` whose weights can be cut into blocks."""
    able = [node for node in nodes if context.formats.blocked and _can_be_cut(node, context)]
    return frozenset(able) - _larger_than_float(able, context)


def among_integers(context: PlanningContext, quantized: Collection[ir.Value]) -> frozenset[ir.Node]:
    """The nodes whose weights must not be cut after all, because tensors around them are ``quantized``."""
    if context.target.blocks is None or not context.target.blocks.among_floats:
        return frozenset()
    return frozenset(
        node
        for node in context.in_blocks
        if any(value in quantized for value in (*_above(node, context), *_below(node, context)))
    )


def fused_products(context: PlanningContext) -> frozenset[str]:
    """Name the nodes with weights in blocks that the runtime would fuse with the node after them in float.

    A Gemm with a computed addend is such a fusion already.
    """
    if context.target.blocks is None or not context.target.blocks.among_floats:
        return frozenset()
    return frozenset(
        name_of(node)
        for node in context.in_blocks
        if fused_in_float(node, node.outputs[0], context.target.rules[node.op_type], context)
        or _has_computed_bias(node)
    )


def _has_computed_bias(node: ir.Node) -> bool:
    index = WEIGHTED[node.op_type].bias
    bias = None if index is None else input_at(node, index)
    return bias is not None and constant_value(bias) is None


def warn_of_whole(planned: Iterable[ir.Node], context: PlanningContext) -> None:
    """Log which weight matrices are quantized without the requested blocks."""
    if context.formats.blocked is None:
        return
    whole = [
        name_of(node)
        for node in planned
        if context.target.rules[node.op_type].blocked is not None
        and node not in context.in_blocks
        and block_spec(node, context) is not None
        and constant_value(input_at(node, WEIGHTED[node.op_type].weight)) is not None
    ]
    if whole:
        logger.warning(
            "target %s has no kernel with weights in blocks for %d MatMul or Gemm node(s), whose weights get "
            "one scale per channel or per tensor instead: %s",
            context.target.name,
            len(whole),
            shorten(whole),
        )


def _can_be_cut(node: ir.Node, context: PlanningContext) -> bool:
    rule, blocks, spec = context.rule(node), context.target.blocks, block_spec(node, context)
    if rule is None or rule.blocked is None or blocks is None or spec is None:
        return False
    weight = constant_value(input_at(node, WEIGHTED[node.op_type].weight))
    if weight is None or weight.ndim != 2 or not weight.size:
        return False
    for name, wanted in rule.blocked.items():
        if attribute_value(node, name) != wanted:
            return False
    assert spec.block_size is not None
    return not blocks.whole or weight.shape[SUMMED_AXIS[node.op_type](node)] % spec.block_size == 0


def _larger_than_float(nodes: Iterable[ir.Node], context: PlanningContext) -> frozenset[ir.Node]:
    """Those of ``nodes`` that share weights with so many others that the copies are larger than in float."""
    if context.target.blocks is None or not context.target.blocks.unshared:
        return frozenset()
    readers: dict[ir.Value | None, list[ir.Node]] = {}
    for node in nodes:
        readers.setdefault(weight_of(node), []).append(node)
    return frozenset(
        node
        for sharing in readers.values()
        if sum(_bits(node, context) for node in sharing) > ir.DataType.FLOAT.bitwidth
        for node in sharing
    )


def _bits(node: ir.Node, context: PlanningContext) -> float:
    """The bits that a weight of ``node`` takes in blocks, with its share of scale and zero point."""
    spec = block_spec(node, context)
    assert spec is not None
    assert spec.block_size is not None
    zero_point = 0 if spec.symmetric else spec.dtype.bitwidth
    return spec.dtype.bitwidth + (ir.DataType.FLOAT.bitwidth + zero_point) / spec.block_size


def _above(node: ir.Node, context: PlanningContext) -> Iterator[ir.Value]:
    """The data input of ``node``, and the tensors it comes from through operators that pass values on."""
    value = node.inputs[WEIGHTED[node.op_type].data]
    if value is not None:
        yield from upstream(value, lambda node: _passes_on(node, context))


def _below(node: ir.Node, context: PlanningContext) -> Iterator[ir.Value]:
    """The output of ``node``, also after its bias, Relu, Clip and operators that pass values on."""
    found = bias_add(node, context)
    for last in (node, found[0]) if found else (node,):
        yield from downstream(
            last.outputs[0], lambda node: clip_range(node) is not None or _passes_on(node, context)
        )


def _passes_on(node: ir.Node, context: PlanningContext) -> bool:
    """Whether the runtime moves Q and DQ across the node."""
    rule = context.rule(node)
    return is_op(node, *context.target.transparent) or (rule is not None and rule.same_params)

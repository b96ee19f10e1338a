"""Decide which nodes are quantized, with a reason for the others, and rewrite the model."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.core.plan import FloatNode, QuantPlan, StoredWeights
from onnxq.graph.half_precision.widen import store_in_half
from onnxq.graph.nodes import all_nodes, is_op, name_of
from onnxq.graph.ort_rewrites import adds_before_layernorm, unfuse_layernorm_adds
from onnxq.pipelines.dynamic.attention import is_fused_attention
from onnxq.pipelines.dynamic.dispatch import OperatorRewrite, rewrite_of
from onnxq.pipelines.dynamic.input_checks import is_computed
from onnxq.pipelines.dynamic.rewriter import Known, ModelRewriter
from onnxq.pipelines.dynamic.scheme import DynamicScheme, WeightForm
from onnxq.pipelines.dynamic.weight_only import POSITIONS
from onnxq.planner.context import deselected, matches
from onnxq.planner.float_regions.angles import angle_nodes

_NO_REWRITE = {
    WeightForm.INTEGERS: "ONNX Runtime has no kernel for it that computes ranges at run time",
    WeightForm.WEIGHT_ONLY: "only ONNX Runtime's targets support it",
    WeightForm.FLOAT16: "its weights can be int8 (for ONNX Runtime), but not float16",
}
"""The reason why an operator with weights but without a rewrite is kept in float."""

_CONV = "a dynamically quantized convolution is usually not faster (--include op:Conv quantizes it)"

_ATTENTION = (
    "it multiplies two computed tensors, which is not faster in integers (--include with its name "
    "quantizes it)"
)


def plan_nodes(model: ir.Model, scheme: DynamicScheme) -> QuantPlan:
    """Make a plan for every operator that has weights, in bodies of control flow too.

    ``model`` must be cleaned: with names, types, and constants as initializers.
    """
    rewrites = {node: rewrite_of(node, scheme.form) for node in all_nodes(model) if _has_weights(node)}
    angles = {node: reason for graph in model.graphs() for node, reason in angle_nodes(graph).items()}
    reasons = {node: angles.get(node) or _reason(node, found, scheme) for node, found in rewrites.items()}
    smaller = {
        node: found.float_kernel for node, found in rewrites.items() if found and reasons[node] is None
    }
    told = {node: reason or smaller[node] for node, reason in reasons.items()}
    return QuantPlan(
        scheme.target.name,
        points=(),
        biases=(),
        groups={},
        integer_nodes={name_of(node): node.op_type for node, text in told.items() if not text},
        float_nodes={name_of(node): FloatNode(node.op_type, text) for node, text in told.items() if text},
        weight_only_nodes=frozenset(name_of(node) for node, text in smaller.items() if text),
        unfused_sums=adds_before_layernorm(model) if scheme.target.unfuse_layernorm_add else frozenset(),
        stored_weights={name_of(node): _stored(node, text, scheme) for node, text in smaller.items()},
    )


def _stored(node: ir.Node, float_kernel: str, scheme: DynamicScheme) -> StoredWeights:
    """The format of the weights that a node gets; a table that is looked up multiplies nothing."""
    multiplies = scheme.form is WeightForm.INTEGERS and not float_kernel and node.op_type != "Gather"
    dtype = ir.DataType.FLOAT16 if scheme.form is WeightForm.FLOAT16 else scheme.weight.dtype
    shifted = multiplies and node.op_type == "Conv"  # see `rewrite_conv`
    return StoredWeights(ir.DataType.UINT8 if shifted else dtype, multiplied=multiplies)


def rewrite(model: ir.Model, plan: QuantPlan, scheme: DynamicScheme, known: Known | None = None) -> ir.Model:
    """Return a copy of ``model`` with the nodes of ``plan`` quantized.

    Args:
        model: the float model, cleaned.
        plan: the nodes to quantize.
        scheme: the form of dynamic quantization for the target.
        known: rounded weights of an earlier rewrite, which are used again; new ones are added.
    """
    rewriter = ModelRewriter(model, scheme, {} if known is None else known)
    chosen = {*plan.integer_nodes, *plan.weight_only_nodes}
    for node in [node for node in all_nodes(rewriter.model) if node.name in chosen]:
        operator = rewrite_of(node, scheme.form)
        assert operator is not None
        operator.rewrite(node, rewriter)
    unfuse_layernorm_adds(rewriter.model, plan.unfused_sums)
    rewritten = rewriter.finish()
    if plan.half_constants:
        store_in_half(rewritten)
    return rewritten


def _has_weights(node: ir.Node) -> bool:
    """Whether the node is a candidate: an operator with weights, or a look-up in a table of float numbers."""
    if is_op(node, "Gather"):
        table = node.inputs[0]
        return not is_computed(table) and table is not None and table.dtype == ir.DataType.FLOAT
    return is_op(node, *POSITIONS) or is_fused_attention(node)


def _reason(node: ir.Node, operator: OperatorRewrite | None, scheme: DynamicScheme) -> str | None:
    """Say why ``node`` is kept in float; None if it is quantized, by ``operator``."""
    if operator is None:
        return _NO_REWRITE[scheme.form]
    return deselected(node, scheme.config) or _off(node, scheme) or operator.obstacle(node)


def _off(node: ir.Node, scheme: DynamicScheme) -> str | None:
    """Say why ``node`` is not quantized by default; None if it is, or if the user includes it."""
    if scheme.form is not WeightForm.INTEGERS:
        return None
    if node.op_type == "Conv" and not scheme.config.include:
        return _CONV
    named = [p for p in scheme.config.include if not p.startswith("op:") and matches(node, p)]
    return _ATTENTION if _is_attention(node) and not named else None


def _is_attention(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and all(map(is_computed, node.inputs))

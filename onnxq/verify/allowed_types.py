"""The number formats that a target takes on an edge, of models of any origin."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxq.core.plan import QuantSpec
from onnxq.graph.nodes import input_at
from onnxq.graph.operators import WEIGHTED
from onnxq.graph.qdq.read_qdq import QdqEdge, is_stored
from onnxq.targets.target import OpRule, Target


def allowed_types(edge: QdqEdge, target: Target) -> Mapping[ir.DataType, QuantSpec]:
    """Map each type that ``target`` takes on ``edge`` to the format."""
    if edge.in_blocks:
        return target.blocks.types if target.blocks is not None else {}
    if edge.kind == "weight":
        unpacked = {new: target.weight_types[old] for old, new in target.weight_cast.items()}
        ends = _by_type(target.first_last_formats.weight) if target.first_last_formats is not None else {}
        return {**unpacked, **ends, **target.weight_types}
    rule = target.rules.get(edge.node.op_type)
    own = _own_inputs(edge.node, rule) if rule is not None else None
    return _activations(target) if own is None else _by_type(own)


def _own_inputs(node: ir.Node, rule: OpRule) -> QuantSpec | None:
    """The format of the inputs of ``node``, if it is not that of all activations."""
    operator = WEIGHTED.get(node.op_type)
    dynamic = operator is not None and not is_stored(input_at(node, operator.weight))
    return rule.dynamic_inputs if dynamic and rule.dynamic_inputs is not None else rule.inputs


def _activations(target: Target) -> Mapping[ir.DataType, QuantSpec]:
    """The formats of activations for operators without a format of their own."""
    ends = (target.first_last_formats.activation,) if target.first_last_formats is not None else ()
    asked = (QuantSpec(dtype, target.activation.symmetric) for dtype in target.activation_types)
    return _by_type(*ends, *asked, target.activation)


def _by_type(*specs: QuantSpec) -> Mapping[ir.DataType, QuantSpec]:
    return {spec.dtype: spec for spec in specs}

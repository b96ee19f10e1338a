"""Nodes whose activations have another number format than those of all others, mostly more bits.

Kernels take and give activations of one width: ONNX Runtime's QNN provider hands an operator to the device
only if its computed inputs and its outputs have the same type (`qdq_selectors`). So a format belongs to a
node, not to a tensor: the node reads and gives all its activations in it. Where the width changes between two
nodes, the reader converts the tensor (see `QuantPoint.converted_from`).

    Conv (8 bits) -> Q -> DQ -> Q -> DQ -> Conv (16 bits) -> Q -> DQ -> Q -> DQ -> Conv (8 bits)
          uint8 ------'     '-- uint16          uint16 ------'     '-- uint8

ONNX Runtime's own quantizer writes the same (`MixedPrecisionTensorQuantOverridesFixer`).
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.core.plan import QuantSpec
from onnxq.planner.apply_overrides import activation_spec
from onnxq.planner.context import PlanningContext, fused_output
from onnxq.planner.eligibility import ineligible_because


def own_activations(context: PlanningContext) -> dict[ir.Node, QuantSpec]:
    """Find the nodes with a format of their own.

    Overrides request it. A node that only moves or selects values (its inputs and outputs share parameters)
    takes the format in which its input is written, if no override names it: a conversion before it would lose
    or cost something for nothing.

    Args:
        context: the planning context, which holds the overrides.
    """
    found: dict[ir.Node, QuantSpec] = {}
    written: dict[ir.Value | None, QuantSpec] = {}
    for node in context.graph:
        rule = context.rule(node)
        if rule is None or ineligible_because(node, context) is not None:
            continue
        spec = activation_spec(node, context)
        if spec is None and rule.same_params:
            spec = written.get(node.inputs[0])
        if spec is not None and spec != context.activation:
            found[node] = spec
            written |= {fused_output(out, rule, context): spec for out in node.outputs if out.name}
    return found

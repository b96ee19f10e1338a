"""Sum of two into Add: ``Sum(a, b) = a + b``, the form that targets know."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import all_nodes, is_op


class SumToAddPass(ir.passes.InPlacePass):
    """Sum(a, b) becomes Add(a, b); a Sum of one becomes Identity; more operands stay."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename every Sum that has one or two operands."""
        names = {1: "Identity", 2: "Add"}
        sums = [node for node in all_nodes(model) if is_op(node, "Sum") and len(node.inputs) in names]
        for node in sums:
            node.op_type = names[len(node.inputs)]
        return ir.passes.PassResult(model, modified=bool(sums))

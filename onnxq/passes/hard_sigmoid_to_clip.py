"""The line of a HardSigmoid into the weighted layer before it.

    HardSigmoid(conv(x))   ->   Clip(conv'(x), 0, 1),   W' = alpha * W,  b' = alpha * b + beta

Runtimes fuse a Clip with the layer, in integers too; of HardSigmoid none has an integer kernel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import add_initializer, all_nodes, is_op
from onnxq.operators import attribute_value
from onnxq.passes._affine import Affine, give_to_producer, is_private


class HardSigmoidToClipPass(ir.passes.InPlacePass):
    """Conv → HardSigmoid becomes Conv → Clip."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every HardSigmoid whose input only it reads, and only a layer computes."""
        folded = [_fold(model, node) for node in list(all_nodes(model)) if is_op(node, "HardSigmoid")]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold(model: ir.Model, node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or source.dtype is None or not is_private(source, node):
        return False
    slope, offset = (np.full((), attribute_value(node, name)) for name in ("alpha", "beta"))
    if not give_to_producer(model, Affine(source, slope, offset)):
        return False
    source.name = f"{node.outputs[0].name}_before_clip"  # it is another tensor now
    node.op_type = "Clip"
    node.attributes.clear()
    node.resize_inputs(3)
    for index, limit in ((1, 0.0), (2, 1.0)):
        array = np.array(limit, source.dtype.numpy())
        node.replace_input_with(index, add_initializer(model, f"{node.name}_limit", array))
    return True

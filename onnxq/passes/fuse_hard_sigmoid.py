"""A line between 0 and 1, written as several nodes, into HardSigmoid.

    clip(x + 3, 0, 6) / 6,  clip(x / 6 + 0.5, 0, 1),  min(relu(0.2 * x + 0.5), 1)  ->  HardSigmoid(x)

What is no shorter that way stays: Add and Clip have integer kernels where HardSigmoid has none.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.graph import all_nodes, is_op
from onnxq.passes._ramps import Ramp, ramps, same
from onnxq.passes._replaced import compute_instead

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""The types that runtimes have kernels for."""

FEWEST = 3
"""Nodes that one must replace."""


class FuseHardSigmoidPass(ir.passes.InPlacePass):
    """Arithmetic with constants around a Clip becomes HardSigmoid, named after the last node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the last node of every such group; what only that node read falls away later."""
        found = [(node, ramp) for node in all_nodes(model) if (ramp := _hard_sigmoid(node)) is not None]
        for node, ramp in found:
            slope, offset = ir.AttrFloat32("alpha", ramp.slope), ir.AttrFloat32("beta", ramp.offset)
            compute_instead(node, "HardSigmoid", ramp.source, slope, offset)
        return ir.passes.PassResult(model, modified=bool(found))


def _hard_sigmoid(node: ir.Node) -> Ramp | None:
    """The longest group that ends here and has the height 1."""
    value = node.outputs[0]
    if is_op(node, "HardSigmoid") or value.dtype not in FLOATS:
        return None
    fitting = [r for r in ramps(value) if r.nodes >= FEWEST and same(r.height, 1, value.dtype) and r.offset]
    return max(fitting, key=lambda ramp: ramp.nodes, default=None)

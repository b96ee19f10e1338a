"""HardSwish, written as several nodes, into the operator of that name.

    x * clip(x + 3, 0, 6) / 6,  (x / 6) * relu6(x + 3),  x * HardSigmoid(x)  ->  HardSwish(x)

with the slope 1/6 and the offset 1/2. One node with one input: ONNX Runtime and OpenVINO fuse it with a float
convolution; between integers it needs one DequantizeLinear, and its parts two.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.graph import all_nodes, is_op
from onnxq.passes._ramps import multiples, ramps, same
from onnxq.passes._replaced import compute_instead
from onnxq.passes.fuse_hard_sigmoid import FLOATS
from onnxq.passes.raise_opset import OPSET_OF_HARD_SWISH

_SLOPE, _OFFSET = 1 / 6, 1 / 2


class FuseHardSwishPass(ir.passes.InPlacePass):
    """A value times its own HardSigmoid becomes HardSwish, where the opset has that."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the last node of every such group; what only that node read falls away later."""
        known = model.graph.opset_imports.get("", 0) >= OPSET_OF_HARD_SWISH
        found = list(_found(model)) if known else []
        for node, source in found:
            compute_instead(node, "HardSwish", source)
        return ir.passes.PassResult(model, modified=bool(found))


def has_hard_swish(model: ir.Model) -> bool:
    """Whether several nodes together are a HardSwish."""
    return any(_found(model))


def _found(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    """The last nodes, and what they are the HardSwish of."""
    for node in all_nodes(model):
        if is_op(node, "Mul", "Div") and node.outputs[0].dtype in FLOATS:
            source = _hard_swish(node.outputs[0])
            if source is not None:
                yield node, source


def _hard_swish(value: ir.Value) -> ir.Value | None:
    for multiple in multiples(value):
        node = multiple.source.producer()
        if node is not None and is_op(node, "Mul") and len(node.inputs) == 2:
            for source, factor in (*_products(*node.inputs), *_products(*reversed(node.inputs))):
                if same(factor * multiple.slope, 1, value.dtype):
                    return source
    return None


def _products(first: ir.Value | None, second: ir.Value | None) -> Iterator[tuple[ir.Value, float]]:
    """Pairs (x, factor): the product of both is ``factor`` times the HardSwish of ``x``."""
    if first is None or second is None:
        return
    for line in multiples(first):
        for ramp in ramps(second):
            fits = same(ramp.slope, _SLOPE, first.dtype) and same(ramp.offset, _OFFSET, first.dtype)
            if ramp.source is line.source and fits:
                yield ramp.source, line.slope * ramp.height

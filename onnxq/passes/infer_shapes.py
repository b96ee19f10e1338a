"""Types and shapes of every tensor, by ONNX's own inference.

A loaded model has them for its interface at best, and the exporter's notes on the rest may be vaguer
than what is known after cleaning. Names like ``unk__3`` that an earlier inference invented for a size
are forgotten first: they would hide that two sizes are the same.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.graph import all_nodes

INVENTED = "unk__"


class InferShapesPass(ir.passes.InPlacePass):
    """Fill in what can be inferred; what cannot is left as it was."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Forget invented sizes and infer again. Nothing that computes is touched."""
        before = _shapes(model)
        for node in all_nodes(model):
            for output in node.outputs:
                if not output.is_graph_output() and _has_invented_size(output.shape):
                    output.shape = None
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        return ir.passes.PassResult(model, modified=_shapes(model) != before)


def _has_invented_size(shape: ir.Shape | None) -> bool:
    return shape is not None and any(
        isinstance(d, ir.SymbolicDim) and d.value is not None and d.value.startswith(INVENTED) for d in shape
    )


def _shapes(model: ir.Model) -> list[str]:
    """What is known now, invented names apart (their numbers differ from run to run)."""
    values = (output for node in all_nodes(model) for output in node.outputs)
    return [
        f"{v.type}{[d if isinstance(d, int) or _is_named(d) else None for d in v.shape or ()]}"
        for v in values
    ]


def _is_named(dim: ir.SymbolicDim) -> bool:
    return dim.value is not None and not dim.value.startswith(INVENTED)

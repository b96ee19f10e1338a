"""Types and shapes of every tensor, by ONNX's own inference.

A loaded model has them for its interface at best, and the exporter's notes on the rest may be vaguer
than what is known after cleaning. Names like ``unk__3`` that an earlier inference invented for a size
are forgotten first: they would hide that two sizes are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from onnxq.graph import all_nodes
from onnxq.passes._light import inferred_types, is_named, light_proto
from onnxq.passes._reshaped import guess_reshapes


class InferShapesPass(ir.passes.InPlacePass):
    """Fill in what can be inferred; what cannot is left as it was. Names must be unique over all graphs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Forget invented sizes and infer again. Nothing that computes is touched."""
        outputs = [output for node in all_nodes(model) for output in node.outputs]
        before = _known(outputs)
        for value in outputs:
            if not value.is_graph_output() and _has_invented_size(value.shape):
                value.shape = None
        _infer(model, outputs)
        while guess_reshapes(all_nodes(model)):
            _infer(model, outputs)
        return ir.passes.PassResult(model, modified=_known(outputs) != before)


def _infer(model: ir.Model, outputs: Sequence[ir.Value]) -> None:
    inferred = inferred_types(light_proto(model))
    for value in outputs:
        if value.name in inferred:
            _take(value, inferred[value.name])


def _take(value: ir.Value, inferred: onnx.TypeProto) -> None:
    """The inferred type and shape, as far as there are any (onnx merged in what was declared)."""
    kind = ir.serde.deserialize_type_proto_for_type(inferred)
    shape = ir.serde.deserialize_type_proto_for_shape(inferred)
    value.type = kind if kind is not None else value.type
    value.shape = shape if shape is not None else value.shape


def _has_invented_size(shape: ir.Shape | None) -> bool:
    return shape is not None and not all(isinstance(d, int) or is_named(d) for d in shape)


def _known(values: list[ir.Value]) -> list[str]:
    """What is known now, invented names apart (their numbers differ from run to run)."""
    return [
        f"{v.type}{[d if isinstance(d, int) or is_named(d) else None for d in v.shape or ()]}" for v in values
    ]

"""Types and shapes of every tensor, by ONNX's own inference.

A loaded model has them for its interface at best, and the exporter's notes on the rest may be vaguer
than what is known after cleaning. Names like ``unk__3`` that an earlier inference invented for a size
are forgotten first: they would hide that two sizes are the same.
"""

from __future__ import annotations

import logging

import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxq.graph import all_nodes
from onnxq.passes._light import light_proto

logger = logging.getLogger(__name__)

INVENTED = "unk__"


class InferShapesPass(ir.passes.InPlacePass):
    """Fill in what can be inferred; what cannot is left as it was. Names must be unique over all graphs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Forget invented sizes and infer again. Nothing that computes is touched."""
        outputs = [output for node in all_nodes(model) for output in node.outputs]
        before = _known(outputs)
        for value in outputs:
            if not value.is_graph_output() and _has_invented_size(value.shape):
                value.shape = None
        inferred = _inferred_types(model)
        for value in outputs:
            if value.name in inferred:
                _take(value, inferred[value.name])
        return ir.passes.PassResult(model, modified=_known(outputs) != before)


def _inferred_types(model: ir.Model) -> dict[str, onnx.TypeProto]:
    """What ONNX finds out, by tensor name; nothing when it stumbles over a contradiction."""
    try:
        proto = onnx.shape_inference.infer_shapes(light_proto(model), data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        logger.debug("no shape inference: %s", e)
        return {}
    todo, found = [proto.graph], {}
    while todo:
        graph = todo.pop()
        found.update({info.name: info.type for info in (*graph.value_info, *graph.output)})
        attributes = (attribute for node in graph.node for attribute in node.attribute)
        todo.extend(g for a in attributes for g in (a.g, *a.graphs) if g.node or g.output)
    return found


def _take(value: ir.Value, inferred: onnx.TypeProto) -> None:
    """The inferred type and shape, as far as there are any (onnx merged in what was declared)."""
    kind = ir.serde.deserialize_type_proto_for_type(inferred)
    shape = ir.serde.deserialize_type_proto_for_shape(inferred)
    value.type = kind if kind is not None else value.type
    value.shape = shape if shape is not None else value.shape


def _has_invented_size(shape: ir.Shape | None) -> bool:
    return shape is not None and any(isinstance(d, ir.SymbolicDim) and not _is_named(d) for d in shape)


def _is_named(dim: ir.SymbolicDim) -> bool:
    return dim.value is not None and not dim.value.startswith(INVENTED)


def _known(values: list[ir.Value]) -> list[str]:
    """What is known now, invented names apart (their numbers differ from run to run)."""
    return [
        f"{v.type}{[d if isinstance(d, int) or _is_named(d) else None for d in v.shape or ()]}"
        for v in values
    ]

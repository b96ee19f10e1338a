"""A model as a protobuf without its weight: for ONNX's C++ tools, which would copy every byte of it.

A large model also exceeds the 2 GiB that a protobuf can hold.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import onnx
import onnx.shape_inference
import onnx_ir as ir

logger = logging.getLogger(__name__)

INVENTED = "unk__"
"""How the names begin that ONNX's inference gives to sizes it knows nothing about."""

LARGE = 1024
"""Elements above which an initializer stays behind: sizes, axes, scales and the like are smaller."""


def light_proto(model: ir.Model) -> onnx.ModelProto:
    """The model in which every large initializer is a graph input, behind the real ones."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.size > LARGE and not value.is_graph_input():
            del copy.graph.initializers[name]
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            value.const_value = None
            copy.graph.inputs.append(value)
    return ir.to_proto(copy)


def inferred_types(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """What ONNX's inference finds out, by tensor name; nothing where it stumbles over a contradiction."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        logger.debug("no shape inference: %s", e)
        return {}
    return {
        info.name: info.type
        for graph in graphs(inferred.graph)
        for info in (*graph.value_info, *graph.output)
    }


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(body)


def is_named(dim: int | ir.SymbolicDim) -> bool:
    """Whether a size has a name that means something: the model's own, not an invented one."""
    return isinstance(dim, ir.SymbolicDim) and dim.value is not None and not dim.value.startswith(INVENTED)

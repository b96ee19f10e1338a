"""A model as a protobuf without its weight: for ONNX's C++ tools, which would copy every byte of it.

A large model also exceeds the 2 GiB that a protobuf can hold.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

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

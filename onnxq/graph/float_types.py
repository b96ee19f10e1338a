"""Turn a model in float16 or bfloat16 into one in float32 that takes and gives the types that it had.

Quantizers for TensorRT write what stays in float in half precision; plans are made for float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import all_nodes, insert_after, unused_name, unused_node

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

TYPE_ATTRIBUTES = ("to", "dtype")
"""Attributes that name the type of an output: of Cast, and of generators such as RandomNormal."""


def use_float32(model: ir.Model) -> None:
    """Compute in float32 what the model computes in half precision; in place.

    Constants become float32. Graph inputs and outputs keep their types, with a Cast after or before them.
    """
    given = {value: value.dtype for value in model.graph.outputs if value.dtype in HALF}
    for graph in model.graphs():
        inner = () if graph is model.graph else graph.inputs
        for value in (*inner, *graph.initializers.values()):
            _widen(value)
    for node in all_nodes(model):
        _widen_attributes(node)
        for value in node.outputs:
            _widen(value)
    for value in model.graph.inputs:
        if value.dtype in HALF:
            _cast_input(value, model)
    for value, dtype in given.items():
        _cast_output(value, dtype, model)


def _widen(value: ir.Value) -> None:
    if value.dtype not in HALF:
        return
    if value.const_value is not None:
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _widen_attributes(node: ir.Node) -> None:
    for name in TYPE_ATTRIBUTES:
        if name in node.attributes and node.attributes[name].value in HALF:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    fill = node.attributes.get("value")
    if fill is not None and isinstance(fill.value, ir.TensorProtocol) and fill.value.dtype in HALF:
        wide = ir.tensor(fill.value.numpy().astype(np.float32))
        node.attributes["value"] = ir.AttrTensor("value", wide)


def _cast(value: ir.Value, dtype: ir.DataType, model: ir.Model) -> ir.Value:
    name = unused_node(f"{value.name}_cast", model)
    cast = ir.node("Cast", [value], attributes={"to": dtype}, name=name)
    cast.outputs[0].name = unused_name(f"{value.name}_cast", model)
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(dtype), value.shape
    insert_after(value, cast, model.graph)
    return cast.outputs[0]


def _cast_input(value: ir.Value, model: ir.Model) -> None:
    uses = tuple(value.uses())
    wide = _cast(value, ir.DataType.FLOAT, model)
    for use in uses:
        use.node.replace_input_with(use.idx, wide)


def _cast_output(value: ir.Value, dtype: ir.DataType, model: ir.Model) -> None:
    narrow, outputs = _cast(value, dtype, model), model.graph.outputs
    outputs[outputs.index(value)] = narrow
    narrow.name, value.name = value.name, unused_name(f"{value.name}_float32", model)

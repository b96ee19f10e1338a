"""Turn a model in float16, bfloat16 or double into one in float32 that takes and gives the types that it had.

Some models are exported in half precision, and quantizers for TensorRT write what stays in float in it; plans
are made for float32. Constants that stay in float are stored in half precision again, where it holds them
exactly: so the file does not grow.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.onnx_files import stored_tensors
from onnxq.graph.half_precision.half_forms import half_form
from onnxq.graph.nodes import (
    add_initializer,
    all_nodes,
    constant_value,
    insert_after,
    is_op,
    name_of,
    unused_name,
    unused_node,
)

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

OTHERS = HALF | {ir.DataType.DOUBLE}
"""The float types that become float32."""

TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "stash_type", "softmax_precision")
"""Attributes that name a type: of outputs (Cast, generators such as RandomNormal, windows), and of sums."""

LEAST_BYTES = 1024
"""Smaller constants stay in float32: the Cast that unpacks them takes some hundred bytes."""


def computes_in_half(model: ir.Model, types: Collection[ir.DataType] = HALF) -> bool:
    """Whether an operator other than Cast reads float16 or bfloat16, or one of other ``types``."""
    return any(
        value is not None and value.dtype in types
        for node in all_nodes(model)
        if not is_op(node, "Cast")
        for value in node.inputs
    )


def stores_half(model: ir.Model) -> bool:
    """Whether a stored tensor is in float16 or bfloat16."""
    return any(tensor.dtype in HALF for tensor in stored_tensors(model))


def store_in_half(model: ir.Model) -> None:
    """Store the float32 constants that float16 holds exactly in float16, with a Cast after each; in place.

    Runtimes fold the Casts when they load the model. Scales of QuantizeLinear and DequantizeLinear stay, and
    so do small constants.
    """
    for value in list(model.graph.initializers.values()):
        array = constant_value(value)
        if array is None or value.dtype != ir.DataType.FLOAT or not _is_worth_it(value, array):
            continue
        half = add_initializer(model, f"{value.name}_half", array.astype(np.float16))
        wide = _cast(half, ir.DataType.FLOAT, model)
        value.replace_all_uses_with(wide)
        del model.graph.initializers[name_of(value)]
        wide.name = value.name


def _is_worth_it(value: ir.Value, array: NDArray[np.generic]) -> bool:
    """Whether the constant is large, exact in float16, and no scale of Q or DQ."""
    if array.nbytes < LEAST_BYTES or value.is_graph_output():
        return False
    if any(is_op(use.node, "QuantizeLinear", "DequantizeLinear") for use in value.uses()):
        return False
    with np.errstate(over="ignore"):
        return np.array_equal(array.astype(np.float16).astype(np.float32), array, equal_nan=True)


@dataclass(frozen=True)
class GivenTypes:
    """The float types of a model before it became float32.

    Attributes:
        dtype: the type in which it computed: float16 or bfloat16 if any operator did.
        float32: names of its nodes that computed in float32 beside them.
    """

    dtype: ir.DataType = ir.DataType.FLOAT
    float32: frozenset[str] = frozenset()


GIVEN = "onnxq.given_types"
"""The key of `GivenTypes` among a graph's data for passes, which are not saved."""


def given_types(model: ir.Model) -> GivenTypes:
    """Return the float types that a model had before `use_float32`; float32 if it was not called."""
    return cast(GivenTypes, model.graph.meta.get(GIVEN, GivenTypes()))


def _types_of(model: ir.Model) -> GivenTypes:
    read = [
        (node, {value.dtype for value in node.inputs if value is not None})
        for node in all_nodes(model)
        if not is_op(node, "Cast")
    ]
    dtype = next((dtype for dtype in _HALF_FIRST if any(dtype in types for _, types in read)), _FLOAT)
    beside = (name_of(node) for node, types in read if _FLOAT in types and not types & HALF)
    return GivenTypes(dtype, frozenset(beside) if dtype in HALF else frozenset())


_FLOAT, _DOUBLE = ir.DataType.FLOAT, ir.DataType.DOUBLE

_HALF_FIRST = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def needs_double(model: ir.Model) -> str | None:
    """Say what keeps a model in double from computing in float32; None if nothing does."""
    opsets = model.graph.opset_imports
    for node in all_nodes(model):
        count = sum(value is not None and value.dtype == _DOUBLE for value in (*node.inputs, *node.outputs))
        form = half_form(node, _FLOAT, opsets, _DOUBLE) if count else None
        if count and (form is None or len(form.inputs) + len(form.outputs) < count):
            return f"node {node.name!r} ({node.op_type}) has no form in float32"
    for tensor in stored_tensors(model):
        if tensor.dtype == ir.DataType.DOUBLE:
            sizes = np.abs(tensor.numpy())
            sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
            if sizes.size and not (_FLOAT32.tiny <= sizes.min() and sizes.max() <= _FLOAT32.max):
                return f"constant {tensor.name!r} has numbers beyond the range of float32"
    return None


_FLOAT32 = np.finfo(np.float32)


def use_float32(model: ir.Model, types: Collection[ir.DataType] = HALF, *, keep_io: bool = True) -> None:
    """Compute in float32 what the model computes in other float types; in place.

    Constants become float32.

    Args:
        model: the model.
        types: the types that become float32.
        keep_io: whether graph inputs and outputs keep their types, with a Cast after or before them.
    """
    model.graph.meta.setdefault(GIVEN, _types_of(model))
    outputs = [value for value in model.graph.outputs if not value.is_graph_input()]
    given = {value: dtype for value in outputs if (dtype := value.dtype) is not None and dtype in types}
    for graph in model.graphs():
        inner = () if graph is model.graph else graph.inputs
        for value in (*inner, *graph.initializers.values()):
            _widen(value, types)
    for node in all_nodes(model):
        _widen_attributes(node, types)
        for value in node.outputs:
            _widen(value, types)
    for value in model.graph.inputs:
        if not keep_io:
            _widen(value, types)
        elif value.dtype in types:
            _cast_input(value, model)
    for value, dtype in given.items() if keep_io else ():
        _cast_output(value, dtype, model)


def _widen(value: ir.Value, types: Collection[ir.DataType]) -> None:
    if value.dtype not in types:
        return
    if value.const_value is not None:
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    value.type = _wide(value.type)


def _wide(kind: ir.TypeProtocol | None) -> ir.TypeProtocol:
    """Return the same type with float32 elements; clones share types, so none is changed."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        return type(kind)(_wide(kind.elem_type))
    return ir.TensorType(ir.DataType.FLOAT)


def _widen_attributes(node: ir.Node, types: Collection[ir.DataType]) -> None:
    for name in TYPE_ATTRIBUTES:
        if name in node.attributes and node.attributes[name].value in types:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    fill = node.attributes.get("value")
    if fill is not None and isinstance(fill.value, ir.TensorProtocol) and fill.value.dtype in types:
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

"""Simulate half precision in float32, as hardware computes that has it.

ONNX Runtime's CPU provider has no kernels for bfloat16, and computes float16 in float32, mostly without
rounding in between. Here each tensor in half precision becomes one in float32 that is rounded by a pair of
Casts. Kernels that add up in float32 and round the result give the same numbers.
"""

from __future__ import annotations

import os

import onnx_ir as ir

from onnxq.graph.files import load
from onnxq.graph.half_precision.half_forms import CONTROL_FLOW
from onnxq.graph.half_precision.widen import HALF, computes_in_half, stores_half, use_float32
from onnxq.graph.nodes import all_nodes, is_op, unique_name
from onnxq.graph.operators import MOVING
from onnxq.graph.passes import typed


def runnable(
    path: str | os.PathLike[str], model: ir.Model | None = None
) -> ir.Model | str | os.PathLike[str]:
    """Return a simulation of a model that computes in half precision, and the path of any other.

    Args:
        path: the file.
        model: what it contains, if it has been read.

    Raises:
        ModelError: the file cannot be read.
    """
    half = _in_half(model or load(path))
    return path if half is None else simulated(half)


def unrounded(model: ir.Model) -> ir.Model:
    """Return a copy in float32 of a model that computes in half precision, and any other as it is.

    It is what other forms of the model are compared with: the rounding of the given one is not theirs.

    Raises:
        ModelError: the model is inconsistent.
    """
    wide = _in_half(model)
    if wide is None:
        return model
    use_float32(wide)
    return wide


def _in_half(model: ir.Model) -> ir.Model | None:
    """Copy a model with all its types inferred; None if it does not compute in half precision."""
    if not _mentions_half(model):
        return None
    model = typed(model)
    return model if computes_in_half(model) else None


def _mentions_half(model: ir.Model) -> bool:
    """Whether half precision enters the model anywhere, which costs little to find out."""
    values = (*model.graph.inputs, *model.graph.outputs)
    casts = (node for node in all_nodes(model) if is_op(node, "Cast"))
    return (
        any(value.dtype in HALF for value in values)
        or stores_half(model)
        or any(node.attributes.get_int("to", 0) in HALF for node in casts)
        or bool(model.functions)
    )


def simulated(model: ir.Model) -> ir.Model:
    """Return a copy in float32 that rounds what ``model`` computes in half precision, or casts to it.

    A rounded tensor has the name that it has in ``model``, also as an output.

    Args:
        model: a model without functions, whose tensors have types.
    """
    copy = model.clone()
    rounded = {
        value: dtype
        for node in all_nodes(copy)
        if not is_op(node, *CONTROL_FLOW, *MOVING)
        for value in node.outputs
        if value.name and (dtype := value.dtype) in HALF and dtype is not None
    }
    use_float32(copy)
    names = {value.name for node in all_nodes(copy) for value in node.outputs}
    for value, dtype in rounded.items():
        _round(value, dtype, names)
    return copy


def _round(value: ir.Value, narrow_type: ir.DataType, names: set[str | None]) -> None:
    """Let all readers of ``value`` read it rounded to a type."""
    node = value.producer()
    assert node is not None
    assert node.graph is not None
    uses = tuple(value.uses())
    before = value
    for dtype in (narrow_type, ir.DataType.FLOAT):
        name = unique_name(f"{value.name}_rounded", names)
        names.add(name)
        cast = ir.node("Cast", [before], attributes={"to": dtype}, name=name)
        before, made = cast.outputs[0], cast.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(dtype), value.shape
        node.graph.insert_after(node, cast)
        node = cast
    for use in uses:
        use.node.replace_input_with(use.idx, before)
    for graph in (value.graph,) if value.is_graph_output() else ():
        if graph is not None:
            graph.outputs[graph.outputs.index(value)] = before
    value.name, before.name = before.name, value.name

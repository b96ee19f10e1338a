"""Simulate bfloat16 in float32, for ONNX Runtime's CPU provider, which has no kernels for it.

Each tensor in bfloat16 becomes one in float32 that is rounded to bfloat16 by a pair of Casts. Kernels that
add up in float32 and round the result give the same numbers.
"""

from __future__ import annotations

import os

import onnx_ir as ir

from onnxq.graph.files import load
from onnxq.graph.half_precision.half_forms import CONTROL_FLOW
from onnxq.graph.half_precision.widen import computes_in_half, use_float32
from onnxq.graph.nodes import all_nodes, is_op, unique_name
from onnxq.graph.operators import MOVING

BFLOAT16 = ir.DataType.BFLOAT16


def runnable(path: str | os.PathLike[str]) -> ir.Model | str | os.PathLike[str]:
    """Return what ONNX Runtime's CPU provider can run: the file, or a simulation if it has bfloat16."""
    model = load(path)
    return simulated(model) if computes_in_half(model, (BFLOAT16,)) else path


def simulated(model: ir.Model) -> ir.Model:
    """Return a copy in float32 that rounds what ``model`` computes in bfloat16; tensors must have types."""
    copy = model.clone()
    rounded = [
        value
        for node in all_nodes(copy)
        if not is_op(node, "Cast", *CONTROL_FLOW, *MOVING)
        for value in node.outputs
        if value.dtype == BFLOAT16
    ]
    use_float32(copy, (BFLOAT16,))
    names = {value.name for node in all_nodes(copy) for value in node.outputs}
    for value in rounded:
        _round(value, names)
    return copy


def _round(value: ir.Value, names: set[str | None]) -> None:
    """Let all readers of ``value`` read it rounded."""
    node = value.producer()
    assert node is not None
    assert node.graph is not None
    uses = tuple(value.uses())
    before = value
    for dtype in (BFLOAT16, ir.DataType.FLOAT):
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

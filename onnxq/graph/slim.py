"""Leave out of a written model what takes bytes and says nothing new, which counts where weights are few.

Scales and zero points that are equal are stored once. The types and shapes of tensors inside are left out
where they follow from the rest by ONNX's inference, which every runtime runs, unless they are few beside the
weights: then they stay for readers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import onnx_ir as ir

from calibrators.onnx_files import stored_tensors, type_and_shape
from onnxq.graph.nodes import all_nodes, constant_value, is_op, name_of
from onnxq.graph.passes.shapes import graphs, inferred_types, is_named, light_proto

SHARED_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.UINT16})
"""Types of numbers that are stored once. ONNX Runtime converts int8 ones for each reader, under one name."""

FEW = 0.01
"""Share of the bytes of all weights that types and shapes may take in any case."""

ENTRY, DIMENSION = 20, 6
"""About the bytes of an entry with a type, beside its name, and of each size in it."""


def slim(model: ir.Model) -> None:
    """Make the file of a model smaller; the model is changed, but nothing that it computes."""
    _share_numbers(model)
    _forget_inferable(model)


def _share_numbers(model: ir.Model) -> None:
    """Store equal numbers of one type and shape that nodes of the main graph read only once."""
    first: dict[Hashable, ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        array = constant_value(value)
        if array is None or array.size != 1 or value.dtype not in SHARED_TYPES or value.is_graph_output():
            continue
        kept = first.setdefault((value.dtype, array.shape, array.tobytes()), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            del model.graph.initializers[name]


def _forget_inferable(model: ir.Model) -> None:
    values = list(_inside(model))
    size = sum(len(name_of(v)) + ENTRY + DIMENSION * len(v.shape or ()) for v in values)
    if size <= FEW * sum(tensor.nbytes for tensor in stored_tensors(model)):
        return
    follows = _from_the_rest(model)
    for value in values:
        kind, shape = follows.get(name_of(value), (None, None))
        if kind is not None and kind == value.type and _says_as_much(shape, value.shape):
            value.type = value.shape = None
    for node in all_nodes(model):
        if is_op(node, "QuantizeLinear", "DequantizeLinear") and not node.outputs[0].is_graph_output():
            node.outputs[0].type = node.outputs[0].shape = None  # it has the shape of its input


def _inside(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the computed tensors that are no outputs of a graph, and have a type."""
    for node in all_nodes(model):
        yield from (value for value in node.outputs if value.type is not None and not value.is_graph_output())


def _from_the_rest(model: ir.Model) -> dict[str, tuple[ir.TypeProtocol | None, ir.Shape | None]]:
    """Infer types and shapes from inputs, weights and outputs, without values that are propagated."""
    proto = light_proto(model)
    for graph in graphs(proto.graph):
        del graph.value_info[:]
    found = inferred_types(proto, propagate=False)
    return {name: type_and_shape(kind) for name, kind in found.items()}


def _says_as_much(inferred: ir.Shape | None, known: ir.Shape | None) -> bool:
    """Whether an inferred shape has every size and name of the known one."""
    if known is None or inferred is None:
        return known is None
    if len(known) != len(inferred):
        return False
    pairs = zip(known, inferred, strict=True)
    return all(one == other for one, other in pairs if isinstance(one, int) or is_named(one))

"""Helpers for nodes and values that passes and planner share: queries, small edits, unused names.

A new node or tensor gets the wanted name, with a number appended if the name is taken.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import chain, count

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def unique_name(name: str, taken: Container[str | None]) -> str:
    """Return ``name``, or the first of ``name_1``, ``name_2`` … that is not ``taken``."""
    names = chain([name], (f"{name}_{number}" for number in count(1)))
    return next(each for each in names if each not in taken)


def unused_name(name: str, model: ir.Model) -> str:
    """Return ``name``, with a number appended if a tensor of the main graph has that name."""
    return unique_name(name, ir.convenience.create_value_mapping(model.graph))


def unused_node(name: str, model: ir.Model) -> str:
    """Return ``name``, with a number appended if a node has that name."""
    return unique_name(name, {node.name for node in model.graph.all_nodes()})


STANDARD_DOMAIN = ""
"""The domain of ONNX's own operators; onnx_ir spells ``ai.onnx`` like this too."""


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Iterate over the nodes of the main graph and, recursively, of the bodies of If, Loop and Scan."""
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def bodies(node: ir.Node) -> list[ir.Graph]:
    """Return the bodies of If, Loop and Scan; none of any other node."""
    own = (each for each in node.attributes.values() if not each.is_ref())
    return [each.as_graph() for each in own if each.type == ir.AttributeType.GRAPH]


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether the node is one of these operators of the standard domain."""
    return node is not None and node.op_type in op_types and node.domain == STANDARD_DOMAIN


def constant_value(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the array of an initializer (read-only, perhaps memory-mapped), None for anything else."""
    if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def name_of(item: ir.Node | ir.Value) -> str:
    """Return the name of a node or value; empty if it has none."""
    return item.name or ""


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Return the input at this position; None if it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def sole_output(node: ir.Node) -> ir.Value | None:
    """Return the first output if it is the only named one, else None."""
    named = [output for output in node.outputs if output.name]
    return named[0] if len(named) == 1 and named[0] is node.outputs[0] else None


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute, or a default.

    Args:
        node: the node.
        name: name of the attribute.
        default: its default in the operator's specification.
    """
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def ints_attribute(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Return an attribute that is a list of integers, or a default.

    Args:
        node: the node.
        name: name of the attribute.
        default: its default in the operator's specification.
    """
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def rank(value: ir.Value | None) -> int | None:
    """Return the number of dimensions; None if unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def is_broadcast(small: ir.Value, large: ir.Value) -> bool:
    """Whether ``small`` is repeated along some axis to fit ``large``, and so has far fewer elements."""
    if small.shape is None or large.shape is None or len(small.shape) > len(large.shape):
        return False
    if len(small.shape) < len(large.shape):
        return True
    return any(a == 1 and b != 1 for a, b in zip(small.shape, large.shape, strict=True))


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Replace ``old`` by ``new`` in its uses and among the graph outputs; ``new`` gets its name and type.

    ``new`` must be produced in the graph of ``old`` and must not be a graph output itself.
    The node that produced ``old`` is left without uses.
    """
    name, shape, kind = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name, new.shape, new.type = name, shape or new.shape, kind or new.type


def insert_after(value: ir.Value, nodes: ir.Node | list[ir.Node], graph: ir.Graph) -> None:
    """Insert nodes right after the node that produces a value.

    Args:
        value: the value; if no node produces it, the nodes are inserted at the start of the graph.
        nodes: the new nodes.
        graph: the graph of the value.
    """
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)


def add_initializer(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Add an initializer to the main graph.

    Args:
        model: the model; it is changed.
        name: the wanted name; a number is appended if it is taken.
        array: the values.
    """
    unique = unique_name(name, model.graph.initializers)
    tensor = ir.tensor(array, name=unique)
    value = ir.Value(
        name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def replace_constant(
    model: ir.Model, node: ir.Node, index: int, array: NDArray[np.generic], copy: str | None = None
) -> None:
    """Give an input a new constant; if it is missing or has other readers, a new initializer is made.

    Tensors are replaced and never edited, because clones of a model share them.

    Args:
        model: the model; it is changed.
        node: the node.
        index: position of the input.
        array: the new values.
        copy: the wanted name of the new initializer; None for the name of the old one.
    """
    old = input_at(node, index)
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(array, name=old.name)
        old.shape, old.dtype = ir.Shape(array.shape), old.const_value.dtype
        return
    name = copy or (old.name if old is not None and old.name else f"{node.outputs[0].name}_bias")
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_initializer(model, unused_name(name, model), array))

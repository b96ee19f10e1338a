"""Walks along the edges of a graph: from a value to its reader, to its producer, through Relu and Clip.

A reader is counted once for each of its inputs that is the value. A graph output is read by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from onnxq.graph.nodes import constant_value
from onnxq.graph.operators import WEIGHTED, clip_range


def is_read(value: ir.Value) -> bool:
    """Whether a node reads the value, or it is a graph output."""
    return bool(value.uses()) or value.is_graph_output()


def only_use(value: ir.Value | None) -> tuple[ir.Node, int] | None:
    """Return the single use (node and input index) of a value; None if it has several or leaves the graph."""
    if value is None or value.is_graph_output():
        return None
    uses = tuple(value.uses())
    return uses[0] if len(uses) == 1 else None


def only_reader(value: ir.Value | None) -> ir.Node | None:
    """Return the node that alone reads the value; None if there are several or the value leaves the graph."""
    use = only_use(value)
    return None if use is None else use[0]


def producer_of(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computes the value; None for no value, graph inputs and initializers."""
    return None if value is None else value.producer()


def sole_producer(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computes the value for a single reader; None if there are several readers."""
    return None if only_use(value) is None else producer_of(value)


def clips_after(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the successive Relu and Clip nodes after the value, each the only reader of its input."""
    while (reader := only_reader(value)) is not None and clip_range(reader) is not None:
        yield reader
        value = reader.outputs[0]


def unclipped(value: ir.Value) -> ir.Value:
    """Follow the value through `clips_after` and return the last output."""
    for clip in clips_after(value):
        value = clip.outputs[0]
    return value


def upstream(value: ir.Value, passes: Callable[[ir.Node], bool]) -> Iterator[ir.Value]:
    """Yield the value, and the first inputs of the nodes before it as long as they pass values on.

    Args:
        value: the value to start from.
        passes: whether a node passes its first input on.
    """
    yield value
    while (node := value.producer()) is not None and passes(node) and (source := node.inputs[0]) is not None:
        value = source
        yield value


def downstream(value: ir.Value, passes: Callable[[ir.Node], bool]) -> Iterator[ir.Value]:
    """Yield the value, and all outputs of the nodes after it that pass values on, depth first.

    Args:
        value: the value to start from.
        passes: whether a node passes values on.
    """
    yield value
    for use in value.uses():
        if passes(use.node):
            for output in use.node.outputs:
                yield from downstream(output, passes)


def readers_of(node: ir.Node) -> list[ir.Node]:
    """List the nodes that read an output of the node."""
    return [use.node for value in node.outputs for use in value.uses()]


def holds_reals(value: ir.Value) -> bool:
    """Whether the value holds float numbers or has an unknown type."""
    return value.dtype is None or value.dtype.is_floating_point()


def raw_values(graph: ir.Graph) -> frozenset[ir.Value]:
    """Return the float inputs of the graph, and what is computed from them alone, without weights."""
    raw = {value for value in graph.inputs if value.dtype == ir.DataType.FLOAT}
    for node in graph:
        data = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]
        computed = [value for value in data if constant_value(value) is None]
        if computed and node.op_type not in WEIGHTED and raw.issuperset(computed):
            raw.update(node.outputs)
    return frozenset(raw)

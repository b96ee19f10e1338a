"""Subgraphs downstream of a change: the nodes that must run to evaluate its effect on the outputs.

The downstream nodes are split at a position in graph order. The *piece* before that position is different
for each change. The *rest* after it is the same for all changes before it, so they share one session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.nodes import all_nodes, name_of

_FEEDABLE = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
        ir.DataType.FLOAT8E4M3FN,
    }
)
"""Element types that the runtime both accepts and returns as arrays."""


@dataclass(frozen=True)
class Subgraph:
    """A part of a model as a model of its own.

    Attributes:
        model: the part.
        feeds: names of its inputs, tensors of the whole model.
        gives: names of its outputs, tensors of the whole model, in order.
    """

    model: ir.Model
    feeds: tuple[str, ...]
    gives: tuple[str, ...]


def rest_of(model: ir.Model, start: int) -> Subgraph | None:
    """Return the nodes of ``model`` from position ``start`` on as a subgraph; None if there are none."""
    nodes = set(list(model.graph)[start:])
    outputs = [value for value in model.graph.outputs if value.producer() in nodes]
    return _part(model, nodes, outputs) if nodes else None


def piece_before(model: ir.Model, seeds: Iterable[ir.Node], rest: Subgraph | None) -> Subgraph:
    """Return the nodes ``seeds`` and all nodes downstream of them that come before ``rest``.

    The outputs of the subgraph are its tensors that ``rest`` reads or that are outputs of ``model``.

    Args:
        model: the whole model.
        seeds: the nodes that a change affects directly.
        rest: the last nodes of the model, from `rest_of`; None if there is no such part.
    """
    later = {node.name for node in rest.model.graph} if rest else set()
    nodes = {node for node in _reached(seeds) if node.name not in later}
    read = set(rest.feeds) if rest else set()
    given = [v for node in model.graph if node in nodes for v in node.outputs if v.name in read]
    outputs = [value for value in model.graph.outputs if value.producer() in nodes]
    return _part(model, nodes, list(dict.fromkeys((*given, *outputs))))


def whole(model: ir.Model) -> Subgraph:
    """Return all of ``model`` as a subgraph."""
    graph = model.graph
    feeds = tuple(name_of(value) for value in graph.inputs if value.name not in graph.initializers)
    return Subgraph(model, feeds, tuple(dict.fromkeys(name_of(value) for value in graph.outputs)))


def is_partitionable(model: ir.Model) -> bool:
    """Whether parts of ``model`` can run alone.

    They cannot if the model has control flow, whose bodies read tensors from outside, or if a tensor between
    two nodes cannot be fed (a sequence, or an unknown type).
    """
    values = [value for node in model.graph for value in node.outputs if value.name]
    return all(node.graph is model.graph for node in all_nodes(model)) and all(map(_can_be_fed, values))


def _reached(seeds: Iterable[ir.Node]) -> set[ir.Node]:
    found = set(seeds)
    waiting = deque(found)
    while waiting:
        for value in waiting.popleft().outputs:
            for use in value.uses():
                if use.node not in found:
                    found.add(use.node)
                    waiting.append(use.node)
    return found


def _part(model: ir.Model, nodes: Collection[ir.Node], outputs: list[ir.Value]) -> Subgraph:
    border = _border(model.graph, nodes)
    graph = ir.convenience.extract(model.graph, border, outputs)
    functions = [function.clone() for function in model.functions.values()]
    whole = ir.Model(graph, ir_version=model.ir_version, functions=functions)
    return Subgraph(whole, tuple(name_of(v) for v in border), tuple(name_of(v) for v in outputs))


def _border(graph: ir.Graph, nodes: Collection[ir.Node]) -> list[ir.Value]:
    """Return the tensors that ``nodes`` read and do not compute, without initializers, in graph order."""
    read = dict.fromkeys(value for node in graph if node in nodes for value in node.inputs)
    return [v for v in read if v is not None and v.producer() not in nodes and not v.is_initializer()]


def _can_be_fed(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype in _FEEDABLE

"""The parts of a model behind a change: all that must run to know what the change does to the outputs.

What lies behind is cut in two at a place in the order of the nodes. The *piece* before it is different for
each change; the *rest* after it is the same for all changes before it, so that one session serves them all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.nodes import all_nodes, name_of

_FED = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)
"""Types of tensors that the runtime both gives and takes as arrays."""


@dataclass(frozen=True)
class Subgraph:
    """A model of its own.

    Attributes:
        model: what is to be run.
        feeds: the tensors of the whole model that it reads.
        gives: the tensors of the whole model that it gives, in order.
    """

    model: ir.Model
    feeds: tuple[str, ...]
    gives: tuple[str, ...]


def rest_of(model: ir.Model, start: int) -> Subgraph | None:
    """The nodes of ``model`` from position ``start`` on; None if there are none."""
    nodes = set(list(model.graph)[start:])
    outputs = [value for value in model.graph.outputs if value.producer() in nodes]
    return _part(model, nodes, outputs) if nodes else None


def piece_before(model: ir.Model, seeds: Iterable[ir.Node], rest: Subgraph | None) -> Subgraph:
    """What of ``model`` depends on the nodes ``seeds`` and comes before ``rest``.

    It gives what ``rest`` reads of it, and its share of the outputs of ``model``.
    """
    later = {node.name for node in rest.model.graph} if rest else set()
    nodes = {node for node in _reached(seeds) if node.name not in later}
    read = set(rest.feeds) if rest else set()
    given = [v for node in model.graph if node in nodes for v in node.outputs if v.name in read]
    outputs = [value for value in model.graph.outputs if value.producer() in nodes]
    return _part(model, nodes, list(dict.fromkeys((*given, *outputs))))


def whole(model: ir.Model) -> Subgraph:
    """All of ``model``."""
    graph = model.graph
    feeds = tuple(name_of(value) for value in graph.inputs if value.name not in graph.initializers)
    return Subgraph(model, feeds, tuple(dict.fromkeys(name_of(value) for value in graph.outputs)))


def is_partitionable(model: ir.Model) -> bool:
    """Whether parts of ``model`` can run alone.

    Not with control flow, whose bodies read tensors from outside; and not if a tensor between two nodes is
    none that can be fed (a sequence, an unknown type).
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
    """The tensors that ``nodes`` read and none of them gives, in order; no constants."""
    read = dict.fromkeys(value for node in graph if node in nodes for value in node.inputs)
    return [v for v in read if v is not None and v.producer() not in nodes and not v.is_initializer()]


def _can_be_fed(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype in _FED

"""The part of a model behind a change: all that must run to know what the change does to the outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph import all_nodes

_FED = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)
"""Types of tensors that the runtime both gives and takes as arrays."""


@dataclass(frozen=True)
class Part:
    """A model of its own.

    Attributes:
        model: what is to be run.
        feeds: the tensors of the whole model that it reads.
        outputs: which outputs of the whole model it gives, by position; the others do not change.
    """

    model: ir.Model
    feeds: tuple[str, ...]
    outputs: tuple[int, ...]


def part_behind(model: ir.Model, seeds: Iterable[ir.Node]) -> Part:
    """What of ``model`` depends on the nodes ``seeds``.

    The whole model, where it is not certain: with control flow, whose bodies read tensors from outside,
    or if the part reads what cannot be fed (sequences, tensors of unknown type).
    """
    graph = model.graph
    behind = _reached(seeds)
    border = _border(graph, behind)
    outputs = [i for i, value in enumerate(graph.outputs) if value.producer() in behind]
    if any(node.graph is not graph for node in all_nodes(model)) or not all(map(_can_be_fed, border)):
        return Part(model, tuple(v.name or "" for v in _inputs(graph)), tuple(range(len(graph.outputs))))
    part = ir.convenience.extract(graph, border, [graph.outputs[i] for i in outputs])
    functions = [function.clone() for function in model.functions.values()]
    whole = ir.Model(part, ir_version=model.ir_version, functions=functions)
    return Part(whole, tuple(value.name or "" for value in border), tuple(outputs))


def _reached(seeds: Iterable[ir.Node]) -> set[ir.Node]:
    found, waiting = set(seeds), deque(seeds)
    while waiting:
        for value in waiting.popleft().outputs:
            for use in value.uses():
                if use.node not in found:
                    found.add(use.node)
                    waiting.append(use.node)
    return found


def _border(graph: ir.Graph, behind: set[ir.Node]) -> list[ir.Value]:
    """The tensors that nodes of ``behind`` read and none of them gives, in order; no constants."""
    read = dict.fromkeys(value for node in graph if node in behind for value in node.inputs)
    return [v for v in read if v is not None and v.producer() not in behind and not v.is_initializer()]


def _can_be_fed(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype in _FED


def _inputs(graph: ir.Graph) -> Iterator[ir.Value]:
    return (value for value in graph.inputs if value.name not in graph.initializers)

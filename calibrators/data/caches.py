"""Key-value caches of decoders, found by structure: inputs that come back as outputs with new values in them.

::

    past [batch, heads, P, size], new [batch, heads, S, size]  ->  Concat  ->  present [batch, heads, T, size]

Exporters also write new values into a cache of fixed length (Scatter), and runtimes have operators with a
cache inside. Names such as ``past_key_values.0.key`` are a custom, which nothing here relies on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

OPERATORS: Mapping[str, tuple[int, int]] = {
    "Attention": (4, 1),
    "GroupQueryAttention": (3, 1),
    "MultiHeadAttention": (6, 1),
}
"""Operators with caches of keys and values inside: the first input and the first output of the two."""

WRITERS = frozenset({"Concat", "ScatterND", "ScatterElements", "TensorScatter"})
"""Operators that put new values into a cache, which is an input of Concat, and input 0 of the others."""

CARRIERS = frozenset({"Identity", "Cast", "Gather"})
"""Operators between a cache and the graph's inputs and outputs. Gather chooses sequences in beam search."""

SEQUENCE = 2
"""The axis of positions in the caches of `OPERATORS`."""


@dataclass(frozen=True)
class Cache:
    """An input and the output that it comes back as.

    Attributes:
        past: the input.
        present: the output.
        axis: the axis along which the output is longer; None if their shapes are equal.
        writer: the node that writes new values into it.
    """

    past: ir.Value
    present: ir.Value
    axis: int | None
    writer: ir.Node

    @property
    def values(self) -> tuple[ir.Value | None, ...]:
        """What holds elements of the cache: input and output, and what a node writes into it."""
        written = () if self.writer.op_type in OPERATORS else (*self.writer.inputs, *self.writer.outputs)
        return (self.past, self.present, *written)


def find_caches(graph: ir.Graph) -> list[Cache]:
    """Find the caches of a model, in the order of its inputs; each input and each output belongs to one.

    Args:
        graph: its main graph.
    """
    found, outputs = list[Cache](), set[ir.Value]()
    for value in graph.inputs:
        if value.dtype is None or not value.dtype.is_floating_point() or value.is_initializer():
            continue
        for cache in _caches(value):
            if cache.present not in outputs:
                outputs.add(cache.present)
                found.append(cache)
                break
    return found


def _caches(past: ir.Value) -> Iterator[Cache]:
    for value in _carried(past):
        for node, index in value.uses():
            written = _written(node, index)
            if written is None:
                continue
            for output in _carried(node.outputs[written]):
                if output.is_graph_output():
                    yield Cache(past, output, _axis(node, past), node)


def _carried(start: ir.Value) -> Iterator[ir.Value]:
    """Yield a value, and those that it becomes without change of its layout."""
    waiting = [start]
    while waiting:
        value = waiting.pop()
        yield value
        waiting += [
            out
            for node, index in value.uses()
            if node.op_type in CARRIERS and index == 0 and node.attributes.get_int("axis", 0) == 0
            for out in node.outputs
        ]


def _written(node: ir.Node, index: int) -> int | None:
    """Return the output that the cache at input ``index`` becomes; None if the node writes into none."""
    if node.op_type in WRITERS:
        return 0 if index == 0 or node.op_type == "Concat" else None
    if node.op_type not in OPERATORS:
        return None
    first_in, first_out = OPERATORS[node.op_type]
    output = first_out + index - first_in
    return output if 0 <= index - first_in < 2 and output < len(node.outputs) else None


def _axis(node: ir.Node, past: ir.Value) -> int | None:
    if node.op_type in OPERATORS:
        return SEQUENCE
    if node.op_type != "Concat" or past.shape is None:
        return None
    axis = node.attributes.get_int("axis", 0)
    return axis % len(past.shape) if past.shape.rank() else None


def cache_lengths(caches: Sequence[Cache]) -> dict[str, str]:
    """Map each name of a length of a cache to the first one: all caches of a decoder have one length.

    PyTorch's exporter gives each of them a name of its own.
    """
    dims = [
        dim.value
        for cache in caches
        if cache.axis is not None
        and cache.past.shape is not None
        and isinstance(dim := cache.past.shape[cache.axis], ir.SymbolicDim)
    ]
    names = [name for name in dict.fromkeys(dims) if name is not None]
    return dict.fromkeys(names, names[0]) if names else {}

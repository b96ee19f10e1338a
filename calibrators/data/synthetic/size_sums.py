"""Free sizes that are the sum of others, as in a decoder with a key-value cache: total = past + sequence.

A Concat along a named axis tells such a sum, if the model names the sizes of its inputs and of its output:

    past[batch, heads, P, size] and new[batch, heads, S, size]  ->  present[batch, heads, T, size]:  T = P + S

Operators with a cache inside have no Concat. For them the usual names of the sizes tell it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import onnx_ir as ir

Sums = Mapping[str, Sequence[int | str]]
"""Name of a size -> its parts, which are sizes or names of other sizes."""


def known_sums(model: ir.Model, names: Sequence[str]) -> Sums:
    """Find the sizes among ``names`` that are sums of others.

    Args:
        model: a model whose tensors have inferred shapes.
        names: the names of the free sizes of its inputs.
    """
    joined = {total: parts for total, parts in _joined(model) if {total, *_named(parts)} <= set(names)}
    return joined or _by_name(names)


def possible_sums(names: Sequence[str]) -> Iterator[Sums]:
    """Yield each way in which one of ``names`` could be the sum of two others, or of another one and 1."""
    for total in names:
        others: list[int | str] = [name for name in names if name != total]
        for parts in combinations([*others, 1], 2):
            yield {total: parts}


def _joined(model: ir.Model) -> Iterator[tuple[str, tuple[int | str, ...]]]:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        shape = node.outputs[0].shape
        if node.op_type != "Concat" or shape is None or not shape:
            continue
        axis = node.attributes.get_int("axis", 0)
        shapes = [None if value is None else value.shape for value in node.inputs]
        if any(each is not None and not -len(each) <= axis < len(each) for each in (shape, *shapes)):
            continue  # the declared shapes contradict each other
        sizes = [None if each is None else each[axis] for each in shapes]
        parts = tuple(part for size in sizes if (part := _size(size)) is not None)
        total = _size(shape[axis])
        if isinstance(total, str) and len(parts) == len(sizes) and total not in parts:
            yield total, parts


def _size(dim: int | ir.SymbolicDim | None) -> int | str | None:
    return dim.value if isinstance(dim, ir.SymbolicDim) else dim


def _named(parts: Sequence[int | str]) -> set[str]:
    return {part for part in parts if isinstance(part, str)}


def _by_name(names: Sequence[str]) -> Sums:
    """Guess from names like ``total_sequence_length``, ``past_sequence_length`` and ``sequence_length``."""
    past = [name for name in names if "past" in name.lower()]
    total = [name for name in names if "total" in name.lower()]
    new = [name for name in names if "seq" in name.lower() and name not in (*past, *total)]
    return dict.fromkeys(total, (past[0], new[0])) if len(past) == len(new) == 1 else {}

"""Store a matrix and its copies once, as in a model whose embedding table is its last matrix too (tied).

Cleaning folds the Transpose between the table and the last MatMul, since a weight must be a constant to be
quantized, and many exporters do the same. In the file that is written, the second copy is a Transpose of the
first one again, whatever number format both have. Runtimes fold it when they load the model.

Matrices are compared part by part, and only if samples of them agree: they may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import is_op, name_of, unused_node
from onnxq.graph.stored_numbers import remapped

LEAST = 2**14
"""The fewest elements worth it: a second copy of a smaller matrix takes less than 64 KiB, even in float32."""

SAMPLED = 8
"""About as many rows and columns are compared before whole matrices are."""

PART = 2**22
"""The number of elements that are compared at a time."""


def share_transposed(model: ir.Model) -> None:
    """Replace each constant matrix that is the transpose of another one by a Transpose of that one.

    Args:
        model: the model to write; it is changed.
    """
    for gone, kept in find_transposed(model).items():
        _replace(model, gone, kept)


def share_equal(model: ir.Model) -> None:
    """Let all readers of equal constant matrices read one of them.

    Args:
        model: the model; it is changed.
    """
    seen: dict[Hashable, ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        sample = _sample(value)
        if sample is None or value.is_graph_output():
            continue
        kept = seen.setdefault(sample, value)
        if kept is not value and _is_equal(kept, value, turned=False):
            value.replace_all_uses_with(kept)
            del model.graph.initializers[name]


def find_transposed(model: ir.Model) -> Mapping[ir.Value, ir.Value]:
    """Map constant matrices that may be computed at loading to those that they are the transposes of."""
    pairs = (sorted(pair, key=_is_replaceable) for pair in _pairs(model.graph.initializers.values()))
    return {gone: kept for kept, gone in pairs if _is_replaceable(gone)}


def _pairs(values: Iterable[ir.Value]) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield disjoint pairs of matrices of which one is the transpose of the other."""
    seen: dict[Hashable, ir.Value] = {}
    for value in values:
        sample, turned = _sample(value), _sample(value, turned=True)
        if sample is None:
            continue
        other = seen.get(turned)
        if other is not None and _is_equal(other, value, turned=True):
            del seen[turned]
            yield other, value
        else:
            seen[sample] = value


def _matrix(value: ir.Value) -> NDArray[np.generic] | None:
    """Return the numbers of a constant matrix that is worth it.

    Those of an external file count as memory of the process only as long as the result is in use.
    """
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or len(tensor.shape) != 2 or tensor.size < LEAST:
        return None
    if tensor.dtype.numpy().kind not in "fiu" and tensor.dtype != ir.DataType.BFLOAT16:
        return None
    return np.asarray(remapped(tensor).numpy())


def _is_equal(one: ir.Value, other: ir.Value, turned: bool) -> bool:
    """Compare a matrix with another one, or with its transpose, a few rows at a time."""

    def rows(value: ir.Value, turn: bool, part: slice) -> NDArray[np.generic]:
        array = _matrix(value)
        assert array is not None
        return array.T[part] if turn else array[part]

    assert one.shape is not None
    count, columns = one.shape.numpy()
    step = max(1, PART // columns)
    parts = (slice(start, start + step) for start in range(0, count, step))
    return all(np.array_equal(rows(one, False, part), rows(other, turned, part)) for part in parts)


def _sample(value: ir.Value, turned: bool = False) -> Hashable:
    """Return a few numbers of a matrix, or of its transpose; None if it is none, or not worth it."""
    array = _matrix(value)
    if array is None:
        return None
    array = array.T if turned else array
    rows, columns = (max(1, size // SAMPLED) for size in array.shape)
    return array.dtype, array.shape, array[::rows, ::columns].tobytes()


def _is_replaceable(value: ir.Value) -> bool:
    """Whether the value may be computed at loading; rows are best looked up in a constant."""
    return not value.is_graph_output() and not any(is_op(use.node, "Gather") for use in value.uses())


def _replace(model: ir.Model, gone: ir.Value, kept: ir.Value) -> None:
    node = ir.node("Transpose", [kept], {"perm": [1, 0]}, name=unused_node(f"{gone.name}_Transpose", model))
    turned = node.outputs[0]
    turned.type, turned.shape = gone.type, gone.shape
    gone.replace_all_uses_with(turned)
    turned.name = name_of(gone)
    del model.graph.initializers[name_of(gone)]
    model.graph.insert_before(model.graph[0], node)

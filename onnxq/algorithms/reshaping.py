"""Labels of channels through Reshape, Flatten, Squeeze and Unsqueeze.

Labels have the rank of their tensor; a dimension along which they do not change has size 1, whatever the
tensor's is. A reshape is cut into blocks of dimensions that hold the same elements before and after; only
the blocks along which labels change need known sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Dims = Sequence[int | ir.SymbolicDim]
_Span = tuple[int, int]
"""First dimension, and the one behind the last."""


def reshaped(labels: Labels, before: Dims, after: Dims) -> Labels | None:
    """The labels of a tensor of shape ``before`` once it has shape ``after``; None where nobody can tell."""
    for old, new in _blocks(before, after):
        sizes, goal = before[slice(*old)], after[slice(*new)]
        if max(labels.shape[slice(*old)], default=1) == 1:
            labels = _with(labels, old, (1,) * len(goal))
        elif len(sizes) == len(goal) == 1:
            continue
        elif all(isinstance(size, int) for size in (*sizes, *goal)):
            full = np.broadcast_to(labels, (*labels.shape[: old[0]], *sizes, *labels.shape[old[1] :]))  # type: ignore[arg-type]
            labels = without_repeats(_with(full, old, goal), range(old[0], old[0] + len(goal)))  # type: ignore[arg-type]
        else:
            return None
    return labels


def _with(labels: Labels, span: _Span, sizes: Sequence[int]) -> Labels:
    return labels.reshape(*labels.shape[: span[0]], *sizes, *labels.shape[span[1] :])


def without_repeats(labels: Labels, axes: Sequence[int]) -> Labels:
    """``labels`` with size 1 along those of the axes where they do not change."""
    for axis in axes:
        first = labels.take([0], axis) if labels.shape[axis] else labels
        if (labels == first).all():
            labels = first
    return labels


def _blocks(before: Dims, after: Dims) -> Iterator[tuple[_Span, _Span]]:
    """The last block first. What is left in the middle, perhaps of unknown sizes, is one block."""
    i, j = len(before), len(after)
    while found := _last_block(before[:i], after[:j]):
        yield (found[0], i), (found[1], j)
        i, j = found
    k = 0
    while k < min(i, j) and same_size(before[k], after[k]):
        k += 1
    if k < max(i, j):
        yield (k, i), (k, j)
    yield from (((n, n + 1), (n, n + 1)) for n in reversed(range(k)))


def _last_block(before: Dims, after: Dims) -> tuple[int, int] | None:
    """Where the last dimensions that hold equally many elements begin."""
    i, j = len(before) - 1, len(after) - 1
    if i < 0 or j < 0:
        return None
    if same_size(before[i], after[j]):
        return i, j
    one, other = before[i], after[j]
    while one != other:
        if not isinstance(one, int) or not isinstance(other, int):
            return None
        shorter, k = (before, i := i - 1) if one < other else (after, j := j - 1)
        if k < 0 or not isinstance(size := shorter[k], int) or not size:
            return None
        one, other = (one * size, other) if shorter is before else (one, other * size)
    return (i, j) if isinstance(one, int) else None


def same_size(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two dimensions are known to have one size, if only by its name."""
    if isinstance(one, ir.SymbolicDim) and one.value is None:
        return False
    return one == other

"""Compare rows that have no fixed order or number: each with the nearest row of the other model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.verify.outputs.row_origin import Rows

Doubles = NDArray[np.float64]
Array = NDArray[np.generic]

BLOCK = 2**22
"""The number of distances to compute at a time."""


@dataclass(frozen=True)
class RowDifference:
    """How two sets of rows differ.

    Attributes:
        noise: the sum of the squared distances of the reference's rows from the nearest of the other, and the
            other way round, of which the mean is taken as if both had the reference's number of rows (the
            Chamfer distance). For one more row, or one less, it is the distance to the row nearest to that.
        equal: the number of rows that both have. Measured rows count if the nearest row has the same largest
            value; each row of the smaller set counts once.
        rows: the number of rows of the larger set.
    """

    noise: float
    equal: int
    rows: int


def paired_sets(reference: Array, actual: Array, rows: Rows) -> Iterator[tuple[Array, Array]]:
    """Yield pairs of sets ``[rows, values]`` that correspond to each other: one pair, or one for each sample.

    Args:
        reference: the output of the float model.
        actual: the output of the other one, whose size may differ in the axis of the rows.
        rows: the rows.
    """
    one, other = (np.moveaxis(array, rows.axis, int(rows.batched)) for array in (reference, actual))
    if not rows.batched:
        one, other = one[np.newaxis], other[np.newaxis]
    for first, second in zip(one, other, strict=True):
        values = int(np.prod(first.shape[1:]))
        yield first.reshape(len(first), values), second.reshape(len(second), values)


def differing_axes(reference: Array, actual: Array) -> tuple[int, ...] | None:
    """Return the axes in which the sizes differ; None if the ranks differ."""
    if reference.ndim != np.ndim(actual):
        return None
    sizes = enumerate(zip(reference.shape, actual.shape, strict=True))
    return tuple(axis for axis, (one, other) in sizes if one != other)


def measured_rows(reference: Doubles, actual: Doubles) -> RowDifference:
    """Compare two sets of finite rows, ``[n, values]`` and ``[m, values]``, by distance.

    If one of them is empty, all rows of the other are errors.
    """
    n, m = len(reference), len(actual)
    if not n or not m:
        return RowDifference(float(np.square(reference).sum() + np.square(actual).sum()), 0, max(n, m))
    to_actual, to_reference = _nearest(reference, actual)
    there = np.square(reference - actual[to_actual]).sum()
    back = np.square(actual - reference[to_reference]).sum() * n / m
    classes, others = reference.argmax(1), actual.argmax(1)
    same = classes == others[to_actual] if n <= m else others == classes[to_reference]
    return RowDifference(float(there + back) / 2, int(np.count_nonzero(same)), max(n, m))


def _nearest(one: Doubles, other: Doubles) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the index of the nearest row in ``other`` for each row of ``one``, and the other way round."""
    centre = one.mean(0)  # so that large common offsets do not cost accuracy
    one, other = one - centre, other - centre
    sizes = np.square(other).sum(1)
    step = max(1, BLOCK // len(other))
    there = np.empty(len(one), np.intp)
    back, least = np.zeros(len(other), np.intp), np.full(len(other), np.inf)
    for start in range(0, len(one), step):
        block = one[start : start + step]
        distances = np.square(block).sum(1)[:, None] + sizes - 2 * (block @ other.T)
        there[start : start + step] = distances.argmin(1)
        best = distances.argmin(0)
        found = distances[best, np.arange(len(other))]
        back[found < least] = best[found < least] + start
        least = np.minimum(least, found)
    return there, back


def equal_rows(reference: Array, actual: Array) -> RowDifference:
    """Compare two sets of rows by equality. A row that occurs several times counts as often."""
    one, other = (Counter(map(_key, rows)) for rows in (reference, actual))
    return RowDifference(0.0, (one & other).total(), max(len(reference), len(actual)))


def _key(row: Array) -> Any:
    return row.tobytes() if row.dtype != object else tuple(row)

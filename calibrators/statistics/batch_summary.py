"""What a batch adds to the statistics of a tensor: each sample's extremes, and the values to count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CHUNK = 2**17
"""Elements looked at together, so that they stay in the processor's cache."""

RANKS = 256
"""Elements of a selection that are sorted, to find where its tails begin."""

TAIL = 2
"""A tail begins at the sorted element with so many beyond it: it holds about one of a hundred elements."""


@dataclass(frozen=True)
class BatchSummary:
    """One batch.

    Attributes:
        lows, highs: each sample's least and greatest finite value, ``[samples]``; ``inf`` and ``-inf``
            where it has none.
        nonfinite: how many values are NaN or infinite.
        counted: finite values, and how often each of them counts.
    """

    lows: Floats
    highs: Floats
    nonfinite: int
    counted: Sequence[tuple[Floats, int]]


def digest(rows: Floats, selection: int | None) -> BatchSummary:
    """``rows``, one for each sample; of each about ``selection`` elements are counted, all if None."""
    stride = _stride(rows.shape[1], selection)
    if stride == 1:
        return _whole(rows)
    parts = [_selected(row, stride) for row in rows]
    return BatchSummary(
        np.concatenate([part.lows for part in parts]),
        np.concatenate([part.highs for part in parts]),
        sum(part.nonfinite for part in parts),
        [counted for part in parts for counted in part.counted],
    )


def _whole(rows: Floats) -> BatchSummary:
    """Every element counts."""
    lows, highs = rows.min(axis=1), rows.max(axis=1)
    if math.isfinite(lows.min()) and math.isfinite(highs.max()):
        return BatchSummary(lows, highs, 0, [(rows, 1)])
    there = np.isfinite(rows)
    lows = rows.min(axis=1, where=there, initial=np.inf)
    highs = rows.max(axis=1, where=there, initial=-np.inf)
    values = rows[there]
    return BatchSummary(lows, highs, rows.size - values.size, [(values, 1)])


def _selected(row: Floats, stride: int) -> BatchSummary:
    """One sample: its tails in full, since ranges depend on them, and every so-manieth element between."""
    picked = np.ascontiguousarray(row[::stride])
    low, high = _tail_borders(picked)
    if not (math.isfinite(low) and math.isfinite(high)):
        return _whole(row[None])
    parts = (row[start : start + CHUNK] for start in range(0, row.size, CHUNK))
    outside = np.concatenate([_outside(part, low, high) for part in parts])
    tails = outside[np.isfinite(outside)]
    ends = np.append(tails, (low, high))
    middle = picked[(picked >= low) & (picked <= high)]
    return BatchSummary(
        ends.min(keepdims=True),
        ends.max(keepdims=True),
        outside.size - tails.size,
        [(tails, 1), (middle, stride)],
    )


def _tail_borders(picked: Floats) -> tuple[np.float32, np.float32]:
    """Between them lie all but about `TAIL` of `RANKS` elements on either side."""
    ranked = np.sort(picked[:: max(picked.size // RANKS, 1)])
    return ranked[TAIL], ranked[-1 - TAIL]


def _outside(values: Floats, low: np.float32, high: np.float32) -> Floats:
    """Those that do not lie from ``low`` to ``high``: NaN is among them."""
    inside = values <= high
    inside &= values >= low
    return values[np.flatnonzero(~inside)]


def _stride(elements: int, selection: int | None) -> int:
    """Count every so-manieth of a sample's elements, so that about ``selection`` are counted.

    It has no divisor in common with their number, and so none with an axis: the elements counted come from
    every channel, row and column alike.
    """
    if selection is None:
        return 1
    stride = max(elements // max(selection, RANKS), 1)
    while stride > 1 and math.gcd(stride, elements) > 1:
        stride += 1
    return stride

"""Summarize a batch for the statistics of a tensor: each sample's extremes, and the values to count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CHUNK = 2**17
"""Number of elements processed together, so that they stay in the processor's cache."""

RANKS = 1024
"""Number of elements of a selection that are sorted to find where its tails begin."""

FULL = 32
"""Number of samples of which a whole selection is counted; each doubling of the samples then halves it."""

TAIL = 2
"""Number of sorted elements beyond the start of a tail: a tail holds about one in four hundred elements."""


@dataclass(frozen=True)
class BatchSummary:
    """The summary of one batch.

    Attributes:
        lows, highs: each sample's least and greatest finite value, ``[samples]``; ``inf`` and ``-inf``
            where it has none.
        nonfinite: number of NaN and infinite values.
        counted: pairs of finite values and the weight with which each of them counts.
    """

    lows: Floats
    highs: Floats
    nonfinite: int
    counted: Sequence[tuple[Floats, int]]


def digest(rows: Floats, numbers: NDArray[np.int64], selection: int | None) -> BatchSummary:
    """Summarize ``rows``, one per sample with these numbers in the stream of data.

    Args:
        rows: the values, ``[samples, elements]``.
        numbers: the number of each sample, ``[samples]``.
        selection: count about this many elements of each of the first `FULL` samples, and fewer of later
            ones; None: all.
    """
    if selection is None or rows.shape[1] <= selection:
        return _whole(rows)
    parts = [
        _selected(row, _stride(row.size, _share(int(number), selection)))
        for row, number in zip(rows, numbers, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    return BatchSummary(
        np.concatenate([part.lows for part in parts]),
        np.concatenate([part.highs for part in parts]),
        sum(part.nonfinite for part in parts),
        [counted for part in parts for counted in part.counted],
    )


def _share(number: int, selection: int) -> int:
    """Number of elements to count of a sample.

    The first samples give most of what there is to know about the middle of a distribution. A share that
    falls as fast as the number of samples grows keeps the error of the counts as small as with `FULL`
    samples or more, and what many samples take is the time for their tails.
    """
    return max(selection >> (number // FULL).bit_length(), RANKS)


def _whole(rows: Floats) -> BatchSummary:
    """Summarize rows of which every element counts."""
    lows, highs = rows.min(axis=1), rows.max(axis=1)
    if math.isfinite(lows.min()) and math.isfinite(highs.max()):
        return BatchSummary(lows, highs, 0, [(rows, 1)])
    there = np.isfinite(rows)
    lows = rows.min(axis=1, where=there, initial=np.inf)
    highs = rows.max(axis=1, where=there, initial=-np.inf)
    values = rows[there]
    return BatchSummary(lows, highs, rows.size - values.size, [(values, 1)])


def _selected(row: Floats, stride: int) -> BatchSummary:
    """Summarize one sample: count its tails in full, since ranges depend on them, and a selection between."""
    if stride == 1:
        return _whole(row[None])
    picked = np.ascontiguousarray(row[::stride])
    low, high = _tail_borders(picked)
    if not (math.isfinite(low) and math.isfinite(high)):
        return _whole(row[None])
    parts = [_outside(row[start : start + CHUNK], low, high) for start in range(0, row.size, CHUNK)]
    outside = parts[0] if len(parts) == 1 else np.concatenate(parts)
    tails = outside[np.isfinite(outside)]
    middle = picked[(picked >= low) & (picked <= high)]
    return BatchSummary(
        tails.min(keepdims=True, initial=low),
        tails.max(keepdims=True, initial=high),
        outside.size - tails.size,
        [(tails, 1), (middle, stride)],
    )


def _tail_borders(picked: Floats) -> tuple[np.float32, np.float32]:
    """Find the borders of both tails: beyond each lie about `TAIL` of `RANKS` elements."""
    ranked = np.sort(picked[:: max(picked.size // RANKS, 1)])
    return ranked[TAIL], ranked[-1 - TAIL]


def _outside(values: Floats, low: np.float32, high: np.float32) -> Floats:
    """Select the values outside ``[low, high]``, including NaN."""
    if values.min() >= low:  # as behind a Relu; not so if there is a NaN
        return values[(values > high).nonzero()]
    inside = values <= high
    inside &= values >= low
    return values[(~inside).nonzero()]


def _stride(elements: int, share: int) -> int:
    """Choose ``n`` so that every n-th element of a sample is counted, about ``share`` in total.

    ``n`` has no divisor in common with the number of elements, and so none with the size of an axis. So the
    counted elements come evenly from all channels, rows and columns.
    """
    stride = max(elements // share, 1)
    while stride > 1 and math.gcd(stride, elements) > 1:
        stride += 1
    return stride

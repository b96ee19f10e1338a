"""Method ``entropy``: TensorRT's calibration by least Kullback-Leibler divergence.

S. Migacz, "8-bit Inference with TensorRT", GTC 2017. With ``h`` the histogram of ``|x|``, a candidate
clips after ``i`` bins. Its reference ``P`` is ``h[:i]`` with everything beyond added to the last bin.
Its quantized ``Q`` is ``h[:i]`` merged into as many buckets as the grid has levels, each bucket's mass
spread evenly over those of its bins that are not empty. The candidate with the least ``KL(P || Q)``
wins. The first bin, where ReLU piles up exact zeros, is set to the count of the second beforehand.

On an asymmetric grid with values of both signs, both ends are searched. A candidate keeps the bins from
``start`` to ``stop`` of the histogram of ``x``; what lies below is added to the first of them and what lies
above to the last. The levels spread evenly over them, so each side of zero gets its share.

With ``M`` a bucket's mass and ``n`` the number of its non-empty bins, the only sum that differs for every
candidate and bin, ``sum h log Q``, is ``sum M log(M / n)`` over the buckets. ``M`` and ``n`` follow from
cumulative sums.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from calibrators.errors import CalibrationError
from calibrators.grid import Grid
from calibrators.methods.range_search import best_shares
from calibrators.statistics import TensorStatistics
from calibrators.statistics.histogram import SIDE

Floats = NDArray[np.float64]
Bins = NDArray[np.intp]

CANDIDATES = 2048
"""Largest number of candidates, evenly spread: as many as TensorRT tries, on bins that may be finer."""

CHUNK = 256
"""Number of candidates processed together, so that the data stay in the processor's cache."""

TIE = 1e-9
"""Divergences closer than this count as equal; the candidate that clips less is then taken."""


def entropy(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """Choose the range with the least divergence; its ends are edges of bins, or the extremes.

    On a symmetric grid, or if all values have one sign, it is ``[max(low, -T), min(high, T)]`` with one
    threshold ``T``. If the grid has more levels than the histogram has bins, no loss can be measured, and
    the whole range is returned.

    Args:
        statistics: the statistics of the tensor.
        grid: the grid that the range is mapped to.
        averaged: not used by this method.

    Raises:
        CalibrationError: no finite value was seen, or the grid is one of floating-point numbers.
    """
    if grid.floating is not None:
        raise CalibrationError(
            "method entropy compares evenly wide buckets, and floating-point numbers have none: choose "
            "another method, such as auto or mse"
        )
    statistics.require_data()
    low, high = statistics.low, statistics.high
    if not statistics.amax:
        return low, high
    if not grid.symmetric and low < 0 < high:
        return _two_sided(statistics, grid.levels)
    counts = np.trim_zeros(statistics.histogram.magnitudes(), "b").astype(np.float64)
    counts[0] = counts[1]
    levels = grid.steps_up + 1 if grid.symmetric else grid.levels
    if levels >= counts.size:
        return low, high
    clips = candidates(counts.size, levels)
    divergence = divergences(counts, levels, clips)
    clip = int(clips[divergence <= divergence.min() + TIE][-1])
    threshold = clip * statistics.histogram.width
    return max(low, -threshold), min(high, threshold)


def _two_sided(statistics: TensorStatistics, levels: int) -> tuple[float, float]:
    counts = statistics.histogram.counts.astype(np.float64)
    filled = np.flatnonzero(counts)
    whole = np.array([SIDE - filled[0], filled[-1] + 1 - SIDE])
    if levels >= whole.sum():
        return statistics.low, statistics.high
    counts[SIDE] = (counts[SIDE - 1] + counts[SIDE + 1]) / 2

    def loss(shares: Floats) -> Floats:
        starts, stops = _kept(whole, shares, filled)
        enough = stops - starts >= levels
        result = np.full(len(shares), np.inf)
        result[enough] = divergences(counts, levels, stops[enough], starts[enough])
        return result

    starts, stops = _kept(whole, best_shares(loss, (True, True))[None], filled)
    low, high = ((edge[0] - SIDE) * statistics.histogram.width for edge in (starts, stops))
    return max(statistics.low, float(low)), min(statistics.high, float(high))


def _kept(whole: Bins, shares: Floats, filled: Bins) -> tuple[Bins, Bins]:
    """First bin and end of each candidate: its shares of both sides, moved inwards to the next filled bin."""
    wanted = np.ceil(whole * shares).astype(np.intp)
    first = filled[np.searchsorted(filled, SIDE - wanted[:, 0])]
    last = filled[np.searchsorted(filled, SIDE + wanted[:, 1], side="left") - 1]
    return np.minimum(first, SIDE - 1), np.maximum(last, SIDE) + 1


def candidates(bins: int, levels: int) -> Bins:
    """List the numbers of bins to keep: from all down to ``levels``, with a stride if there are many."""
    return np.arange(bins, levels - 1, -max(1, math.ceil(bins / CANDIDATES)))[::-1]


def divergences(counts: Floats, levels: int, stops: Bins, starts: Bins | None = None) -> Floats:
    """Compute ``KL(P || Q)`` of each candidate, ``[K]``.

    It is infinite if the first or last kept bin is empty but would take in clipped values.

    Args:
        counts: the histogram, ``[bins]``.
        levels: number of levels of the grid; each candidate keeps at least as many bins.
        stops: the bin after the last kept one of each candidate, ``[K]``.
        starts: the first kept bin of each candidate, ``[K]``; None: 0.
    """
    starts = np.zeros_like(stops) if starts is None else starts
    mass, filled, information = (
        np.concatenate([[0.0], np.cumsum(terms)]) for terms in (counts, counts > 0, _xlogx(counts))
    )
    total, kept = mass[-1], mass[stops] - mass[starts]
    ends = np.stack([counts[starts], counts[stops - 1]])
    tails = np.stack([mass[starts], total - mass[stops]])
    spans = [(starts[i : i + CHUNK], stops[i : i + CHUNK]) for i in range(0, stops.size, CHUNK)]
    parts = [_cross(*span, levels, mass, filled) for span in spans]
    cross, log_ends = (np.concatenate(column, axis=-1) for column in zip(*parts, strict=True))
    own = information[stops - 1] - information[starts + 1] + _xlogx(ends + tails).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = (own - cross - (tails * log_ends).sum(axis=0)) / total + np.log(kept / total)
    return np.where(((ends == 0) & (tails > 0)).any(axis=0) | (kept == 0), np.inf, result)


def _cross(starts: Bins, stops: Bins, levels: int, mass: Floats, filled: Floats) -> tuple[Floats, Floats]:
    """Compute ``sum h log Q``, ``[K]``, and ``log Q`` in the outer buckets (0 if empty), ``[2, K]``."""
    edges = starts[:, None] + (stops - starts)[:, None] * np.arange(levels + 1) // levels
    merged = np.diff(mass[edges])
    share = merged / np.maximum(np.diff(filled[edges]), 1.0)
    log_share = np.log(np.where(merged > 0, share, 1.0))
    return np.einsum("ij,ij->i", merged, log_share), log_share[:, [0, -1]].T


def _xlogx(values: Floats) -> Floats:
    return values * np.log(np.where(values > 0, values, 1.0))

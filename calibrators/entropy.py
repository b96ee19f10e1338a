"""The range that loses least information: TensorRT's calibration by Kullback-Leibler divergence.

S. Migacz, "8-bit Inference with TensorRT", GTC 2017. With ``h`` the histogram of ``|x|``, a candidate
clips after ``i`` bins. Its reference ``P`` is ``h[:i]`` with everything beyond added to the last bin.
Its quantized ``Q`` is ``h[:i]`` merged into as many buckets as the grid has levels, each bucket's mass
spread evenly over those of its bins that are not empty. The candidate with the least ``KL(P || Q)``
wins. The first bin, where ReLU piles up exact zeros, is first levelled with the second.

With ``M`` a bucket's mass and ``n`` its non-empty bins, the only sum that differs for every candidate and
bin, ``sum h log Q``, is ``sum M log(M / n)`` over the buckets, and both follow from cumulative sums.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from calibrators.grid import Grid
from calibrators.statistics import TensorStatistics

CANDIDATES = 2048
"""At most so many, evenly spread: as finely as TensorRT looks, on bins that may be finer."""

CHUNK = 256
"""Candidates at a time, so that the work stays in the processor's cache."""

TIE = 1e-9
"""Divergences closer than this are equal; the candidate that clips less is taken."""


def entropy(statistics: TensorStatistics, grid: Grid, averaged: int = 1) -> tuple[float, float]:
    """The range ``[max(low, -T), min(high, T)]`` whose threshold ``T`` diverges least.

    ``T`` is the right edge of a bin. A grid with more levels than the histogram has bins loses
    nothing that could be measured, and gets the whole range.

    Raises:
        CalibrationError: no finite value was seen.
    """
    statistics.require_data()
    low, high = statistics.low, statistics.high
    if not statistics.amax:
        return low, high
    counts = np.trim_zeros(statistics.histogram.magnitudes(), "b").astype(np.float64)
    counts[0] = counts[1]
    levels = magnitude_levels(grid, low, high)
    if levels >= counts.size:
        return low, high
    clips = candidates(counts.size, levels)
    divergence = divergences(counts, levels, clips)
    clip = int(clips[divergence <= divergence.min() + TIE][-1])
    threshold = clip * statistics.histogram.width
    return max(low, -threshold), min(high, threshold)


def magnitude_levels(grid: Grid, low: float, high: float) -> int:
    """How many levels of the grid the magnitudes from 0 to the largest one fall on.

    Half of them on a symmetric grid (128 of 8 bits). On an asymmetric one, the share of the range that the
    larger side takes: all 256 after ReLU, 128 where both sides are alike.
    """
    if grid.symmetric:
        return grid.steps_up + 1
    return round(grid.levels * max(-low, high) / (max(high, 0.0) - min(low, 0.0)))


def candidates(bins: int, levels: int) -> NDArray[np.intp]:
    """How many bins to keep: all of them, and every number down to ``levels``, or every other one."""
    return np.arange(bins, levels - 1, -max(1, math.ceil(bins / CANDIDATES)))[::-1]


def divergences(counts: NDArray[np.float64], levels: int, clips: NDArray[np.intp]) -> NDArray[np.float64]:
    """``KL(P || Q)`` of clipping after ``clips[i]`` bins, each at least ``levels``; shape as ``clips``.

    Infinite where the last bin kept is empty but must take in what is clipped.
    """
    mass, filled, information = (
        np.concatenate([[0.0], np.cumsum(terms)]) for terms in (counts, counts > 0, _xlogx(counts))
    )
    kept, total = mass[clips], mass[-1]
    last, tail = counts[clips - 1], total - kept
    parts = [_cross(clips[i : i + CHUNK], levels, mass, filled) for i in range(0, clips.size, CHUNK)]
    cross, log_last = (np.concatenate(column) for column in zip(*parts, strict=True))
    own = information[clips - 1] + _xlogx(last + tail)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = (own - cross - tail * log_last) / total + np.log(kept / total)
    return np.where((last == 0) & (tail > 0) | (kept == 0), np.inf, result)


def _cross(
    clips: NDArray[np.intp], levels: int, mass: NDArray[np.float64], filled: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``sum h log Q`` of each candidate, and ``log Q`` in its last bucket (0 if that is empty)."""
    edges = clips[:, None] * np.arange(levels + 1) // levels
    merged = np.diff(mass[edges])
    share = merged / np.maximum(np.diff(filled[edges]), 1.0)
    log_share = np.log(np.where(merged > 0, share, 1.0))
    return np.einsum("ij,ij->i", merged, log_share), log_share[:, -1]


def _xlogx(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.log(np.where(values > 0, values, 1.0))

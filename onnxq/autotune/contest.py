"""Which of several models is the fastest, as far as can be told on a machine that does other things too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
"""``[turns, models]``, in seconds."""


def clearly_faster(times: Times, one: int, other: int) -> bool:
    """Whether model ``one`` needs less time than ``other``: in all likelihood, not just in most turns."""
    return lowest_gain(times, one, other) > 1


def lowest_gain(times: Times, one: int, other: int) -> float:
    """How many times as fast as ``other`` model ``one`` is at least, with 97.5 % confidence.

    The true median of the ratio of their times hardly ever lies below the k-th smallest of n, where k is
    n / 2 - 0.98 sqrt(n): that few of n throws of a coin hardly ever show heads.
    """
    ratios = np.sort(times[:, other] / times[:, one])
    rank = math.floor(len(ratios) / 2 - 0.98 * math.sqrt(len(ratios)))
    return float(ratios[max(rank, 0)])


def gain(times: Times, one: int, other: int) -> float:
    """How many times as fast as ``other`` model ``one`` is: the median over turns."""
    return float(np.median(times[:, other] / times[:, one]))


def winner(times: Times, models: Sequence[int]) -> int:
    """The first of ``models`` that no later one clearly beats, one after the other."""
    best = models[0]
    for model in models[1:]:
        if clearly_faster(times, model, best):
            best = model
    return best

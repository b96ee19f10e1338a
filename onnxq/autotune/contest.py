"""Which of several models is the fastest, as far as can be told on a machine that does other things too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
"""``[turns, models]``, in seconds."""

Heats = Sequence[Times]
"""Times of several races of the same models, each with new sessions: some sessions are faster than others of
the same model all the time, as their memory happens to lie."""


def clearly_faster(heats: Heats, one: int, other: int) -> bool:
    """Whether model ``one`` needs less time than ``other``: in all likelihood, and in every heat."""
    return lowest_gain(heats, one, other) > 1


def lowest_gain(heats: Heats, one: int, other: int) -> float:
    """How many times as fast as ``other`` model ``one`` is at least, in the heat that speaks least for it."""
    return min(_lowest(times[:, other] / times[:, one]) for times in heats)


def _lowest(ratios: Times) -> float:
    """What their true median is at least, with 97.5 % confidence.

    It hardly ever lies below the k-th smallest of n, where k is n / 2 - 0.98 sqrt(n): that few of n throws of
    a coin hardly ever show heads.
    """
    rank = math.floor(len(ratios) / 2 - 0.98 * math.sqrt(len(ratios)))
    return float(np.sort(ratios)[max(rank, 0)])


def gain(heats: Heats, one: int, other: int) -> float:
    """How many times as fast as ``other`` model ``one`` is: the median over turns."""
    times = np.concatenate(heats)
    return float(np.median(times[:, other] / times[:, one]))


def fastest(heats: Heats, models: Sequence[int]) -> int:
    """Of ``models``, the one with the least median."""
    return min(models, key=lambda model: float(np.median(np.concatenate(heats)[:, model])))


def winner(heats: Heats, models: Sequence[int]) -> int:
    """The first of ``models`` that no later one clearly beats, one after the other."""
    best = models[0]
    for model in models[1:]:
        if clearly_faster(heats, model, best):
            best = model
    return best

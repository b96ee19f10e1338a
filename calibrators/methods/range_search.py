"""Search for the ends of a range: first coarsely over all of it, then finer around the best candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RATIO = 0.75
"""Ratio of neighbouring candidates of the first round: each cuts a side to this share of the one before."""

CUTS = 20
"""Number of candidates per side in the first round: down to 0.4 % of the range."""

ZOOM = 4
"""Factor by which each further round is finer around the best candidate so far."""

ROUNDS = 3

OCTAVES = 3
"""Powers of two by which a range on a floating-point grid may be cut; less leave no number of use."""

STEPS, FINER = 16, 4
"""Candidates per octave in its first round, and how much closer they lie in the second round."""


def best_shares(loss: Callable[[Floats], Floats], free: tuple[bool, bool]) -> Floats:
    """Find the shares of the low and the high end, ``[2]``, with the least loss.

    Args:
        loss: shares ``[K, 2]`` in (0, 1] -> losses ``[K]``. Of equal losses the first counts; it cuts least.
        free: whether the low end and the high end may move.
    """
    best = np.zeros(2)
    for moves in _rounds():
        cuts = np.maximum(best + _pairs(moves, free), 0)
        best = cuts[np.argmin(loss(RATIO**cuts))]
    return np.asarray(RATIO**best, np.float64)


def best_share(loss: Callable[[Floats], Floats]) -> Floats:
    """Find the share of both ends, ``[2]``, with the least loss on a floating-point grid.

    Between powers of two the loss goes up and down, so the candidates lie closer than on integer grids. A
    share of up to 2 is tried: a wider range loses nothing but the least numbers.

    Args:
        loss: shares ``[K, 2]`` in (0, 2] -> losses ``[K]``.
    """
    octaves = 1 - np.arange((OCTAVES + 1) * STEPS) / STEPS
    best = octaves[np.argmin(loss(_alike(octaves)))]
    near = best + np.arange(-FINER, FINER + 1) / (STEPS * FINER)
    return np.asarray(_alike(near)[np.argmin(loss(_alike(near)))], np.float64)


def _alike(octaves: Floats) -> Floats:
    """Compute the shares ``[K, 2]`` that cut both ends by the same powers of two, ``[K]``."""
    return np.asarray(np.repeat(2.0 ** octaves[:, None], 2, axis=1), np.float64)


def _rounds() -> Iterator[Floats]:
    """Yield, for each round, the moves of one side from the best candidate so far, counted in cuts."""
    yield np.arange(CUTS, dtype=np.float64)
    for number in range(1, ROUNDS):
        yield np.arange(-ZOOM, ZOOM + 1) / ZOOM**number


def _pairs(moves: Floats, free: tuple[bool, bool]) -> Floats:
    """Combine every move of the low side with every move of the high side, ``[K, 2]``; a fixed side stays."""
    sides = (moves if moving else np.zeros(1) for moving in free)
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)

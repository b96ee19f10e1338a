"""Levels moved one by one for as long as that makes the error of the layer's output smaller."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.algorithms.rounding import BLOCK, Grid

Doubles = NDArray[np.float64]


def settle(wanted: Doubles, rounded: Doubles, second: Doubles, grid: Grid, rounds: int = 1) -> Doubles:
    """``rounded`` with less ``e H e^T`` for the errors e of each row; never with more.

    Every column in turn takes the level that is best with all others as they are: coordinate descent.

    Args:
        wanted: what is rounded, ``[G, O, K]``.
        rounded: a first answer on the grid.
        second: H, symmetric and positive definite, ``[G, K, K]``.
        grid: where weights may lie.
        rounds: how often each column has its turn.
    """
    best, columns = rounded.copy(), wanted.shape[2]
    pull = (wanted - best) @ second  # half the slope of the error along each weight, downwards
    for start in list(range(0, columns, BLOCK)) * rounds:
        part = slice(start, min(start + BLOCK, columns))
        before = best[:, :, part].copy()
        _settle_block(best, pull, second, grid, part)
        moved = best[:, :, part] - before
        here = pull[:, :, part].copy()
        pull -= moved @ second[:, part]
        pull[:, :, part] = here
    return np.asarray(best)


def _settle_block(best: Doubles, pull: Doubles, second: Doubles, grid: Grid, part: slice) -> None:
    """Change neighbouring columns of ``best``; ``pull`` follows in these columns alone."""
    for k in range(part.start, part.stop):
        curvature = second[:, k, k, None]
        column = (slice(None), slice(None), k)
        better = grid.nearest(best[column] + pull[column] / curvature, column)
        moved = better - best[column]
        best[column] = better
        pull[:, :, part] -= moved[:, :, None] * second[:, None, k, part]

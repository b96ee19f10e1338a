"""GPTQ for weights in blocks: scale, zero point and levels with the least error of the layer's output.

The error of a row is ``e H e^T`` with its rounding errors e and the second moments ``H = E[x x^T]`` of the
inputs. With ``H = R R^T``, R upper triangular, it is the sum over k of
``R_kk^2 (e_k + sum over j < k of e_j R_jk / R_kk)^2``: columns are rounded one after the other, and each one
compensates the errors of those before it (`gptq.py` has the same for a fixed grid).

Each block has its own scale and zero point. They are chosen when its first column is reached, by least error
of the weights as compensation has left them, weighted by ``R_kk^2``: what is left of an input's moment when
later columns have compensated what they can.

Blocks are taken in the order of falling moments, and the columns of a block too ("act order" of GPTQ, as far
as blocks stay together): what matters most is rounded first, and compensated by most others.

Sources: Frantar et al., "OPTQ", 2022; Chee et al., "QuIP", 2023 (the form with R).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from calibrators.collect import processors
from onnxq.algorithms.weights.block_scales import BlockGrid, BlockWeights, Floats, fit_scales

Doubles = NDArray[np.float64]

ROWS = 1024
"""The number of rows that a thread rounds at a time: with fewer, numpy's calls take longer than its work."""

DAMPING = 0.01
"""What is added to the diagonal of the moments, relative to its mean."""


def gptq_blocks(
    rows: Callable[[int, int], Floats],
    shape: tuple[int, int],
    grid: BlockGrid,
    moments: Sequence[Doubles],
    threads: int = 0,
) -> BlockWeights:
    """Round a matrix to ``grid`` with GPTQ.

    Args:
        rows: returns rows ``start`` to ``stop`` of the matrix, ``[stop - start, K]``; called on each thread.
        shape: the shape of the matrix, ``(R, K)``.
        grid: the numbers to round to.
        moments: the second moments of successive inputs, positive definite, ``[k, k]`` each; all k but the
            last are multiples of the block size, and their sum is K. Inputs of different ones count as
            uncorrelated.
        threads: the number of threads; 0: one for each processor.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    count, columns = shape
    blocks = -(-columns // grid.size)
    levels = np.empty((count, blocks, grid.size), np.uint8)
    scale, zero = np.empty((count, blocks), np.float32), np.empty((count, blocks), np.uint8)

    def work(start: int) -> None:
        stop = min(start + ROWS, count)
        exact = np.zeros((blocks * grid.size, stop - start), np.float32)
        exact[:columns] = rows(start, stop).T
        for where, part in parts:
            here = slice(where.start // grid.size, where.stop // grid.size)
            found = _rounded(exact[where], grid, part)
            levels[start:stop, here], scale[start:stop, here] = found.levels, found.scale
            zero[start:stop, here] = found.zero

    # One thread of BLAS for each part, so that the result does not depend on the number of processors.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads or processors()) as pool:
        parts = _parts(moments, grid.size)
        for _ in pool.map(work, range(0, count, ROWS)):
            pass
    return BlockWeights(levels, scale, zero)


@dataclass(frozen=True)
class _Part:
    """What rounding needs of the moments of some inputs.

    Attributes:
        order: the order in which columns are rounded: blocks stay together.
        factor: ``R_jk / R_kk`` in this order, ``[k, k]``.
        importance: ``R_kk^2`` in this order, ``[k, 1]``.
    """

    order: NDArray[np.intp]
    factor: Floats
    importance: Floats


def _parts(moments: Sequence[Doubles], size: int) -> list[tuple[slice, _Part]]:
    """Prepare the moments, and the columns that each of them is about."""
    found, start = list[tuple[slice, _Part]](), 0
    for each in moments:
        stop = start + -(-len(each) // size) * size
        found.append((slice(start, stop), _part(_filled(each, stop - start), size)))
        start = stop
    return found


def _filled(moments: Doubles, count: int) -> Doubles:
    """Damp the moments, and fill them up to the ``count`` inputs of whole blocks."""
    mean = float(np.trace(moments)) / len(moments)
    filled = np.zeros((count, count))
    filled[: len(moments), : len(moments)] = moments
    filled[np.diag_indices(count)] += DAMPING * mean if mean > 0 else 1.0
    return filled


def _part(moments: Doubles, size: int) -> _Part:
    diagonal = np.diag(moments).reshape(-1, size)
    blocks = np.argsort(-diagonal.mean(axis=1), kind="stable")
    inside = np.argsort(-diagonal, axis=1, kind="stable")
    order = (blocks[:, None] * size + inside[blocks]).reshape(-1)
    triangle = np.linalg.cholesky(moments[np.ix_(order, order)][::-1, ::-1])[::-1, ::-1]
    left = np.diag(triangle)
    return _Part(order, (triangle / left).astype(np.float32), np.square(left)[:, None].astype(np.float32))


def _rounded(exact: Floats, grid: BlockGrid, part: _Part) -> BlockWeights:
    """Round weights ``[K, R]`` of whole blocks."""
    exact = exact[part.order]
    errors, carried = np.empty_like(exact), np.zeros_like(exact)
    levels = np.empty(exact.shape, np.uint8)
    blocks, count = len(exact) // grid.size, exact.shape[1]
    scales, zeros = np.empty((count, blocks), np.float32), np.empty((count, blocks), np.uint8)
    for start in range(0, len(exact), grid.size):
        here, later = slice(start, start + grid.size), slice(start + grid.size, None)
        wanted = exact[here] + carried[here]
        importance = np.broadcast_to(part.importance[here], wanted.shape)
        scale, zero = fit_scales(wanted, importance, grid)
        inside = part.factor[here, here]
        for k, column in enumerate(wanted):
            level = np.clip(np.rint(column / scale), -zero, grid.highest - zero)
            levels[start + k] = level + zero
            errors[start + k] = exact[start + k] - level * scale
            wanted[k + 1 :] += inside[k, k + 1 :, None] * errors[start + k]
        carried[later] += part.factor[here, later].T @ errors[here]
        place = part.order[start] // grid.size
        scales[:, place], zeros[:, place] = scale, zero
    stored = np.empty_like(levels)
    stored[part.order] = levels
    return BlockWeights(np.ascontiguousarray(stored.T).reshape(count, blocks, -1), scales, zeros)

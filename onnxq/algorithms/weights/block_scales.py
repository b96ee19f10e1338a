"""Scales and zero points of weights in blocks, by least squared error; `quantize_blocks` needs no data.

``min over s, z of sum h * (w - s * t)^2`` with ``t = clip(round(w / s), -z, L - z)``, for each block alone;
L is the highest level. For given levels t, the best scale is ``<hw, t> / <ht, t>``, and the error left is
``<hw, w> - <hw, t>^2 / <ht, t>``: so each trial costs one rounding, and gives its best scale too. First,
multiples of the scale that covers the block are tried, then scale and zero point are fitted in turns: the
scale as above, the zero point as the mean of ``t - w / s`` (the alternation of HQQ, Badri and Shaji 2023,
with the squared error in place of a norm below 1).

h is the importance of a weight: the mean square of its input, if that is known. Otherwise it is the product
of two guesses:

- the inverse of the mean square of the weights of its input channel. A factor can be moved between an input
  channel and the layer before it without a change of the network, and norms are folded into the weights
  behind them like this. What is multiplied with small weights is likely to be large.
- its magnitude plus the mean magnitude of its block, as in ggml's quantizers without an importance matrix:
  large weights are not clipped for the sake of many small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrators.collect import processors
from onnxq.core.numerics import SMALLEST_SCALE
from onnxq.core.plan import LEAST_SCALE

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

MULTIPLES = {2: (0.55, 0.7, 0.85, 1.0, 1.15), 4: (0.84, 0.9, 0.96, 1.01, 1.06), 8: (0.99, 1.0)}
"""Bits -> the multiples of the covering scale that are tried. With many levels, clipping gains nothing."""

ROUNDS = 1
"""The number of alternations; more gain less than 0.01 dB."""

SAMPLED = (16, 64)
"""The number of places, and of rows at each, that the importance of input channels is estimated from."""

LEAST_SHARE = 0.01
"""The least mean square of an input channel, as a share of that of the matrix: it bounds the importance."""

CHUNK = 2**17
"""The number of weights that a thread works on at a time: they and all intermediate results fit its cache."""


@dataclass(frozen=True)
class BlockGrid:
    """The numbers that the weights of a block are rounded to: ``(level - zero) * scale``.

    Attributes:
        bits: 2, 4 or 8; levels are 0 to ``2^bits - 1``.
        symmetric: the zero point is the middle level, ``2^(bits - 1)``.
        size: the number of weights in a block.
        scale_type: the float type that scales are rounded to, before levels are chosen: ``np.float32``,
            ``np.float16`` or bfloat16.
    """

    bits: int
    symmetric: bool
    size: int
    scale_type: Any = np.float32

    @property
    def highest(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks."""
        return self.highest // 2 + 1


@dataclass(frozen=True)
class BlockWeights:
    """A matrix in blocks along its second axis; the last block of a row is filled with zeros.

    Attributes:
        levels: ``[R, blocks, size]``.
        scale: ``[R, blocks]``, in float32, exact in the grid's scale type.
        zero: zero points, ``[R, blocks]``.
    """

    levels: Bytes
    scale: Floats
    zero: Bytes

    def part(self, rows: slice) -> BlockWeights:
        """Return some of the rows."""
        return BlockWeights(self.levels[rows], self.scale[rows], self.zero[rows])

    def reals(self, columns: int) -> Floats:
        """The numbers that the levels stand for: ``[R, columns]``."""
        shifted = self.levels.astype(np.float32) - self.zero[..., None]
        return (shifted * self.scale[..., None]).reshape(len(self.scale), -1)[:, :columns]


def quantize_blocks(
    rows: Callable[[int, int], Floats],
    shape: tuple[int, int],
    grid: BlockGrid,
    threads: int = 0,
    squares: Floats | None = None,
) -> BlockWeights:
    """Round a matrix to ``grid``, in parts on several threads.

    Args:
        rows: returns rows ``start`` to ``stop`` of the matrix, ``[stop - start, K]``; called on each thread.
        shape: the shape of the matrix, ``(R, K)``.
        grid: the numbers to round to.
        threads: the number of threads; 0: one for each processor.
        squares: the mean square of each input, ``[K]``, which is the importance of its weights; guessed if
            None.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    count, columns = shape
    blocks = -(-columns // grid.size)
    levels = np.empty((count, blocks, grid.size), np.uint8)
    scale = np.empty((count, blocks), np.float32)
    zero = np.empty((count, blocks), np.uint8)
    step = max(1, CHUNK // (blocks * grid.size))
    importance = np.ones(blocks * grid.size, np.float32)
    importance[:columns] = _importance(rows, count) if squares is None else _bounded(squares)
    importance = importance.reshape(blocks, grid.size).T

    def work(start: int) -> None:
        part = np.zeros((min(step, count - start), blocks * grid.size), np.float32)
        part[:, :columns] = rows(start, start + len(part))
        where = slice(start, start + len(part))
        turned = np.ascontiguousarray(part.reshape(-1, grid.size).T)
        weighting = np.tile(importance, (1, len(part)))
        if squares is None:
            weighting *= _relative_magnitude(turned)
        found = _quantized(turned, weighting, grid)
        levels[where] = found.levels.reshape(len(part), blocks, -1)
        scale[where], zero[where] = (each.reshape(-1, blocks) for each in (found.scale, found.zero))

    with ThreadPoolExecutor(threads or processors()) as pool:
        for _ in pool.map(work, range(0, count, step)):
            pass
    return BlockWeights(levels, scale, zero)


def _importance(rows: Callable[[int, int], Floats], count: int) -> Floats:
    """Estimate the importance of each input channel, ``[K]``, from some of ``count`` rows."""
    places, each = SAMPLED
    starts = np.unique(np.linspace(0, max(count - each, 0), places).astype(int))
    with np.errstate(over="ignore", invalid="ignore"):  # weights that are not finite are refused later
        parts = [np.square(rows(int(start), min(count, int(start) + each))) for start in starts]
        moments = np.concatenate(parts).mean(axis=0)
        mean = moments.mean()
        return np.ones_like(moments) if mean == 0 else mean / np.maximum(moments, LEAST_SHARE * mean)


def _bounded(squares: Floats) -> Floats:
    """Turn mean squares into importance: no input counts for nothing."""
    mean = float(squares.mean())
    return np.asarray(squares / mean + LEAST_SHARE, np.float32) if mean > 0 else np.ones_like(squares)


def _relative_magnitude(blocks: Floats) -> Floats:
    """The magnitude of each weight of ``[size, B]`` beside that of its block, plus 1."""
    with np.errstate(over="ignore", invalid="ignore"):  # weights that are not finite are refused later
        magnitude = np.abs(blocks)
        return np.asarray(magnitude / _usable(magnitude.mean(axis=0)) + 1, np.float32)


def _quantized(blocks: Floats, importance: Floats, grid: BlockGrid) -> BlockWeights:
    """Round blocks ``[size, B]``: the levels are ``[B, size]``, scales and zero points ``[B]``."""
    trials = _fitted(blocks, importance, grid)
    levels = trials.levels(trials.scale, trials.zero) + trials.zero
    return BlockWeights(levels.T.astype(np.uint8), trials.scale, trials.zero.astype(np.uint8))


def fit_scales(blocks: Floats, importance: Floats, grid: BlockGrid) -> tuple[Floats, Floats]:
    """Find scales and zero points of blocks by least squared error.

    Args:
        blocks: the weights ``[size, B]``.
        importance: the weight of each squared error, ``[size, B]``.
        grid: the numbers to round to.

    Returns:
        Scales ``[B]``, exact in the grid's scale type, and zero points ``[B]``, whole numbers.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    trials = _fitted(blocks, importance, grid)
    return trials.scale, trials.zero


def _fitted(blocks: Floats, importance: Floats, grid: BlockGrid) -> _Trials:
    trials = _Trials(blocks, importance, grid)
    scale, zero = trials.scale, trials.zero
    for multiple in MULTIPLES[grid.bits]:
        trials.try_out(scale * np.float32(multiple), zero)
    for _ in range(ROUNDS):
        trials.alternate()
    trials.scale = _stored(trials.scale, grid)
    return trials


class _Trials:
    """The best scale and zero point of each block so far.

    Blocks are columns, so that numpy works on long rows.

    Attributes:
        scale: ``[B]``.
        zero: ``[B]``, whole numbers.
    """

    def __init__(self, blocks: Floats, importance: Floats, grid: BlockGrid) -> None:
        self.scale, self.zero = _covering(blocks, grid)
        self._blocks, self._grid, self._importance = blocks, grid, importance
        self._weighted = blocks * self._importance
        self._explained = np.zeros_like(self.scale)  # the part of <hw, w> that the levels explain
        self._rounded, self._product = np.empty_like(blocks), np.empty_like(blocks)

    def levels(self, scale: Floats, zero: Floats) -> Floats:
        """Round to levels minus zero points: ``[size, B]``, valid until the next call."""
        levels = np.multiply(self._blocks, 1 / scale, out=self._rounded)
        np.rint(levels, out=levels)
        np.maximum(levels, -zero, out=levels)
        return np.minimum(levels, self._grid.highest - zero, out=levels)

    def try_out(self, scale: Floats, zero: Floats) -> None:
        """Keep the best scale for the levels that ``scale`` and ``zero`` give, where the error is less."""
        levels = self.levels(scale, zero)
        along = np.multiply(self._weighted, levels, out=self._product).sum(axis=0)
        norm = np.square(levels, out=self._product)
        norm = np.multiply(norm, self._importance, out=self._product).sum(axis=0)
        fitted = along / np.where(norm > 0, norm, np.float32(1))
        better = (fitted * along > self._explained) & (fitted >= SMALLEST_SCALE)
        self._explained = np.where(better, fitted * along, self._explained)
        self.scale, self.zero = np.where(better, fitted, self.scale), np.where(better, zero, self.zero)

    def alternate(self) -> None:
        """Fit the zero point to the levels, then try it with the scale; symmetric blocks keep theirs."""
        zero = self.zero
        if not self._grid.symmetric:
            levels = self.levels(self.scale, zero)
            np.multiply(self._blocks, 1 / self.scale, out=self._product)
            shift = np.subtract(levels, self._product, out=self._product).mean(axis=0)
            zero = np.rint(zero + shift).clip(0, self._grid.highest)
        self.try_out(self.scale, zero)


def _covering(blocks: Floats, grid: BlockGrid) -> tuple[Floats, Floats]:
    """The scale and zero point whose levels reach from the least to the largest weight, zero included.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    low, high = np.minimum(blocks.min(axis=0), 0), np.maximum(blocks.max(axis=0), 0)
    if not np.isfinite(high - low).all():
        raise ValueError("weights are NaN or infinite")
    if grid.symmetric:
        scale = np.maximum(-low / grid.middle, high / (grid.highest - grid.middle))
        return _usable(scale), np.full_like(scale, grid.middle)
    scale = _usable((high - low) / np.float32(grid.highest))
    return scale, np.rint(-low / scale).clip(0, grid.highest)


def _usable(scale: Floats) -> Floats:
    """Replace scales that are zero, or too small to divide by, by 1."""
    return np.where(scale >= SMALLEST_SCALE, scale, np.float32(1))


def _stored(scale: Floats, grid: BlockGrid) -> Floats:
    """Round scales to the type that they are stored in, which is not to make them vanish."""
    least = LEAST_SCALE if grid.scale_type == np.float16 else SMALLEST_SCALE
    stored: Floats = np.maximum(scale, np.float32(least)).astype(grid.scale_type).astype(np.float32)
    return stored

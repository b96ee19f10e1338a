"""Second moments of the input rows of layers (im2col), from runs of the float model.

``E[x x^T]`` is, up to a factor, the Hessian of a layer's squared output error with respect to each row of its
weights: the output error of ``W + dW`` is ``tr(dW E[x x^T] dW^T)``.

An estimate of a large matrix from few samples overfits these samples. So the covariance is shrunk towards a
multiple of the identity, depending on how much it varies between batches.
Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004. Here
the independent observations are batches or sets of batches, because the rows of one sample are correlated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.context import Arrays, CorrectionContext
from onnxq.algorithms.layers.im2col import Floats, finite, im2col_rows
from onnxq.algorithms.layers.matrices import MatrixLayer, in_parts

Doubles = NDArray[np.float64]

ROWS = 16
"""The number of rows for each input of a layer.

The moments of K inputs have K^2 entries, so their estimate needs several times K rows.
"""

FEWEST = 8
"""The smallest number of rows of a sample."""

UNITS = 16
"""The smallest number of sets of batches that are compared, if there are enough batches.

More sets would take longer without a better estimate.
"""

MOST_BYTES = 2**28
"""The memory limit for the moments that are gathered in one pass over the samples.

A layer with more inputs has a block diagonal matrix: inputs of different blocks are treated as uncorrelated.
"""

LEAST = 1e-5
"""The damping, relative to the mean of the diagonal and added to it.

Without it, inputs that are always zero or always equal would make the matrix singular.
"""

UNKNOWN = 0.01
"""The shrinkage towards the identity if there is only one batch, so that it cannot be estimated."""

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class SecondMoments:
    """The moments of the input rows of one layer.

    Attributes:
        covariance: the covariance of the rows, ``[G, K, K]``; with B blocks of inputs,
            ``[G * B, K / B, K / B]``.
        mean: the mean of the rows, ``[G, K]``; with B blocks of inputs, ``[G * B, K / B]``.
        doubt: the estimated squared error of the covariance, summed over all entries, ``[G]`` or ``[G * B]``;
            NaN if there was only one batch.
        rows: the number of rows.
    """

    covariance: Floats
    mean: Doubles
    doubt: Doubles
    rows: int

    @property
    def second(self) -> Doubles:
        """The matrix ``E[x x^T]`` of these rows."""
        return np.asarray(self.covariance + self.mean[:, :, None] * self.mean[:, None, :])

    @property
    def damped(self) -> Doubles:
        """The estimate of ``E[x x^T]`` for unseen rows: shrunk, damped and positive definite."""
        covariance, size = self.covariance.astype(np.float64), self.covariance.shape[-1]
        middle = np.trace(covariance, axis1=1, axis2=2) / size
        whole = middle + np.square(self.mean).sum(axis=1) / size
        distance = np.square(covariance).sum(axis=(1, 2)) - size * middle**2
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.nan_to_num(self.doubt / distance, nan=UNKNOWN, posinf=1.0).clip(max=1.0)
        towards = np.where(whole > 0, share * middle + LEAST * whole, 1.0)[:, None, None] * np.eye(size)
        return np.asarray(self.second - share[:, None, None] * covariance + towards)


def gather_moments(
    model: ir.Model, layers: Sequence[MatrixLayer], context: CorrectionContext
) -> Iterator[list[tuple[MatrixLayer, SecondMoments]]]:
    """Yield the moments of layers in order, for as many layers at a time as fit into memory.

    Args:
        model: the float model.
        layers: the layers.
        context: the samples to fit on and the options.
    """
    for part in in_parts(layers, _bytes, MOST_BYTES):
        yield _together(model, part, context)


def _bytes(layer: MatrixLayer) -> int:
    return 4 * layer.shape[0] * layer.shape[2] * _width(layer)


def _width(layer: MatrixLayer) -> int:
    """Return the number of columns of a block: all columns, unless their moments exceed the memory limit."""
    groups, _, inputs = layer.shape
    blocks = -(-4 * groups * inputs * inputs // MOST_BYTES)
    return -(-inputs // min(blocks, inputs))


def in_blocks(matrices: NDArray[_Number], width: int) -> NDArray[_Number]:
    """Split ``[G, N, K]`` along K into B blocks, the last one padded with zeros: ``[G * B, N, width]``."""
    groups, count, inputs = matrices.shape
    if width >= inputs:
        return matrices
    padded = np.pad(matrices, ((0, 0), (0, 0), (0, -inputs % width)))
    split = padded.reshape(groups, count, -1, width).transpose(0, 2, 1, 3)
    return np.asarray(split.reshape(-1, count, width))


def out_of_blocks(blocks: NDArray[_Number], inputs: int) -> NDArray[_Number]:
    """Invert `in_blocks` for K = ``inputs``."""
    _, count, width = blocks.shape
    number = -(-inputs // width)
    joined = blocks.reshape(-1, number, count, width).transpose(0, 2, 1, 3)
    return np.asarray(joined.reshape(-1, count, number * width)[:, :, :inputs])


def _together(
    model: ir.Model, layers: Sequence[MatrixLayer], context: CorrectionContext
) -> list[tuple[MatrixLayer, SecondMoments]]:
    nodes = {node.name: node for node in model.graph}
    samples = max(1, sum(batch.count for batch in context.fit))
    limits = [max(FEWEST, ROWS * layer.shape[2] // samples) for layer in layers]
    picks = [(layer, nodes[layer.name], limit) for layer, limit in zip(layers, limits, strict=True)]
    look = partial(_rows, picks, context.config.seed)
    sums = [_Sums(layer.shape[0], layer.shape[2], _width(layer), len(context.fit)) for layer in layers]
    for found in context.watch(model, [layer.data.tensor for layer in layers], look):
        for total, rows in zip(sums, found, strict=True):
            total.add(rows)
    return [(layer, total.moments()) for layer, total in zip(layers, sums, strict=True)]


def _rows(
    picks: Sequence[tuple[MatrixLayer, ir.Node, int]], seed: int, number: int, arrays: Arrays
) -> list[Floats]:
    """Select the rows of each layer in one batch, ``[G, n, K]``."""
    rng = np.random.default_rng((seed, number))
    found = (im2col_rows(node, arrays[layer.data.tensor], limit, rng) for layer, node, limit in picks)
    return [np.ascontiguousarray(finite(rows).transpose(1, 0, 2)) for rows in found]


def moments_of(parts: Iterable[Floats]) -> SecondMoments:
    """Compute the moments of the rows of some batches, ``[G, n, K]`` each."""
    parts = list(parts)
    total = _Sums(parts[0].shape[0], parts[0].shape[2], parts[0].shape[2], len(parts))
    for rows in parts:
        total.add(rows)
    return total.moments()


class _Sums:
    """Sums over the rows so far, minus an approximate mean: differences of large numbers would be inexact."""

    def __init__(self, groups: int, inputs: int, width: int, batches: int) -> None:
        self._width = width
        self._together = max(1, batches // UNITS)
        blocks = groups * -(-inputs // width)
        self._second = np.zeros((blocks, width, width), np.float32)
        self._first = np.zeros((blocks, width))
        self._squares = np.zeros(blocks)
        self._moves = np.zeros(blocks)
        self._origin: Floats | None = None
        self._counts: list[int] = []
        self._waiting: list[Floats] = []

    def add(self, rows: Floats) -> None:
        """Add ``rows [G, n, K]`` of the next batch; n may be 0."""
        if rows.shape[1]:
            self._waiting.append(in_blocks(rows, self._width))
        if len(self._waiting) == self._together:
            self._fold()

    def moments(self) -> SecondMoments:
        """Return the moments of all rows."""
        if self._waiting:
            self._fold()
        rows, counts = sum(self._counts), np.array(self._counts or [1])
        count = max(rows, 1)
        offset, second = self._first / count, self._second.astype(np.float64) / count
        origin = 0.0 if self._origin is None else self._origin[:, 0].astype(np.float64)
        covariance = second - offset[:, :, None] * offset[:, None, :]
        differing = self._squares / count - np.square(second).sum(axis=(1, 2))
        # An origin that is not the mean adds the variation of the units' means along the offset.
        away = np.square(offset).sum(axis=1)
        differing -= 2 * away * (self._moves / count - away)
        free = count**2 / np.square(counts, dtype=np.float64).sum() - 1  # units - 1 if all have equal size
        doubt = np.maximum(differing, 0) / free if len(counts) > 1 else np.full(len(second), np.nan)
        return SecondMoments(covariance.astype(np.float32), origin + offset, doubt, rows)

    def _fold(self) -> None:
        """Add the waiting batches to the sums as one unit."""
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting, axis=1)
        if self._origin is None:
            self._origin = rows.mean(axis=1, keepdims=True)
        rows = rows - self._origin
        count = rows.shape[1]
        first = np.ones((1, count), np.float32) @ rows  # ten times as fast as rows.sum
        product = rows.transpose(0, 2, 1) @ rows
        self._second += product
        self._first += first[:, 0]
        self._squares += np.square(product, dtype=np.float64).sum(axis=(1, 2)) / count
        self._moves += np.square(first[:, 0], dtype=np.float64).sum(axis=1) / count
        self._counts.append(count)
        self._waiting = []

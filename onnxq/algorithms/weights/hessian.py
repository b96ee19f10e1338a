"""Second moments of the rows that layers multiply with, from runs of the float model.

``E[x x^T]`` is the Hessian of a layer's squared output error with respect to each row of its weights: the
output error of ``W + dW`` is ``tr(dW E[x x^T] dW^T)``.

Few samples tell little of a large matrix: what fits them best does harm on others. So the covariance is drawn
towards a multiple of the identity, as far as it differs from batch to batch.
Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004; here batches,
some of them together, are what is independent, because the rows of one sample are alike.
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
"""Rows for each input of a layer: the moments of K inputs have K^2 entries, which take some times K rows."""

FEWEST = 8
"""Rows of a sample at least."""

UNITS = 16
"""The batches make so many parts or some more, which are compared with each other: still more would tell the
same, and take longer."""

MOST_BYTES = 2**28
"""Of the moments that are gathered in one pass over the samples. What a layer with more inputs has is kept in
blocks along the diagonal, as if inputs of different blocks had nothing to do with each other."""

LEAST = 1e-5
"""Of the mean of the diagonal, added to it: inputs that are always zero or always alike leave it singular."""

UNKNOWN = 0.01
"""How far the covariance is drawn towards the identity where a single batch does not tell."""

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class SecondMoments:
    """Of one layer's rows.

    Attributes:
        covariance: of the rows, ``[G, K, K]``; or, of B blocks of inputs, ``[G * B, K / B, K / B]``.
        mean: of the rows, ``[G, K]``, or of their blocks.
        doubt: the squared error, over all entries, that the covariance may have by the choice of the batches:
            ``[G]``. NaN if there was only one.
        rows: how many there were.
    """

    covariance: Floats
    mean: Doubles
    doubt: Doubles
    rows: int

    @property
    def second(self) -> Doubles:
        """``E[x x^T]`` of these rows."""
        return np.asarray(self.covariance + self.mean[:, :, None] * self.mean[:, None, :])

    @property
    def damped(self) -> Doubles:
        """``E[x x^T]`` as it may be expected of other rows, positive definite."""
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
    """The moments of ``layers``, in their order; as many at a time as there is memory for."""
    for part in in_parts(layers, _bytes, MOST_BYTES):
        yield _together(model, part, context)


def _bytes(layer: MatrixLayer) -> int:
    return 4 * layer.shape[0] * layer.shape[2] * _width(layer)


def _width(layer: MatrixLayer) -> int:
    """Columns of a block: all of them, unless their moments take too much memory."""
    groups, _, inputs = layer.shape
    blocks = -(-4 * groups * inputs * inputs // MOST_BYTES)
    return -(-inputs // min(blocks, inputs))


def in_blocks(matrices: NDArray[_Number], width: int) -> NDArray[_Number]:
    """``[G, N, K]`` -> ``[G * B, N, width]``: cut along K into B blocks, the last filled up with zeros."""
    groups, count, inputs = matrices.shape
    if width >= inputs:
        return matrices
    padded = np.pad(matrices, ((0, 0), (0, 0), (0, -inputs % width)))
    split = padded.reshape(groups, count, -1, width).transpose(0, 2, 1, 3)
    return np.asarray(split.reshape(-1, count, width))


def out_of_blocks(blocks: NDArray[_Number], inputs: int) -> NDArray[_Number]:
    """The inverse of `in_blocks`, for K = ``inputs``."""
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
    """Each layer's rows of one batch, as ``[G, n, K]``."""
    rng = np.random.default_rng((seed, number))
    found = (im2col_rows(node, arrays[layer.data.tensor], limit, rng) for layer, node, limit in picks)
    return [np.ascontiguousarray(finite(rows).transpose(1, 0, 2)) for rows in found]


def moments_of(parts: Iterable[Floats]) -> SecondMoments:
    """Of the rows of some batches, ``[G, n, K]`` each."""
    parts = list(parts)
    total = _Sums(parts[0].shape[0], parts[0].shape[2], parts[0].shape[2], len(parts))
    for rows in parts:
        total.add(rows)
    return total.moments()


class _Sums:
    """Of the rows so far, counted from about their mean: differences of large numbers would be inexact."""

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
        """``rows [G, n, K]`` of the next batch; it may have none."""
        if rows.shape[1]:
            self._waiting.append(in_blocks(rows, self._width))
        if len(self._waiting) == self._together:
            self._fold()

    def moments(self) -> SecondMoments:
        """Of all of them."""
        if self._waiting:
            self._fold()
        rows, counts = sum(self._counts), np.array(self._counts or [1])
        count = max(rows, 1)
        offset, second = self._first / count, self._second.astype(np.float64) / count
        origin = 0.0 if self._origin is None else self._origin[:, 0].astype(np.float64)
        covariance = second - offset[:, :, None] * offset[:, None, :]
        differing = self._squares / count - np.square(second).sum(axis=(1, 2))
        # An origin beside the mean adds most of what the means of the units differ along the way to it.
        away = np.square(offset).sum(axis=1)
        differing -= 2 * away * (self._moves / count - away)
        free = count**2 / np.square(counts, dtype=np.float64).sum() - 1  # units, less one, if all are alike
        doubt = np.maximum(differing, 0) / free if len(counts) > 1 else np.full(len(second), np.nan)
        return SecondMoments(covariance.astype(np.float32), origin + offset, doubt, rows)

    def _fold(self) -> None:
        """One more unit."""
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting, axis=1)
        if self._origin is None:
            self._origin = rows.mean(axis=1, keepdims=True)
        rows = rows - self._origin
        count = rows.shape[1]
        first = np.ones((1, count), np.float32) @ rows  # numpy's sums take ten times as long
        product = rows.transpose(0, 2, 1) @ rows
        self._second += product
        self._first += first[:, 0]
        self._squares += np.square(product, dtype=np.float64).sum(axis=(1, 2)) / count
        self._moves += np.square(first[:, 0], dtype=np.float64).sum(axis=1) / count
        self._counts.append(count)
        self._waiting = []

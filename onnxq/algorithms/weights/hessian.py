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
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import processors
from onnxq.algorithms.budget import TooLongError
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.layers.im2col import Floats, finite, im2col_rows
from onnxq.algorithms.layers.matrices import MatrixLayer, in_parts
from onnxq.algorithms.watching import Arrays

Doubles = NDArray[np.float64]

ROWS = 16
"""The number of rows for each input of a block.

The moments of K inputs have K^2 entries, so their estimate needs several times K rows.
"""

FEWEST = 8
"""The smallest number of rows of a sample."""

UNITS = 16
"""The smallest number of sets of batches that are compared, if there are enough batches.

More sets would take longer without a better estimate.
"""

WIDTHS = (1024, 512, 256, 128)
"""The largest number of inputs of a block; less where there is no time for more.

A layer with more inputs has a block diagonal matrix: inputs of different blocks are treated as uncorrelated.
So memory and time of a layer grow with its inputs, not with their square and their cube.
"""

PASSES = 3
"""About how many passes over the samples it takes to evaluate rounded weights, besides those that gather."""

MOST_BYTES = 2**28
"""The memory limit for what is gathered in one pass over the samples.

It also limits the blocks of a layer of many groups or very many inputs.
"""

ROW_BYTES = 2**26
"""The memory limit for the rows of a layer in one batch."""

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

    def of(self, part: slice) -> SecondMoments:
        """Return the moments of some of the G (times B) matrices."""
        return SecondMoments(self.covariance[part], self.mean[part], self.doubt[part], self.rows)

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
    model: ir.Model, layers: Sequence[MatrixLayer], context: CorrectionContext, pool: Executor
) -> Iterator[list[tuple[MatrixLayer, SecondMoments]]]:
    """Yield the moments of layers in order, for as many layers at a time as fit into memory.

    Args:
        model: the float model.
        layers: the layers.
        context: the samples to fit on, the options, and the time there is.
        pool: threads that add up the rows of several layers at a time.

    Raises:
        TooLongError: there is no time for it.
    """
    for picks in _affordable(layers, context):
        yield _in_one_pass(model, picks, context, pool)


def _affordable(layers: Sequence[MatrixLayer], context: CorrectionContext) -> list[list[_Pick]]:
    """Choose what to gather of the layers of each pass: the widest blocks for which there is time."""
    threads = context.config.threads or processors()
    counts = [batch.count for batch in context.fit] or [1]
    under_way = threads + 1 + _together(len(context.fit))

    def size(pick: _Pick) -> int:
        return pick.moment_bytes + under_way * max(counts) * pick.row_bytes

    for width in WIDTHS:
        picks = [_Pick.of(layer, width, counts) for layer in layers]
        passes = list(in_parts(picks, size, MOST_BYTES))
        work = sum(pick.work for pick in picks)
        try:
            context.budget.check((PASSES + len(passes)) * len(counts), work, threads)
        except TooLongError as error:
            shortest = error
        else:
            return passes
    raise shortest


def _together(batches: int) -> int:
    """Return how many batches are one unit."""
    return max(1, batches // UNITS)


@dataclass(frozen=True)
class _Pick:
    """What is gathered of a layer.

    Attributes:
        layer: the layer.
        width: the number of inputs of a block.
        limit: the largest number of rows of a sample.
        samples: the number of samples.
    """

    layer: MatrixLayer
    width: int
    limit: int
    samples: int

    @classmethod
    def of(cls, layer: MatrixLayer, widest: int, counts: Sequence[int]) -> _Pick:
        """Choose the width of the blocks and the number of rows.

        Args:
            layer: the layer.
            widest: the largest width of a block.
            counts: the number of samples of each batch.
        """
        groups, _, inputs = layer.shape
        blocks = max(-(-inputs // widest), -(-4 * groups * inputs * inputs // MOST_BYTES))
        width = -(-inputs // min(blocks, inputs))
        most, samples = ROW_BYTES // (4 * groups * inputs * max(counts)), sum(counts)
        return cls(layer, width, max(1, min(most, max(FEWEST, ROWS * width // samples))), samples)

    @property
    def work(self) -> float:
        """The multiply-adds of the moments, of their triangular factors, and of rounding; at most so many."""
        groups, outputs, inputs = self.layer.shape
        return groups * inputs * self.width * (self.limit * self.samples + self.width / 3 + 2 * outputs)

    @property
    def moment_bytes(self) -> int:
        return 4 * self.layer.shape[0] * self.layer.shape[2] * self.width

    @property
    def row_bytes(self) -> int:
        """The bytes of the rows of a sample."""
        return 4 * self.layer.shape[0] * self.layer.shape[2] * self.limit


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


def _in_one_pass(
    model: ir.Model, picks: Sequence[_Pick], context: CorrectionContext, pool: Executor
) -> list[tuple[MatrixLayer, SecondMoments]]:
    """Run the samples once, and add up the rows of several layers at a time: their sums are independent."""
    nodes = {node.name: node for node in model.graph}
    look = partial(_rows, [(pick, nodes[pick.layer.name]) for pick in picks], context.config.seed)
    sums = [_LayerSums(pick, len(context.fit)) for pick in picks]
    tensors = [pick.layer.data.tensor for pick in picks]
    for done, found in enumerate(context.watch(model, tensors, look)):
        context.progress("measuring inputs of layers", done, len(context.fit))
        steps = [step for total, rows in zip(sums, found, strict=True) for step in total.steps(rows)]
        list(pool.map(_Sums.fold, [total for total, rows in steps if total.take(rows)]))
    return [(pick.layer, total.moments()) for pick, total in zip(picks, sums, strict=True)]


def _rows(picks: Sequence[tuple[_Pick, ir.Node]], seed: int, number: int, arrays: Arrays) -> list[Floats]:
    """Select the rows of each layer in one batch, ``[G, n, K]``."""
    return [
        rows_of(node, arrays[pick.layer.data.tensor], pick.limit, np.random.default_rng((seed, number)))
        for pick, node in picks
    ]


def rows_of(node: ir.Node, data: NDArray[np.generic], limit: int, rng: np.random.Generator) -> Floats:
    """Select rows of a layer, ``[G, n, K]``, without NaN and infinities; arguments as for `im2col_rows`."""
    return np.ascontiguousarray(finite(im2col_rows(node, data, limit, rng)).transpose(1, 0, 2))


def moments_of(parts: Iterable[Floats]) -> SecondMoments:
    """Compute the moments of the rows of some batches, ``[G, n, K]`` each."""
    parts = list(parts)
    total = _Sums(parts[0].shape[0], parts[0].shape[2], len(parts))
    for rows in parts:
        if total.take(rows):
            total.fold()
    return total.moments()


class _LayerSums:
    """The sums of one layer; the blocks of its inputs are independent."""

    def __init__(self, pick: _Pick, batches: int) -> None:
        self._width = pick.width
        groups, _, inputs = pick.layer.shape
        self._sums = [_Sums(groups, pick.width, batches) for _ in range(-(-inputs // pick.width))]

    def steps(self, rows: Floats) -> list[tuple[_Sums, Floats]]:
        """Return what is to be added to which sums for ``rows [G, n, K]`` of the next batch."""
        return list(zip(self._sums, np.split(in_blocks(rows, self._width), len(self._sums)), strict=True))

    def moments(self) -> SecondMoments:
        """Return the moments of all rows."""
        found = [total.moments() for total in self._sums]
        if len(found) == 1:
            return found[0]
        covariance, mean, doubt = (
            np.concatenate(part)
            for part in zip(*((one.covariance, one.mean, one.doubt) for one in found), strict=True)
        )
        return SecondMoments(covariance, mean, doubt, found[0].rows)


class _Sums:
    """Sums over the rows so far, minus an approximate mean: differences of large numbers would be inexact."""

    def __init__(self, groups: int, inputs: int, batches: int) -> None:
        self._together = _together(batches)
        self._second = np.zeros((groups, inputs, inputs), np.float32)
        self._first = np.zeros((groups, inputs))
        self._squares = np.zeros(groups)
        self._moves = np.zeros(groups)
        self._origin: Floats | None = None
        self._counts: list[int] = []
        self._waiting: list[Floats] = []

    def take(self, rows: Floats) -> bool:
        """Take ``rows [G, n, K]`` of the next batch, n may be 0; return whether it is time to `fold`."""
        if rows.shape[1]:
            self._waiting.append(rows)
        return len(self._waiting) == self._together

    def moments(self) -> SecondMoments:
        """Return the moments of all rows."""
        if self._waiting:
            self.fold()
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

    def fold(self) -> None:
        """Add the waiting batches to the sums as one unit."""
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting, axis=1)
        self._waiting = []
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

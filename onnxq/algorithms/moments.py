"""Second moments of the rows that layers multiply with, from runs of the float model.

``E[x x^T]`` is the Hessian of a layer's squared output error with respect to each row of its weights: the
output error of ``W + dW`` is ``tr(dW E[x x^T] dW^T)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.layers import Layer, in_parts
from onnxq.algorithms.patches import Floats, patches
from onnxq.algorithms.workbench import Arrays, Workbench

ROWS = 16
"""Rows for each input of a layer: the moments of K inputs have K^2 entries, which take some times K rows."""

FEWEST = 8
"""Rows of a sample at least."""

MOST_BYTES = 2**28
"""Of the moments that are gathered in one pass over the samples. What a layer with more inputs has is kept in
blocks along the diagonal, as if inputs of different blocks had nothing to do with each other."""

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class Moments:
    """Of one layer's rows.

    Attributes:
        second: ``E[x x^T]``, ``[G, K, K]``; or, of B blocks of inputs, ``[G * B, K / B, K / B]``.
        rows: how many there were.
    """

    second: Floats
    rows: int


def gather_moments(
    model: ir.Model, layers: Sequence[Layer], bench: Workbench
) -> Iterator[list[tuple[Layer, Moments]]]:
    """The moments of ``layers``, in their order; as many at a time as there is memory for."""
    for part in in_parts(layers, _bytes, MOST_BYTES):
        yield _together(model, part, bench)


def _bytes(layer: Layer) -> int:
    return 4 * layer.shape[0] * layer.shape[2] * _width(layer)


def _width(layer: Layer) -> int:
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


def _together(model: ir.Model, layers: Sequence[Layer], bench: Workbench) -> list[tuple[Layer, Moments]]:
    nodes = {node.name: node for node in model.graph}
    samples = max(1, sum(batch.count for batch in bench.fit))
    limits = [max(FEWEST, ROWS * layer.shape[2] // samples) for layer in layers]
    picks = [(layer, nodes[layer.name], limit) for layer, limit in zip(layers, limits, strict=True)]
    look = partial(_rows, picks, bench.seed)
    sums = [_Sums(layer) for layer in layers]
    for found in bench.watch(model, [layer.data.tensor for layer in layers], look):
        for total, rows in zip(sums, found, strict=True):
            total.add(rows)
    return [(total.layer, total.moments()) for total in sums]


def _rows(
    picks: Sequence[tuple[Layer, ir.Node, int]], seed: int, number: int, arrays: Arrays
) -> list[Floats]:
    """Each layer's rows of one batch, as ``[G, n, K]``."""
    rng = np.random.default_rng((seed, number))
    found = (patches(node, arrays[layer.data.tensor], limit, rng) for layer, node, limit in picks)
    return [np.ascontiguousarray(rows.transpose(1, 0, 2)) for rows in found]


class _Sums:
    """Of the rows of one layer so far."""

    def __init__(self, layer: Layer) -> None:
        groups, _, inputs = layer.shape
        self.layer = layer
        self.rows = 0
        self._width = _width(layer)
        self._second = np.zeros((groups * -(-inputs // self._width), self._width, self._width), np.float32)
        self._waiting: list[Floats] = []

    def add(self, rows: Floats) -> None:
        """``rows [G, n, K]``; they are multiplied when there are as many as columns, which is cheaper."""
        self._waiting.append(rows)
        if sum(part.shape[1] for part in self._waiting) >= rows.shape[2]:
            self._fold()

    def moments(self) -> Moments:
        self._fold()
        count = max(self.rows, 1)
        self._second /= np.float32(count)
        return Moments(self._second, self.rows)

    def _fold(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting, axis=1)
        rows[~np.isfinite(rows)] = 0
        self.rows += rows.shape[1]
        blocks = in_blocks(rows, self._width)
        self._second += blocks.transpose(0, 2, 1) @ blocks
        self._waiting = []

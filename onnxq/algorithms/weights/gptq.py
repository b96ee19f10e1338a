"""GPTQ (OPTQ, LDLQ) for the weights of one layer, and coordinate descent on its result.

GPTQ minimizes the error of the layer's output, not the rounding error of each weight. The output error is
``tr(E H E^T)``, with the rounding errors E of the weights and the Hessian ``H = E[x x^T]``. With
``H = R R^T``, R upper triangular, it equals
``sum over k of R_kk^2 |E_k + sum over j < k of E_j R_jk / R_kk|^2``. So the columns are rounded one after the
other, and each column compensates the errors of the columns before it.
Sources: Frantar et al., "OPTQ", 2022; for the equivalence and this form (LDLQ): Chee et al., "QuIP", 2023.

The coordinate descent then moves single weights to other levels while that reduces the output error.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from calibrators.collect import processors
from calibrators.grid import Grid
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.matrices import MatrixLayer, matrices, weights, weights_of, with_own_weights
from onnxq.algorithms.weights.hessian import SecondMoments, gather_moments, in_blocks, out_of_blocks
from onnxq.core.numerics import dequantize, grid_of, quantize, spread
from onnxq.core.plan import QuantParams, QuantSpec

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
Reals = Doubles | Floats

_Real = TypeVar("_Real", np.float32, np.float64)

Columns = tuple[NDArray[np.intp] | slice, slice, NDArray[np.intp] | int]
"""The index of one column of each group of ``[G, O, K]``."""


ENOUGH = 64
"""The largest number of batches to take rows from, evenly spread.

The number of rows hardly depends on it. Lite0 and ResNet-20 round as well with 24 batches as with all, but a
layer of 8,192 inputs loses 0.7 dB with 26 of 51.
"""

INTEGERS = Grid(-128, 127, symmetric=True)
"""A grid that rounds to integers; the limits are those of each weight."""

BLOCK = 64
"""The number of columns whose errors are propagated to the later columns in one matrix product."""

SOLVED_BYTES = 2**25
"""The memory limit for the Hessians of a layer, in double precision, that are solved together."""


def gptq(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Round the weights of every layer of ``draft`` with GPTQ.

    Returns:
        The draft with rounded weights; None if there is no layer to round.
    """
    nodes = {node.name: node for node in draft.reference.graph}
    able = with_own_weights(draft.reference, draft.plan)
    rounded: dict[str, NDArray[np.float32]] = {}

    def one(found: tuple[MatrixLayer, SecondMoments]) -> tuple[str, NDArray[np.float32]]:
        layer, moments = found
        return layer.weight.tensor, _rounded(nodes[layer.name], layer, moments, draft)

    # Layers run in parallel on one thread each, because most matrices are too small for several threads.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(context.config.threads or processors()) as pool:
        for part in gather_moments(draft.reference, able, context.spread(ENOUGH), pool):
            for name, values in pool.map(one, part):
                rounded[name] = values
                context.progress("rounding weights", len(rounded), len(able))
    return draft.with_constants(rounded) if rounded else None


def _rounded(node: ir.Node, layer: MatrixLayer, moments: SecondMoments, draft: Draft) -> NDArray[np.float32]:
    """Round the layer's weights to their grid; the result has the layout of the operator's weights.

    Each output channel keeps rounding to nearest where GPTQ does not reduce its output error. Blocks of
    inputs are rounded one after the other, to save memory.
    """
    values = weights_of(node)
    assert values is not None
    params, spec = draft.plan.params[layer.weight.group], layer.weight.spec
    width = moments.mean.shape[1]

    def blocks(array: NDArray[np.generic]) -> Floats:
        return in_blocks(matrices(node, array), width)

    exact, grid = blocks(values), grid_of_weights(params, spec, values.shape, blocks)
    chosen = blocks(dequantize(quantize(values, params, spec), params, spec))
    together = max(1, SOLVED_BYTES // (8 * width * width))
    for start in range(0, len(exact), together):
        part = slice(start, start + together)
        chosen[part] = _better(
            exact[part], chosen[part], moments.of(part).damped, grid.of((part, slice(None)))
        )
    return weights(node, out_of_blocks(chosen, layer.shape[2]), values.shape)


def _better(exact: Floats, nearest: Floats, second: Doubles, grid: WeightGrid) -> Floats:
    """Round each row with GPTQ, or to nearest if that has the smaller output error; ``[G, O, K]``."""
    rounded = gptq_columns(exact, second, grid)
    weight = (second / np.trace(second, axis1=1, axis2=2)[:, None, None]).astype(np.float32)
    better = output_error(rounded - exact, weight) < output_error(nearest - exact, weight)
    return np.where(better[:, :, None], rounded, nearest)


@dataclass(frozen=True)
class WeightGrid:
    """The quantized values of weights: ``level * scale`` for levels of a grid between two limits.

    Attributes:
        scale: the scale of each weight, ``[G, O, K]``.
        lowest: the lowest level of each weight, zero point subtracted, ``[G, O, K]``.
        highest: the highest level of each weight, zero point subtracted, ``[G, O, K]``.
        grid: the grid of the levels: integers, or floating-point numbers.
    """

    scale: Reals
    lowest: Reals
    highest: Reals
    grid: Grid = INTEGERS

    def of(self, part: tuple[slice, slice]) -> WeightGrid:
        """Return the grid of some groups and some of their output channels."""
        return WeightGrid(self.scale[part], self.lowest[part], self.highest[part], self.grid)

    def nearest(self, values: NDArray[_Real], column: Columns) -> NDArray[_Real]:
        """Round ``values [G, O]`` of one column to the nearest values of the grid."""
        scale = np.asarray(self.scale[column], values.dtype)
        levels = self.grid.rounded(values / scale).clip(self.lowest[column], self.highest[column])
        return np.asarray(levels * scale, values.dtype)


def grid_of_weights(
    params: QuantParams,
    spec: QuantSpec,
    shape: tuple[int, ...],
    blocks: Callable[[NDArray[np.generic]], Reals],
) -> WeightGrid:
    """Build the grid of a weight tensor.

    Args:
        params: scale and zero point of the weights.
        spec: their number format.
        shape: their shape in the model.
        blocks: converts an array of this shape to matrices, ``[G, O, K]``.
    """
    scale, middle = (
        blocks(np.broadcast_to(spread(part, spec, shape), shape))
        for part in (params.scale, params.zero_point.astype(np.float64))
    )
    lowest, highest = spec.limits
    filled = np.where(scale == 0, 1.0, scale)  # 0: padding
    return WeightGrid(filled, lowest - middle, highest - middle, grid_of(spec))


def output_error(errors: NDArray[_Real], second: NDArray[_Real]) -> NDArray[_Real]:
    """Compute ``e H e^T`` of every row: errors ``[G, O, K]``, second ``[G, K, K]`` -> ``[G, O]``."""
    return np.asarray(((errors @ second) * errors).sum(axis=2))


def gptq_columns(exact: NDArray[_Real], second: Doubles, grid: WeightGrid) -> NDArray[_Real]:
    """Round weights to the grid with GPTQ, so that ``tr(E H E^T)`` of the rounding errors E is small.

    Columns are rounded in the order of decreasing diagonal of H ("act order" in GPTQ): the errors of the most
    important columns can be compensated by most others.

    Args:
        exact: the weights, ``[G, O, K]``.
        second: the Hessian H, symmetric and positive definite, ``[G, K, K]``.
        grid: the grid of the weights.

    Returns:
        The rounded weights, ``[G, O, K]``, computed in the precision of ``exact``.
    """
    order = np.argsort(-np.einsum("gkk->gk", second), axis=1, kind="stable")
    triangle = _upper(_permuted(second, order))
    factor = (triangle / np.einsum("gkk->gk", triangle)[:, None, :]).astype(exact.dtype)
    rounded, errors = np.empty_like(exact), np.empty_like(exact)
    carried = np.zeros_like(exact)
    groups, size = np.arange(len(exact)), exact.shape[2]
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        for k in range(start, end):
            column = (groups, slice(None), order[:, k])
            known = errors[:, :, start:k] @ factor[:, start:k, k, None]
            wanted = exact[column] + carried[:, :, k] + known[:, :, 0]
            rounded[column] = grid.nearest(wanted, column)
            errors[:, :, k] = exact[column] - rounded[column]
        carried[:, :, end:] += errors[:, :, start:end] @ factor[:, start:end, end:]
    return rounded


def _permuted(second: Doubles, order: NDArray[np.intp]) -> Doubles:
    rows = np.take_along_axis(second, order[:, :, None], axis=1)
    return np.take_along_axis(rows, order[:, None, :], axis=2)


def _upper(second: Doubles) -> Doubles:
    """Compute the upper triangular R with ``R R^T = second [G, K, K]``."""
    return np.array(np.linalg.cholesky(second[:, ::-1, ::-1])[:, ::-1, ::-1], np.float64)


def coordinate_descent(
    wanted: Doubles, rounded: Doubles, second: Doubles, grid: WeightGrid, rounds: int = 1
) -> Doubles:
    """Improve rounded weights by coordinate descent, to reduce ``e H e^T`` of the errors e of each row.

    Each column in turn gets the levels that are best while all other columns are fixed. The error of a row
    never increases.

    Args:
        wanted: the weights to approximate, ``[G, O, K]``.
        rounded: the initial solution, on the grid, ``[G, O, K]``.
        second: the Hessian H, symmetric and positive definite, ``[G, K, K]``.
        grid: the grid of the weights.
        rounds: the number of passes over all columns.

    Returns:
        The improved weights on the grid, ``[G, O, K]``.
    """
    best, columns = rounded.copy(), wanted.shape[2]
    pull = (wanted - best) @ second  # half the negative gradient of the error
    for start in list(range(0, columns, BLOCK)) * rounds:
        part = slice(start, min(start + BLOCK, columns))
        before = best[:, :, part].copy()
        _descend_block(best, pull, second, grid, part)
        moved = best[:, :, part] - before
        here = pull[:, :, part].copy()
        pull -= moved @ second[:, part]
        pull[:, :, part] = here
    return np.asarray(best)


def _descend_block(best: Doubles, pull: Doubles, second: Doubles, grid: WeightGrid, part: slice) -> None:
    """Update the columns ``part`` of ``best``, and ``pull`` in these columns only."""
    for k in range(part.start, part.stop):
        curvature = second[:, k, k, None]
        column = (slice(None), slice(None), k)
        better = grid.nearest(best[column] + pull[column] / curvature, column)
        moved = better - best[column]
        best[column] = better
        pull[:, :, part] -= moved[:, :, None] * second[:, None, k, part]

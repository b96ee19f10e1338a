"""GPTQ (OPTQ, LDLQ) for the weights of one layer, and coordinate descent on what it gives.

Weights rounded so that the layer's output changes least, not each weight: OPTQ, in the form of LDLQ.

The error of a layer's output is ``tr(E H E^T)`` with ``E`` the rounding errors of its weights and
``H = E[x x^T]``. With ``H = R R^T``, R upper triangular, it is
``sum over k of R_kk^2 |E_k + sum over j < k of E_j R_jk / R_kk|^2``: so the columns are rounded one after the
other, each together with what the errors before it ask for.
Frantar et al., "OPTQ", 2022; the equivalence and this form: Chee et al., "QuIP", 2023.

Levels moved one by one for as long as that makes the error of the layer's output smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from calibrators.collect import processors
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.matrices import MatrixLayer, matrices, weights, weights_of, with_own_weights
from onnxq.algorithms.weights.hessian import SecondMoments, gather_moments, in_blocks, out_of_blocks
from onnxq.core.numerics import dequantize, quantize, spread
from onnxq.core.plan import QuantParams, QuantSpec

Doubles = NDArray[np.float64]


Columns = tuple[NDArray[np.intp] | slice, slice, NDArray[np.intp] | int]
"""One column of each group of ``[G, O, K]``."""


BLOCK = 64
"""Columns whose errors are carried to those behind them in one product of matrices."""


def gptq(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Round the weights of every layer of ``draft`` by the second moments of its inputs."""
    nodes = {node.name: node for node in draft.reference.graph}
    able = with_own_weights(draft.reference, draft.plan)
    rounded: dict[str, NDArray[np.float32]] = {}

    def one(found: tuple[MatrixLayer, SecondMoments]) -> tuple[str, NDArray[np.float32]]:
        layer, moments = found
        return layer.weight.tensor, _rounded(nodes[layer.name], layer, moments, draft)

    # Layers side by side, each on one thread: most matrices are too small to be shared by several.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(context.config.threads or processors()) as pool:
        for part in gather_moments(draft.reference, able, context):
            rounded.update(pool.map(one, part))
            context.progress("rounding weights", len(rounded), len(able))
    return draft.with_constants(rounded) if rounded else None


def _rounded(node: ir.Node, layer: MatrixLayer, moments: SecondMoments, draft: Draft) -> NDArray[np.float32]:
    """The layer's weights on their grid, in the layout that the operator has them in."""
    values = weights_of(node)
    assert values is not None
    params, spec = draft.plan.params[layer.weight.group], layer.weight.spec
    second = moments.damped

    def blocks(array: NDArray[np.generic]) -> Doubles:
        return in_blocks(matrices(node, array).astype(np.float64), second.shape[1])

    exact, grid = blocks(values), grid_of_weights(params, spec, values.shape, blocks)
    nearest = blocks(dequantize(quantize(values, params, spec), params, spec))
    rounded = gptq_columns(exact, second, grid)
    better = output_error(rounded - exact, second) < output_error(nearest - exact, second)
    chosen = out_of_blocks(np.where(better[:, :, None], rounded, nearest), layer.shape[2])
    return weights(node, chosen.astype(np.float32), values.shape)


@dataclass(frozen=True)
class WeightGrid:
    """Where weights may lie: ``level * scale`` for whole levels between two limits; all ``[G, O, K]``."""

    scale: Doubles
    lowest: Doubles
    highest: Doubles

    def of(self, part: tuple[slice, slice]) -> WeightGrid:
        """That of some groups, and some of their outputs."""
        return WeightGrid(self.scale[part], self.lowest[part], self.highest[part])

    def nearest(self, values: Doubles, column: Columns) -> Doubles:
        """``values [G, O]`` of one column, each on its grid."""
        scale = self.scale[column]
        levels = np.rint(values / scale).clip(self.lowest[column], self.highest[column])
        return np.asarray(levels * scale)


def grid_of_weights(
    params: QuantParams,
    spec: QuantSpec,
    shape: tuple[int, ...],
    blocks: Callable[[NDArray[np.generic]], Doubles],
) -> WeightGrid:
    """The grid of weights of this ``shape``, in the form that ``blocks`` gives them."""
    scale, middle = (
        blocks(np.broadcast_to(spread(part, spec, shape), shape))
        for part in (params.scale, params.zero_point.astype(np.float64))
    )
    lowest, highest = spec.limits
    return WeightGrid(np.where(scale == 0, 1.0, scale), lowest - middle, highest - middle)  # 0: filled up


def output_error(errors: Doubles, second: Doubles) -> Doubles:
    """``e H e^T`` of every row: errors ``[G, O, K]``, second ``[G, K, K]`` -> ``[G, O]``."""
    return np.asarray(((errors @ second) * errors).sum(axis=2))


def gptq_columns(exact: Doubles, second: Doubles, grid: WeightGrid) -> Doubles:
    """``exact [G, O, K]`` on the grid, with little ``tr(E H E^T)`` for ``second`` = H, positive definite.

    Columns that count most, with the largest diagonal of H, come first, while most others can still make up
    for their errors ("act order").
    """
    order = np.argsort(-np.einsum("gkk->gk", second), axis=1, kind="stable")
    factor = _upper(_permuted(second, order))
    factor /= np.einsum("gkk->gk", factor)[:, None, :]
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
    """R, upper triangular, with ``R R^T = second [G, K, K]``."""
    return np.array(np.linalg.cholesky(second[:, ::-1, ::-1])[:, ::-1, ::-1], np.float64)


def coordinate_descent(
    wanted: Doubles, rounded: Doubles, second: Doubles, grid: WeightGrid, rounds: int = 1
) -> Doubles:
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
        _descend_block(best, pull, second, grid, part)
        moved = best[:, :, part] - before
        here = pull[:, :, part].copy()
        pull -= moved @ second[:, part]
        pull[:, :, part] = here
    return np.asarray(best)


def _descend_block(best: Doubles, pull: Doubles, second: Doubles, grid: WeightGrid, part: slice) -> None:
    """Change neighbouring columns of ``best``; ``pull`` follows in these columns alone."""
    for k in range(part.start, part.stop):
        curvature = second[:, k, k, None]
        column = (slice(None), slice(None), k)
        better = grid.nearest(best[column] + pull[column] / curvature, column)
        moved = better - best[column]
        best[column] = better
        pull[:, :, part] -= moved[:, :, None] * second[:, None, k, part]

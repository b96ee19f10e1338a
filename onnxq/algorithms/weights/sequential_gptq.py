"""GPTQ for weights of few bits, layer by layer: each layer compensates the errors of the layers before it.

A layer gets the input ``q`` in the quantized model and ``x`` in the float model. Its output should be that of
the float layer, ``W x + b``. The least squares solution for the weights is
``W + W E[(x - q) q^T] E[q q^T]^-1``. The expectations are estimated on few samples, so the inverse is
strongly damped, and possibly only a part of the change is applied. The resulting weights are rounded as in
`gptq.py`. Then the bias is fitted to the output after the Relu or Clip: where that clips, errors have no
effect.

Sources: Li et al., "GPTAQ", 2025, for the target; Nagel et al., "Up or Down? Adaptive Rounding for
Post-Training Quantization", 2020, for the inputs from the quantized model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from calibrators.collect import processors
from calibrators.data.samples import Sample
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.biases import BiasAndActivation, bias_and_activation, bias_of
from onnxq.algorithms.layers.im2col import finite, im2col_rows
from onnxq.algorithms.layers.matrices import MatrixLayer, matrices, weights, weights_of, with_own_weights
from onnxq.algorithms.layers.stepwise import Array, iterate_steps
from onnxq.algorithms.layers.subgraphs import is_partitionable
from onnxq.algorithms.watching import Arrays
from onnxq.algorithms.weights.bias_correction import correct_biases
from onnxq.algorithms.weights.gptq import WeightGrid, coordinate_descent, gptq, gptq_columns, grid_of_weights
from onnxq.algorithms.weights.hessian import MOST_BYTES, moments_of
from onnxq.core.numerics import dequantize
from onnxq.core.plan import QuantSpec
from onnxq.graph.nodes import name_of
from onnxq.graph.qdq.insert_qdq import insert_qdq
from onnxq.graph.qdq.read_qdq import dequantizer

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
Part = tuple[slice, slice]
"""The slices of some groups and some of their output channels in ``[G, O, K]``."""

FEW_LEVELS = 32
"""Weights with at least this many levels are rounded by `gptq` alone, which is faster and good enough."""

SHARES = (0.0, 0.5, 1.0)
"""The candidates for the share of the change that compensates the layers before.

The one with the least error on held-out rows is chosen for each layer.
"""

RIDGE = 0.1
"""The damping of ``E[q q^T]`` for this change, relative to the mean of the diagonal."""

ROWS = 16
"""The number of rows for each input of a layer."""

FEWEST_ROWS = 10_000
"""The smallest number of rows of a layer, if the memory limit allows."""

ROW_BYTES = 2**27
"""The memory limit for the rows of a layer in each of the two models."""

HELD_BYTES = 2**29
"""The memory limit for the largest layer input of all samples together."""

FEWEST = 8
"""The smallest number of batches, even if they exceed the memory limit."""

TOGETHER = 256
"""The number of weight rows that a thread rounds at a time."""

ITERATIONS = 6
"""The number of Gauss-Newton iterations for the bias before a Relu or Clip."""

TOO_FEW = 0.02
"""The share of rows below which the step of the bias is reduced: too few rows are not clipped."""

CHECK_EVERY = 5
"""Every fifth batch is held out when the share of the change is chosen."""


def sequential_gptq(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Round weights with GPTQ; for weights of few bits also try the sequential form.

    Returns:
        The draft of the sequential form if it has the smaller error on held-out samples, else that of GPTQ;
        None if there is no layer to round.
    """
    rounded = gptq(draft, context)
    if rounded is None or not _few(draft):
        return rounded
    plain = correct_biases(rounded, context) or rounded
    ordered = round_sequentially(plain, context)
    return rounded if ordered is None or context.error(ordered) >= context.error(plain) else ordered


def round_sequentially(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Round the weights of few bits and fit the biases of their layers, one layer after the other.

    Returns:
        The changed draft; None if there is no such layer, if a model cannot be partitioned, or if the model
        accepts no batch.
    """
    found, quantized = _few(draft), draft.quantized()
    if not found or not (is_partitionable(draft.reference) and is_partitionable(quantized)):
        return None
    batches = _batches(draft, found, context)
    if not batches:
        return None
    stops = _stops(quantized, found)
    floats = _FloatActivations(
        draft.reference, [layer.data.tensor for layer in found], batches, context.config.threads
    )
    changed = draft
    for stop, arrays in iterate_steps(quantized, list(stops), batches, context.config.threads):
        for layer in stops[stop]:
            context.progress("rounding weights layer by layer", found.index(layer), len(found))
            rows = _rows(draft, layer, floats.of(layer.data.tensor), arrays, context)
            with threadpool_limits(1, "blas"):  # the number of BLAS threads would change the result
                better = _solved(draft, layer, rows, len(arrays), context.config.threads or processors())
            changed = changed.with_constants(better)
            _refresh(quantized, changed, better)
    return changed


def _few(draft: Draft) -> list[MatrixLayer]:
    """Return the layers whose weights have few levels and whose moments fit into memory."""
    return [
        layer
        for layer in with_own_weights(draft.reference, draft.plan)
        if _levels(layer.weight.spec) < FEW_LEVELS and 4 * layer.shape[0] * layer.shape[2] ** 2 <= MOST_BYTES
    ]


def _levels(spec: QuantSpec) -> int:
    return spec.limits[1] - spec.limits[0] + 1


def _refresh(quantized: ir.Model, draft: Draft, names: Collection[str]) -> None:
    """Copy the constants ``names`` of ``draft`` into ``quantized``, which was made from an earlier draft."""
    plan = draft.plan
    points = tuple(point for point in plan.points if point.tensor in names)
    biases = tuple(point for point in plan.biases if point.tensor in names)
    kept = quantized.graph.initializers
    for name, value in insert_qdq(
        draft.model, replace(plan, points=points, biases=biases)
    ).graph.initializers.items():
        if name in kept:
            kept[name].const_value = value.const_value


def _stops(quantized: ir.Model, found: Sequence[MatrixLayer]) -> dict[str, list[MatrixLayer]]:
    """Map each integer tensor that layers read to these layers."""
    stops: dict[str, list[MatrixLayer]] = {}
    for layer in found:
        value = quantized.graph.node(layer.name).inputs[layer.data.input_index]
        reader = dequantizer(value)
        integers = None if reader is None else reader.inputs[0]
        assert integers is not None
        stops.setdefault(name_of(integers), []).append(layer)
    return stops


def _batches(draft: Draft, found: Sequence[MatrixLayer], context: CorrectionContext) -> list[Sample]:
    """Select evenly spaced batches among those that the model accepts, as many as fit into memory."""
    tensors = list(dict.fromkeys(layer.data.tensor for layer in found))

    def look(number: int, arrays: Arrays) -> tuple[int, int]:
        return number, max(arrays[name].nbytes for name in tensors)

    runs = list(context.watch(draft.reference, tensors, look))
    if not runs:
        return []
    count = min(max(HELD_BYTES // max(size for _, size in runs), FEWEST), len(runs))
    return [context.fit[runs[i][0]] for i in np.linspace(0, len(runs) - 1, count).round().astype(int)]


class _FloatActivations:
    """The activations of the float model, computed step by step: they must be read in graph order."""

    def __init__(
        self, model: ir.Model, tensors: Sequence[str], batches: Sequence[Sample], threads: int
    ) -> None:
        made = {value.name for node in model.graph for value in node.outputs}
        self._batches = batches
        self._steps = iterate_steps(model, [name for name in tensors if name in made], batches, threads)
        self._made = made
        self._now: tuple[str, list[Array]] = ("", [])

    def of(self, tensor: str) -> list[Array]:
        """Return the value of ``tensor`` for each batch."""
        if tensor not in self._made:
            return [batch.feeds[tensor] for batch in self._batches]
        while self._now[0] != tensor:
            self._now = next(self._steps)
        return self._now[1]


# --- One layer ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Input rows of a layer (im2col), at the same positions in both models.

    Attributes:
        exact: the rows in the float model, ``[G, n, K]``.
        given: the rows in the quantized model, ``[G, n, K]``.
        counts: the number of rows of each batch.
    """

    exact: Floats
    given: Floats
    counts: Sequence[int]

    @cached_property
    def expected(self) -> Doubles:
        """The estimate of ``E[q q^T]`` of the quantized model for unseen samples, ``[G, K, K]``."""
        return moments_of(np.split(self.given, np.cumsum(self.counts)[:-1], axis=1)).damped


def _rows(
    draft: Draft,
    layer: MatrixLayer,
    exact: Sequence[Array],
    given: Sequence[Array],
    context: CorrectionContext,
) -> Callable[[Iterable[int]], Rows]:
    """Return a function that selects the rows of the batches with given numbers.

    ``given`` holds integers. They are dequantized one batch at a time: the float values of all
    batches would take four times the memory. Where the values of a model select the rows, the two models may
    have different numbers of them, which do not correspond: then the float ones are left out.
    """
    node, spec = draft.reference.graph.node(layer.name), layer.data.spec
    real = partial(dequantize, params=draft.plan.params[layer.data.group], spec=spec)
    groups, _, inputs = layer.shape
    most = min(max(FEWEST_ROWS, ROWS * inputs), ROW_BYTES // (4 * groups * inputs))
    limit = max(1, most // sum(len(array) for array in given))

    def picked(number: int, array: Array) -> Floats:
        rows = im2col_rows(node, array, limit, np.random.default_rng((context.config.seed, number)))
        return np.asarray(finite(rows).transpose(1, 0, 2))

    def pair(number: int, one: Array, other: Array) -> tuple[Floats, Floats]:
        return picked(number, one if one.shape == other.shape else other), picked(number, other)

    def rows(batches: Iterable[int]) -> Rows:
        pairs = [pair(i, exact[i], real(given[i])) for i in batches]
        first, second = zip(*pairs, strict=True)
        counts = [part.shape[1] for part in second]
        return Rows(np.concatenate(first, 1), np.concatenate(second, 1), counts)

    return rows


def _solved(
    draft: Draft, layer: MatrixLayer, rows: Callable[[Iterable[int]], Rows], count: int, threads: int
) -> Mapping[str, NDArray[np.generic]]:
    """Compute new values of the layer's weights and bias from the rows of ``count`` batches."""
    node = draft.reference.graph.node(layer.name)
    exact, bias = weights_of(node), bias_of(node)
    assert exact is not None
    grid = grid_of_weights(
        draft.plan.params[layer.weight.group], layer.weight.spec, exact.shape, partial(_doubles, node)
    )
    end, before, every = bias_and_activation(node, layer), _doubles(node, exact), rows(range(count))
    rounded = partial(rounded_columns, before, grid=grid, threads=threads)
    (after,) = rounded(every, shares=(_best_share(before, end, rows, count, rounded),))
    values = {layer.weight.tensor: weights(node, after.astype(np.float32), exact.shape)}
    if bias is not None:
        shift = Outputs(before, after, end, every).shift.astype(np.float64).reshape(-1)
        values[bias.tensor] = np.asarray(bias.plus(shift).values, np.float32)
    return values


def _best_share(
    exact: Doubles,
    end: BiasAndActivation,
    rows: Callable[[Iterable[int]], Rows],
    count: int,
    rounded: Callable[..., list[Doubles]],
) -> float:
    """Return the share among `SHARES` with the least error on held-out batches."""
    check = range(CHECK_EVERY - 1, count, CHECK_EVERY)
    if not check:
        return SHARES[0]
    learn, held = rows(i for i in range(count) if i not in check), rows(check)
    tried = rounded(learn, shares=SHARES)
    return min(zip(SHARES, tried, strict=True), key=lambda one: Outputs(exact, one[1], end, held).error)[0]


def _doubles(node: ir.Node, weight: NDArray[np.generic]) -> Doubles:
    return matrices(node, weight).astype(np.float64)


def rounded_columns(
    exact: Doubles, rows: Rows, grid: WeightGrid, shares: Sequence[float], threads: int = 1
) -> list[Doubles]:
    """Round weights to the grid, so that the layer approximates the float output from quantized inputs.

    The result does not depend on the number of threads.

    Args:
        exact: the float weights, ``[G, O, K]``.
        rows: the input rows of the layer in both models.
        grid: the grid of the weights.
        shares: shares of the change that compensates the layers before (0 ... 1).
        threads: the number of threads.

    Returns:
        The rounded weights for each of ``shares``, ``[G, O, K]``.
    """
    count = rows.given.shape[1]
    with ThreadPoolExecutor(threads) as pool:
        cross = ((rows.exact - rows.given).transpose(0, 2, 1) @ rows.given).astype(np.float64) / count
        safe = rows.expected
        steep = safe + RIDGE * np.einsum("gkk->g", safe)[:, None, None] / safe.shape[1] * np.eye(
            safe.shape[1]
        )

        def one(part: Part) -> list[Doubles]:
            change = np.linalg.solve(steep[part[0]], (exact[part] @ cross[part[0]]).transpose(0, 2, 1))
            here, there = safe[part[0]], grid.of(part)
            every = [exact[part] + share * change.transpose(0, 2, 1) for share in shares]
            return [
                coordinate_descent(wanted, gptq_columns(wanted, here, there), here, there) for wanted in every
            ]

        parts = list(_parts(exact.shape))
        rounded = [np.empty_like(exact) for _ in shares]
        for part, found in zip(parts, pool.map(one, parts), strict=True):
            for whole, piece in zip(rounded, found, strict=True):
                whole[part] = piece
    return rounded


def _parts(shape: tuple[int, ...]) -> Iterator[Part]:
    """Split groups and output channels into parts, which are rounded in parallel."""
    groups, outputs, _ = shape
    wide = max(1, TOGETHER // outputs)
    for first in range(0, groups, wide):
        for row in range(0, outputs, TOGETHER):
            yield slice(first, first + wide), slice(row, row + TOGETHER)


class Outputs:
    """The outputs of a layer with rounded weights and those of the float layer, after its Relu or Clip.

    Attributes:
        shift: the shift of the bias with the least squared error, ``[G, 1, O]``. It is found by Gauss-Newton
            iterations; without clipping the first one gives the mean error.
    """

    def __init__(self, exact: Doubles, rounded: Doubles, end: BiasAndActivation, rows: Rows) -> None:
        """Compute the outputs and fit the shift.

        Args:
            exact: the float weights, ``[G, O, K]``.
            rounded: the rounded weights, ``[G, O, K]``.
            end: the bias and the activation after the layer.
            rows: the input rows of the layer in both models.
        """
        first, second = (part.astype(np.float32).transpose(0, 2, 1) for part in (exact, rounded))
        self._limits = end.limits
        self._wanted = end.of(rows.exact @ first)
        self._sums = rows.given @ second + end.bias
        self.shift = np.zeros(end.bias.shape, np.float32)
        for _ in range(ITERATIONS if np.isfinite(end.limits).any() else 1):
            self.shift = self.shift + self._step()

    @property
    def error(self) -> float:
        """The squared error with the shifted bias, summed over all rows and output channels."""
        return float(np.square(self._missing(self._sums + self.shift), dtype=np.float64).sum())

    def _missing(self, sums: Floats) -> Floats:
        return np.asarray(self._wanted - sums.clip(*self._limits))

    def _step(self) -> Floats:
        """Compute the next Gauss-Newton step of the shift."""
        sums, (low, high) = self._sums + self.shift, self._limits
        through = (low < sums) & (sums < high)
        missing = np.where(through, self._missing(sums), 0).sum(axis=1, keepdims=True, dtype=np.float64)
        count = through.sum(axis=1, keepdims=True).clip(TOO_FEW * sums.shape[1])
        return np.asarray(missing / count, np.float32)

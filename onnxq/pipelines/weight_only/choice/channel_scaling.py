"""Scale the channels of activations so that the weights that matter are rounded with less error.

A channel of an activation is divided by s, and the weights that read it are multiplied by s: the outputs stay
the same, and what rounding adds to the product is divided by s. A large channel gains; the others of its
blocks lose, because the block's scale grows. So ``s = m^(a / 2)``, m the mean square of the channel, and a
between 0 and 1 is tried out for each activation (AWQ, Lin et al. 2023).

The factors fold into the norm before, or into the product whose outputs the channels are: up and down
projections, values and the last product of attention (`labels`, `scale_rules`). Matrices are multiplied when
they are read, so that none is held in memory for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.channels.fold_factors import replace_values
from onnxq.algorithms.channels.labels import Channels, Labels, ScaleFold, find_channels
from onnxq.algorithms.channels.scale_rules import RULES
from onnxq.algorithms.effect import Effect
from onnxq.algorithms.layers.im2col import Floats
from onnxq.algorithms.weights.block_scales import quantize_blocks
from onnxq.graph.nodes import constant_value, name_of
from onnxq.graph.passes import typed
from onnxq.pipelines.weight_only.products import Product
from onnxq.pipelines.weight_only.streaming import WeightWork

NAME = "equalize"
"""The name of the correction."""

EXPONENTS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""The exponents that are tried, beside 0."""

WORTH = 0.97
"""The largest error with factors, as a share of that without, for which they are used."""

LEAST_SHARE = 1e-4
"""The least mean square of a channel that counts, as a share of the mean of all channels."""

ROWS = 128
"""The number of rows of the matrices that exponents are tried on."""

LARGEST_CONSTANT = 2**20
"""The most elements of a constant, beside the matrices, that factors are folded into."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class ChannelScaling:
    """The factors for a model, and the inputs of its products that they lead to.

    Attributes:
        squares: name of a product's node -> the mean square of each input, ``[K]``, where known.
        rows: name of a product's node -> the factors of the rows of its matrix, ``[N]``.
        columns: name of a product's node -> the factors of the columns, ``[K]``.
        constants: name of a node and position of a constant among its inputs -> the factors of the constant.
        effects: what the factors are predicted to change.
    """

    squares: Mapping[str, Floats] = field(default_factory=dict)
    rows: Mapping[str, Floats] = field(default_factory=dict)
    columns: Mapping[str, Floats] = field(default_factory=dict)
    constants: Mapping[tuple[str, int], Doubles] = field(default_factory=dict)
    effects: tuple[Effect, ...] = ()

    def applied(self, work: WeightWork) -> WeightWork:
        """Return the work on the scaled model; small constants of its model are changed in place."""
        nodes = {name_of(node): node for node in work.model.graph}
        for (name, index), factors in self.constants.items():
            values = constant_value(nodes[name].inputs[index])
            assert values is not None
            replace_values(work.model, nodes[name], index, values.astype(np.float64) * factors, "scaled")
        return replace(work, products=tuple(map(self._scaled, work.products)))

    def _scaled(self, product: Product) -> Product:
        name = name_of(product.node)
        return replace(product, row_factors=self.rows.get(name), column_factors=self.columns.get(name))


def choose_scaling(work: WeightWork, squares: Mapping[str, Floats]) -> ChannelScaling:
    """Choose factors for the channels that may be scaled, and whose size is known.

    Args:
        work: what is to be done to a float model, which is not changed.
        squares: name of a product's node -> the mean square of each input, ``[K]``.
    """
    started = time.perf_counter()
    products = {name_of(product.node): product for product in work.products}
    channels = find_channels(typed(work.model), RULES) if squares else Channels({}, 1, ())
    folds = _Folds.split(channels.folds, products)
    free = _free_labels(work.model, channels.count, folds.constants)
    logs, noises = np.zeros(channels.count), list[tuple[float, float]]()
    for labels, readers in _activations(folds.matrices, products):
        known = [product for product in readers if name_of(product.node) in squares]
        if len(known) == len(readers) and free[labels].all():
            factors, before, after = _best_factors(work, known, labels, squares[name_of(known[0].node)])
            logs[labels] = -np.log(factors)
            noises.append((before, after))
    if not logs.any():
        return ChannelScaling(squares)
    return _folded(folds, products, np.exp(logs), squares, _effect(noises, started))


@dataclass(frozen=True)
class _Folds:
    """The folds of the matrices of products, and those of other constants."""

    matrices: tuple[ScaleFold, ...]
    constants: tuple[ScaleFold, ...]

    @classmethod
    def split(cls, folds: Sequence[ScaleFold], products: Mapping[str, Product]) -> _Folds:
        places = {(name, product.index) for name, product in products.items()}
        inside = [(fold.node, fold.index) in places for fold in folds]
        return cls(
            tuple(fold for fold, is_matrix in zip(folds, inside, strict=True) if is_matrix),
            tuple(fold for fold, is_matrix in zip(folds, inside, strict=True) if not is_matrix),
        )


def _free_labels(model: ir.Model, count: int, constants: Sequence[ScaleFold]) -> NDArray[np.bool_]:
    """Tell the labels that fold into matrices of products and into small constants only."""
    free = np.ones(count, bool)
    free[0] = False
    nodes = {name_of(node): node for node in model.graph}
    for fold in constants:
        value = nodes[fold.node].inputs[fold.index]
        tensor = None if value is None else value.const_value
        if tensor is None or tensor.size > LARGEST_CONSTANT:
            free[fold.up], free[fold.down] = False, False
    return free


def _activations(
    matrices: Sequence[ScaleFold], products: Mapping[str, Product]
) -> Iterator[tuple[Labels, list[Product]]]:
    """Yield the labels of the channels of each activation, and the products that read it."""
    found: dict[bytes, tuple[Labels, list[Product]]] = {}
    for fold in matrices:
        labels = fold.down.reshape(-1)
        if labels.any() and len(labels) == products[fold.node].sizes[1]:
            found.setdefault(labels.tobytes(), (labels, []))[1].append(products[fold.node])
    taken = set[int]()
    for labels, readers in found.values():
        if taken.isdisjoint(labels.tolist()):  # one that others scale too has factors already
            taken.update(labels.tolist())
            yield labels, readers


def _best_factors(
    work: WeightWork, products: Sequence[Product], labels: Labels, squares: Floats
) -> tuple[Doubles, float, float]:
    """Try the exponents; return the factors of the inputs ``[K]``, and the error without and with them.

    Errors are relative to the power of the products.
    """
    sizes = np.asarray(squares, np.float64) / max(float(squares.mean()), np.finfo(np.float32).tiny)
    sizes = sizes + LEAST_SHARE
    shared = np.bincount(labels, sizes) / np.maximum(np.bincount(labels), 1)
    rows = _some_rows(products)
    power = float((np.square(rows, dtype=np.float64).sum(axis=0) * sizes).sum()) or 1.0

    def error(factors: Doubles) -> float:
        grid = work.scheme_of(products[0]).grid(products[0].operand.dtype)
        scaled, left = (rows * factors).astype(np.float32), sizes / np.square(factors)
        threads, importance = work.scheme.config.threads, left.astype(np.float32)
        found = quantize_blocks(lambda i, j: scaled[i:j], scaled.shape, grid, threads, importance)
        wrong = np.square(found.reals(scaled.shape[1]) - scaled, dtype=np.float64).sum(axis=0)
        return float((wrong * left).sum()) / power

    plain = np.ones(len(labels))
    before = error(plain)
    best, after = plain, WORTH * before
    for exponent in EXPONENTS:
        factors = shared[labels] ** (exponent / 2)
        factors /= np.exp(np.log(factors).mean())
        if (found := error(factors)) < after:
            best, after = factors, found
    return best, before, before if best is plain else after


def _some_rows(products: Sequence[Product]) -> Floats:
    """Return `ROWS` rows of the matrices together, evenly spread."""
    each, parts = max(1, ROWS // len(products)), list[Floats]()
    for product in products:
        read, count, _ = product.reader()
        chosen = np.unique(np.linspace(0, count - 1, min(each, count)).astype(int))
        parts += [read(int(row), int(row) + 1) for row in chosen]
    return np.concatenate(parts)


def _folded(
    folds: _Folds,
    products: Mapping[str, Product],
    factors: Doubles,
    squares: Mapping[str, Floats],
    effect: Effect,
) -> ChannelScaling:
    rows, columns, changed = dict[str, Floats](), dict[str, Floats](), dict[tuple[str, int], Doubles]()
    left = dict(squares)
    for fold in folds.matrices:
        product = products[fold.node]
        up, down = (np.broadcast_to(factors[each], product.operand.shape) for each in (fold.up, fold.down))
        rows[fold.node] = np.take(up, 0, axis=product.summed).astype(np.float32)
        inputs = np.take(down, 0, axis=-3 - product.summed).astype(np.float32)
        columns[fold.node] = 1 / inputs
        if fold.node in left:
            left[fold.node] = left[fold.node] * np.square(inputs)
    for fold in folds.constants:
        factor = factors[fold.up] / factors[fold.down]
        if (factor != 1).any():
            changed[fold.node, fold.index] = factor
    return ChannelScaling(left, rows, columns, changed, (effect,))


def _effect(noises: Sequence[tuple[float, float]], started: float) -> Effect:
    before, after = (float(np.mean(each)) for each in zip(*noises, strict=True))
    return Effect(NAME, before, after, time.perf_counter() - started, kept=True, predicted=True)

"""Run a float model stage by stage on samples, with the weights that earlier stages were given.

A stage is an activation and the products that read it, such as query, key and value. Each node runs once, on
all samples, before the next stage begins. In memory are the activations between two stages, and the new
weights of products that have not run yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibrators.data.samples import Sample
from onnxq.algorithms.layers.im2col import Floats, finite
from onnxq.algorithms.layers.stepwise import Array, iterate_steps, step_numbers
from onnxq.algorithms.layers.subgraphs import is_partitionable
from onnxq.calibration.sample_split import evenly
from onnxq.graph.nodes import add_initializer, name_of, unused_name
from onnxq.graph.passes import typed
from onnxq.pipelines.weight_only.products import Product, read_layout

HELD_BYTES = 2**30
"""The memory limit for the activations of all samples between two stages, estimated."""

HELD_WIDTHS = 4
"""How many tensors as large as the widest activation are held at a time: its gate, a residual, a result."""


@dataclass(frozen=True)
class _Changed:
    """A product with a new weight: its node, the weight, and the one that it had."""

    node: ir.Node
    index: int
    weight: ir.Value
    before: ir.Value | None


class StagedRun:
    """A run of a model that pauses at each stage.

    Attributes:
        stages: name of a product's node -> the number of its stage. Products of control flow, stacks of
            matrices, and matrices that stages share have none.
    """

    def __init__(
        self, model: ir.Model, products: Sequence[Product], batches: Sequence[Sample], threads: int = 0
    ) -> None:
        """Prepare to run ``model``, which is not changed.

        Args:
            model: the float model as one graph.
            products: its products.
            batches: the samples.
            threads: the number of threads; 0: one for each processor.

        Raises:
            CalibrationError: the model does not run.
        """
        self._model, self._threads = typed(model), threads
        able = observable(self._model, products) if batches else []
        read = dict.fromkeys(name_of(product.data) for product in able if product.data is not None)
        self._given = [name_of(value) for value in self._model.graph.inputs if value.name in read]
        made = [name_of(value) for node in self._model.graph for value in node.outputs]
        self._computed = [name for name in made if name in read]
        order = {name: number for number, name in enumerate((*self._given, *self._computed))}
        self.stages = {
            name_of(product.node): order[name_of(product.data)]
            for product in able
            if product.data is not None
        }
        self._runs_in = step_numbers(self._model, self._computed)
        self._nodes = {node.name: node for node in self._model.graph}
        self._batches = self._within_memory(batches, max((each.sizes[1] for each in able), default=0))
        self._changed = list[_Changed]()
        self._steps, self._now = self._run(), -1
        self._arrays = list[Array]()

    @property
    def samples(self) -> int:
        """The number of samples."""
        return sum(batch.count for batch in self._batches)

    def rows(self, product: Product, most: int) -> list[Floats]:
        """Run up to a product, and return rows of its input for each batch, ``[n, K]``.

        Products must be asked for in the order of their stages.

        Args:
            product: a product with a stage.
            most: the largest number of rows of all batches together; they are evenly spread.
        """
        while self._now < self.stages[name_of(product.node)]:
            self._arrays = next(self._steps)
            self._now += 1
        each = max(1, most // len(self._arrays))
        return [_evenly(_rows(product, array), each) for array in self._arrays]

    def change(self, product: Product, weights: Floats) -> None:
        """Let the run continue with other weights, ``[N, K]``, of a product of the present stage."""
        node = self._nodes[product.node.name]
        if node not in self._runs_in:
            return
        array = read_layout(weights, product).astype(product.operand.dtype.numpy())
        value = add_initializer(self._model, unused_name(f"{name_of(node)}_rounded", self._model), array)
        self._changed.append(_Changed(node, product.index, value, node.inputs[product.index]))
        node.replace_input_with(product.index, value)

    def _run(self) -> Iterator[list[Array]]:
        for name in self._given:
            yield [batch.feeds[name] for batch in self._batches]
        steps = iterate_steps(self._model, self._computed, self._batches, self._threads)
        for number, (_, arrays) in enumerate(steps):
            self._forget(number)
            yield arrays

    def _forget(self, step: int) -> None:
        """Drop the weights of the products that have run."""
        done = [each for each in self._changed if self._runs_in[each.node] <= step]
        self._changed = [each for each in self._changed if self._runs_in[each.node] > step]
        for each in done:
            each.node.replace_input_with(each.index, each.before)
            del self._model.graph.initializers[name_of(each.weight)]

    def _within_memory(self, batches: Sequence[Sample], widest: int) -> Sequence[Sample]:
        """Choose as many batches as fit into memory, by the size of the first activation of the first one."""
        if not self._computed:
            return batches
        ((_, (first, *_)),) = iterate_steps(self._model, self._computed[:1], batches[:1], self._threads)
        sizes = [sum(array.size for array in batch.feeds.values()) for batch in batches]
        rows = first.size / first.shape[-1] * np.mean(sizes) / max(sizes[0], 1)
        return evenly(batches, max(1, int(HELD_BYTES / (4 * HELD_WIDTHS * widest * max(rows, 1)))))


def observable(model: ir.Model, products: Sequence[Product]) -> list[Product]:
    """Return the products whose inputs can be seen: each matrix alone, in a model that can run in parts."""
    if not is_partitionable(model):
        return []
    readers = Counter((product.operand.value, product.data) for product in products)
    shared = Counter(value for value, _ in readers)
    return [
        product
        for product in products
        if product.stacked == 1
        and shared[product.operand.value] == 1
        and product.data is not None
        and not product.data.is_initializer()
    ]


def _rows(product: Product, array: Array) -> Array:
    """Return the rows that are multiplied with the matrix, ``[n, K]``."""
    turned = product.index == 0 or product.node.attributes.get_int("transA", 0) != 0
    array = np.swapaxes(array, -1, -2) if turned and array.ndim > 1 else array
    return array.reshape(-1, array.shape[-1])


def _evenly(rows: Array, most: int) -> Floats:
    """Return at most ``most`` evenly spread rows as finite numbers."""
    step = -(-len(rows) // most) or 1
    return finite(np.asarray(rows[::step], np.float32))

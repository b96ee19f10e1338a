"""Choose weights with data: GPTQ on second moments of inputs, one stage of the model after the other.

Later stages see the errors of earlier ones, and compensate them as far as they can. The moments of one
stage are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.algorithms.layers.im2col import Floats
from onnxq.algorithms.weights.block_gptq import gptq_blocks
from onnxq.algorithms.weights.block_scales import BlockGrid, BlockWeights
from onnxq.algorithms.weights.hessian import moments_of
from onnxq.core.progress import Progress
from onnxq.graph.nodes import name_of
from onnxq.pipelines.weight_only.choice.rounding import EachAlone
from onnxq.pipelines.weight_only.choice.staged_run import StagedRun
from onnxq.pipelines.weight_only.products import Product

Doubles = NDArray[np.float64]

WIDEST = 2048
"""The most inputs whose moments are one matrix; inputs of different ones count as uncorrelated."""

ROWS = 16
"""The most rows for each input of a product: evenly spread ones of each sample."""


class SequentialRounding:
    """Rounds the products of a model with data, in the order of their stages."""

    def __init__(self, run: StagedRun, threads: int, progress: Progress) -> None:
        """Prepare to round the products of ``run``; others are rounded alone.

        Args:
            run: the run of the model.
            threads: the number of threads; 0: one for each processor.
            progress: called with the number of stages done.
        """
        self._run, self._threads, self._progress = run, threads, progress
        self._alone = EachAlone(threads)
        self._moments: tuple[object, list[Doubles]] = (None, [])

    def in_order(self, products: Sequence[Product]) -> Sequence[Product]:
        """Return the products in the order of their stages; those that are rounded alone come first."""
        return sorted(products, key=lambda each: self._run.stages.get(name_of(each.node), -1))

    def round(self, product: Product, grid: BlockGrid) -> BlockWeights:
        """Round a matrix so that the error of the product's output is small."""
        stage = self._run.stages.get(name_of(product.node))
        if stage is None:
            return self._alone.round(product, grid)
        self._progress("rounding with data", stage, max(self._run.stages.values()) + 1)
        read, count, columns = product.reader()
        moments = self._moments_of(product, grid.size)
        found = gptq_blocks(read, (count, columns), grid, moments, self._threads)
        self._run.change(product, found.reals(columns))
        return found

    def _moments_of(self, product: Product, size: int) -> list[Doubles]:
        """Return the moments of the inputs; products of a stage share them."""
        key = (product.data, product.index, size)
        if self._moments[0] != key:
            self._moments = (None, [])  # the earlier ones are not to be in memory any more
            rows = self._run.rows(product, ROWS * min(product.sizes[1], WIDEST))
            self._moments = (key, list(_split_moments(rows, size)))
        return self._moments[1]


def _split_moments(rows: Sequence[Floats], size: int) -> list[Doubles]:
    """Return the moments of successive inputs, in parts of whole blocks."""
    columns = rows[0].shape[1]
    parts = -(-columns // WIDEST)
    width = -(-columns // (parts * size)) * size
    return [
        moments_of(each[None, :, start : start + width] for each in rows).damped[0]
        for start in range(0, columns, width)
    ]

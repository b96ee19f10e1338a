"""Choose the numbers of a matrix: what the writer asks for each product, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from onnxq.algorithms.weights.block_scales import BlockGrid, BlockWeights, Floats, quantize_blocks
from onnxq.graph.nodes import name_of
from onnxq.pipelines.weight_only.products import Product


class Rounding(Protocol):
    """Chooses the numbers of matrices."""

    def in_order(self, products: Sequence[Product]) -> Sequence[Product]:
        """Return the products in the order in which they are to be rounded."""

    def round(self, product: Product, grid: BlockGrid) -> BlockWeights:
        """Round a matrix, or the matrices of a stack one below the other.

        Raises:
            ValueError: a weight is NaN or infinite.
        """


@dataclass(frozen=True)
class EachAlone:
    """Rounds each matrix alone, without data.

    Attributes:
        threads: the number of threads; 0: one for each processor.
        squares: name of a product's node -> the mean square of each of its inputs, ``[K]``, where known.
    """

    threads: int = 0
    squares: Mapping[str, Floats] = field(default_factory=dict)

    def in_order(self, products: Sequence[Product]) -> Sequence[Product]:
        """Return the products as they are."""
        return products

    def round(self, product: Product, grid: BlockGrid) -> BlockWeights:
        """Round a matrix to the scales with the least error."""
        read, count, columns = product.reader()
        squares = self.squares.get(name_of(product.node))
        return quantize_blocks(read, (count, columns), grid, self.threads, squares)

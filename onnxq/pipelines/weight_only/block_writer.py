"""Round stored matrices one after the other, and write them in the layout of their operator.

Each matrix is read from its file, rounded and written before the next one is read. Matrices that several
nodes read in the same way are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.weights.block_scales import BlockGrid, BlockWeights
from onnxq.core.errors import ModelError
from onnxq.graph.nodes import all_nodes, name_of, unique_name
from onnxq.pipelines.weight_only.choice.rounding import Rounding
from onnxq.pipelines.weight_only.products import Product, read_layout
from onnxq.pipelines.weight_only.tensor_store import TensorStore, packed


@dataclass(frozen=True)
class Blocks:
    """The stored parts of a matrix.

    Attributes:
        levels: the integers.
        scale: the scales.
        zero: the zero points; None: they are the operator's default.
    """

    levels: ir.Value
    scale: ir.Value
    zero: ir.Value | None


class BlockWriter:
    """Adds rounded matrices to a model whose data file is being written.

    Attributes:
        model: the model.
        done: called with the bytes of each matrix that was read.
    """

    def __init__(
        self, model: ir.Model, store: TensorStore, rounding: Rounding, done: Callable[[int], None]
    ) -> None:
        """Write to ``store`` what ``rounding`` makes of each matrix."""
        self.model, self.done = model, done
        self._store, self._rounding = store, rounding
        values = [v for graph in model.graphs() for v in (*graph.inputs, *graph.initializers.values())]
        nodes = list(all_nodes(model))
        self._names = {v.name for v in (*values, *(v for node in nodes for v in node.outputs))}
        self._names |= {node.name for node in nodes}
        self._made: dict[Hashable, Sequence[Blocks]] = {}

    def name(self, wanted: str) -> str:
        """Return ``wanted``, with a number appended if it is taken, and take it."""
        name = unique_name(wanted, self._names)
        self._names.add(name)
        return name

    def operator_blocks(self, product: Product, grid: BlockGrid) -> Sequence[Blocks]:
        """Write the matrices of a stack, or one, for MatMulNBits, which has no alpha: the scales take it up.

        Returns:
            For each matrix levels uint8 ``[N, blocks, size * bits / 8]``, scales ``[N, blocks]``, zero points
            uint8 ``[N, ceil(blocks * bits / 8)]``; a matrix without has the middle level.
        """
        key = ("operator", product.operand.value, product.rows_last, product.factor, grid)
        if key not in self._made:
            found, count = self._rounded(product, grid), product.sizes[0]
            starts = range(0, len(found.levels), count)
            self._made[key] = [
                self._operator(found.part(slice(start, start + count)), product, grid) for start in starts
            ]
        return self._made[key]

    def _operator(self, matrix: BlockWeights, product: Product, grid: BlockGrid) -> Blocks:
        base, (count, blocks, size) = name_of(product.operand.value), matrix.levels.shape
        levels = packed(matrix.levels.reshape(-1, size), grid.bits).reshape(count, blocks, -1)
        zero = None if grid.symmetric else self._constant(f"{base}_zero", packed(matrix.zero, grid.bits))
        scale = self._constant(f"{base}_scale", (matrix.scale * product.factor).astype(grid.scale_type))
        return Blocks(self._constant(f"{base}_blocks", levels), scale, zero)

    def table_blocks(self, product: Product, grid: BlockGrid) -> Blocks:
        """Write a table of whole blocks in 8 bits: levels uint8 ``[N, K]``, scales ``[N, blocks]``."""
        found, base = self._rounded(product, grid), name_of(product.operand.value)
        levels = self._constant(f"{base}_table", found.levels.reshape(product.sizes))
        return Blocks(levels, self._constant(f"{base}_scale", found.scale.astype(grid.scale_type)), None)

    def dequantize_blocks(self, product: Product, grid: BlockGrid, dtype: ir.DataType) -> Blocks:
        """Write a matrix, or a stack of matrices, for DequantizeLinear in the layout that the node reads.

        Args:
            product: the product.
            grid: the numbers that its weights are rounded to.
            dtype: the type of the stored integers.

        Returns:
            levels as the node reads the weights; scales and zero points with blocks in place of weights along
            the summed axis. Signed integers have no zero points.
        """
        key = ("dequantize", product.operand.value, product.operand.transposed, product.summed, grid)
        if key not in self._made:
            found, base = self._rounded(product, grid), name_of(product.operand.value)
            _, columns = product.sizes
            levels = found.levels.reshape(len(found.levels), -1)[:, :columns]
            shift = np.uint8(grid.middle if dtype.is_signed() else 0)
            zero = found.zero if not dtype.is_signed() else None
            made = Blocks(
                self._integers(f"{base}_blocks", read_layout(levels - shift, product), dtype),
                self._constant(f"{base}_scale", read_layout(found.scale.astype(grid.scale_type), product)),
                None if zero is None else self._integers(f"{base}_zero", read_layout(zero, product), dtype),
            )
            self._made[key] = [made]
        return self._made[key][0]

    def _rounded(self, product: Product, grid: BlockGrid) -> BlockWeights:
        """Round a matrix, or the matrices of a stack one below the other.

        Raises:
            ModelError: a weight is NaN or infinite.
        """
        tensor = product.operand.tensor
        try:
            found = self._rounding.round(product, grid)
        except ValueError as error:
            raise ModelError(
                f"node {product.node.name!r} has weights that are NaN or infinite: keep it in float with "
                "--exclude, or give another model"
            ) from error
        if isinstance(tensor, ir.ExternalTensor):
            tensor.release()
        self.done(tensor.nbytes)
        return found

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        name = self.name(name)
        return self._registered(self._store.add(name, array))

    def _integers(self, name: str, levels: NDArray[np.uint8], dtype: ir.DataType) -> ir.Value:
        name = self.name(name)
        return self._registered(self._store.add_packed(name, levels, dtype, levels.shape))

    def _registered(self, tensor: ir.ExternalTensor) -> ir.Value:
        value = ir.val(tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        self.model.graph.register_initializer(value)
        return value

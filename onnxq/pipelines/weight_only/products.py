"""Decide which products get weights in blocks, with a reason for the others; no weight is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import input_at, is_op, rank
from onnxq.graph.operators import SUMMED_AXIS, attribute_value
from onnxq.graph.passes.shapes import InferShapesPass
from onnxq.pipelines.weight_only.block_scheme import FLOATS, BlockScheme
from onnxq.pipelines.weight_only.stored_operand import Floats, Operand, row_reader, stored_operand
from onnxq.planner.context import deselected, matches
from onnxq.planner.float_regions.angles import angle_nodes

_Number = TypeVar("_Number", bound=np.generic)

LEAST_WEIGHTS = 1024
"""Smaller matrices stay float: there is little to save."""

_MOST_FACTOR, _MOST_FACTOR_OF_FLOAT = {ir.DataType.FLOAT16: 2.0**6}, 2.0**40
"""How large alpha of a Gemm, or its inverse, may be to be taken up by the scales, whose range is finite."""

_SCALING = "its inner size is 1: it scales numbers, such as positions, that may need all their digits"
_NO_PRODUCT = "its equation is no product of data and a constant matrix"
_COMPUTED = "both its operands are computed at run time"


@dataclass(frozen=True)
class Product:
    """A product with a constant operand.

    Attributes:
        node: a MatMul or Gemm.
        index: the position of the constant operand.
        operand: the stored matrix, or stack of matrices, behind it.
        summed: the axis of the matrix, as the node reads it, that is summed: -1 or -2.
        row_factors: what the rows of the matrix are multiplied by when they are read, ``[N]``; None: by 1.
        column_factors: the same for its columns, ``[K]``.
    """

    node: ir.Node
    index: int
    operand: Operand
    summed: int
    row_factors: Floats | None = field(default=None, compare=False)
    column_factors: Floats | None = field(default=None, compare=False)

    @property
    def rows_last(self) -> bool:
        """Whether the stored matrix is ``[..., K, N]``, K the summed axis; else it is ``[..., N, K]``."""
        return (self.summed == -2) != self.operand.transposed

    @property
    def sizes(self) -> tuple[int, int]:
        """N and K."""
        last, first = self.operand.shape[-1], self.operand.shape[-2]
        return (first, last) if self.summed == -1 else (last, first)

    @property
    def factor(self) -> float:
        """What the product is multiplied with: alpha of a Gemm."""
        alpha = attribute_value(self.node, "alpha")
        return 1.0 if alpha is None else float(alpha)

    @property
    def data(self) -> ir.Value | None:
        """The other operand."""
        return input_at(self.node, 1 - self.index)

    @property
    def stacked(self) -> int:
        """The number of matrices."""
        return math.prod(self.operand.shape[:-2])

    def reader(self) -> tuple[Callable[[int, int], Floats], int, int]:
        """Read rows of the matrix, or of matrices one below the other, as float32, with the factors.

        Returns:
            A function from start and stop to rows ``[stop - start, K]``, the number of rows, and K.
        """
        read, count, columns = row_reader(self.operand.tensor, self.rows_last)
        across, down = self.row_factors, self.column_factors
        if across is None or down is None:
            return read, count, columns
        return lambda start, stop: read(start, stop) * across[start:stop, None] * down, count, columns

    def keep_float(self) -> None:
        """Give the model the matrix with the factors, which is computed whenever it is read."""
        if self.row_factors is None:
            return
        value, dtype = self.operand.value, self.operand.tensor.dtype
        read, count, _ = self.reader()

        def scaled() -> ir.TensorProtocol:
            return ir.tensor(read_layout(read(0, count), self).astype(dtype.numpy()), name=value.name)

        value.const_value = ir.LazyTensor(scaled, dtype, ir.Shape(self.operand.shape), name=value.name)


@dataclass(frozen=True)
class Planned:
    """The products that get weights in blocks, and the reasons for the others.

    Attributes:
        products: in the order of the graph.
        float_nodes: node -> reason.
    """

    products: tuple[Product, ...]
    float_nodes: dict[ir.Node, str]


def plan_products(model: ir.Model, scheme: BlockScheme) -> Planned:
    """Plan the products of a model, in bodies of control flow too.

    Args:
        model: a model without functions, whose constants are initializers; shapes are inferred if a form
            depends on them.
        scheme: the requested weights.
    """
    angles = {node for graph in model.graphs() for node in angle_nodes(graph)}
    nodes = [node for graph in model.graphs() for node in graph if is_op(node, *SUMMED_AXIS, "Einsum")]
    products = {node: _product(node) for node in nodes}
    if any(map(_needs_rank, products.values())):
        InferShapesPass()(model)
    chosen, floats = list[Product](), dict[ir.Node, str]()
    for node, found in products.items():
        reason = deselected(node, scheme.config)
        if found is None and reason is None:
            reason = _NO_PRODUCT if is_op(node, "Einsum") else _COMPUTED
        if found is not None and reason is None:
            reason = "it computes angles" if node in angles else _obstacle(found, scheme)
        if reason is None and found is not None:
            chosen.append(found)
        else:
            floats[node] = str(reason)
    return Planned(tuple(chosen), floats)


def table_values(model: ir.Model) -> dict[ir.Value, list[ir.Node]]:
    """Map each matrix whose rows a Gather looks up to these nodes."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in (node for graph in model.graphs() for node in graph if is_op(node, "Gather")):
        table = stored_operand(input_at(node, 0))
        if table is not None and attribute_value(node, "axis") == 0 and len(table.shape) == 2:
            found.setdefault(table.value, []).append(node)
    return found


def is_named(node: ir.Node, scheme: BlockScheme) -> bool:
    """Whether the user includes the node by its name, not by its type."""
    return any(matches(node, pattern) for pattern in scheme.config.include if not pattern.startswith("op:"))


def read_layout(rows: NDArray[_Number], product: Product) -> NDArray[_Number]:
    """Reshape ``[E * N, n]`` to the operand's layout as its node reads it, with n along the summed axis."""
    stack = rows.reshape(*product.operand.shape[:-2], product.sizes[0], -1)
    return np.ascontiguousarray(stack if product.summed == -1 else np.swapaxes(stack, -1, -2))


def _product(node: ir.Node) -> Product | None:
    """Find the constant operand: the second one if both are; None if there is none."""
    if is_op(node, "Einsum"):
        return None
    for index in (1, 0) if node.op_type == "MatMul" else (1,):
        operand = stored_operand(input_at(node, index))
        if operand is not None:
            gemm = node.op_type == "Gemm" and SUMMED_AXIS["Gemm"](node) == 1
            return Product(node, index, operand, -1 if index == 0 or gemm else -2)
    return None


def _needs_rank(product: Product | None) -> bool:
    """Whether the form of a product depends on how many axes its data has, which the file does not tell."""
    if product is None or rank(product.data) is not None:
        return False
    return product.index == 0 or len(product.operand.shape) > 2


def _obstacle(product: Product, scheme: BlockScheme) -> str | None:
    """Say why the product stays float; None if it does not."""
    operand = product.operand
    if not {operand.dtype, operand.tensor.dtype} <= FLOATS:
        return f"its weights are {operand.tensor.dtype.name}"
    if len(operand.shape) < 2 or operand.tensor.size == 0:
        return "its weights are no matrix"
    if operand.tensor.size < LEAST_WEIGHTS:
        return f"with less than {LEAST_WEIGHTS} weights there is little to save"
    if product.sizes[1] == 1:
        return _SCALING
    if scheme.whole and product.sizes[1] % scheme.size:
        return f"its inner size is no multiple of the block size {scheme.size}"
    return _operator_obstacle(product) if scheme.format == "matmulnbits" else None


def _operator_obstacle(product: Product) -> str | None:
    """Say what MatMulNBits cannot compute; None if it can."""
    node, data_rank = product.node, rank(product.data)
    if node.op_type == "Gemm":
        most = _MOST_FACTOR.get(product.operand.dtype, _MOST_FACTOR_OF_FLOAT)
        fits = 1 / most <= abs(product.factor) <= most
        return None if fits else f"scales cannot take up its alpha {product.factor:g} (--format dequantize)"
    axes = len(product.operand.shape)
    if product.stacked > 1 and axes > 3:
        return f"MatMulNBits takes one matrix, not a stack of {axes} axes (--format dequantize)"
    if data_rank is None and (product.index == 0 or axes > 2):
        return "the number of axes of its data is unknown (--format dequantize)"
    if data_rank is not None and data_rank < (2 if product.stacked > 1 else max(axes, 2)):
        return f"its data has {data_rank} axes, its weights {axes} (--format dequantize)"
    return None

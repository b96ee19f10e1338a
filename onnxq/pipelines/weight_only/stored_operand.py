"""Find the stored matrix that a product reads, also through Transpose, Cast and Identity, without reading it.

Exporters differ: some store a matrix as the product reads it, some store its transpose, as PyTorch does, and
some store it in half precision. Each stored matrix is quantized once, whoever reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import input_at, int_attribute, ints_attribute, is_op

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Operand:
    """A constant operand of a product.

    Attributes:
        value: the initializer.
        transposed: whether its last two axes are swapped before it is read.
        dtype: the type that the product reads, and computes in.
    """

    value: ir.Value
    transposed: bool
    dtype: ir.DataType

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The stored tensor."""
        assert self.value.const_value is not None
        return self.value.const_value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the product reads."""
        shape = tuple(int(size) for size in self.tensor.shape.numpy())
        return (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape


def stored_operand(value: ir.Value | None) -> Operand | None:
    """Find the initializer that ``value`` is made from; None if it is computed in another way."""
    transposed, dtype = False, None
    while value is not None and not value.is_initializer():
        node = value.producer()
        if is_op(node, "Cast") and node is not None:
            dtype = dtype or ir.DataType(int_attribute(node, "to", 0))
        elif node is not None and _swaps(node):
            transposed = not transposed
        elif not is_op(node, "Identity"):
            return None
        value = input_at(node, 0) if node is not None else None
    if value is None or value.is_graph_input() or value.const_value is None:
        return None
    return Operand(value, transposed, dtype or value.const_value.dtype)


def _swaps(node: ir.Node) -> bool:
    """Whether the node swaps the last two axes, and no others."""
    if not is_op(node, "Transpose"):
        return False
    source = input_at(node, 0)
    perm = ints_attribute(node, "perm", ())
    if not perm:
        return source is not None and source.shape is not None and len(source.shape) == 2
    rank = len(perm)
    return rank >= 2 and perm == (*range(rank - 2), rank - 1, rank - 2)


def row_reader(tensor: ir.TensorProtocol, rows_last: bool) -> tuple[Callable[[int, int], Floats], int, int]:
    """Read rows of a matrix, or of a stack of matrices one below the other, as float32.

    Args:
        tensor: the stored tensor, ``[..., R, K]``, or ``[..., K, R]``.
        rows_last: whether it is the latter.

    Returns:
        A function from start and stop to rows ``[stop - start, K]``, the number of rows, and K.
    """
    array = np.asarray(tensor.numpy())
    stack = array.reshape(-1, *array.shape[-2:])
    stack = np.swapaxes(stack, 1, 2) if rows_last else stack
    each, columns = stack.shape[1:]

    def read(start: int, stop: int) -> Floats:
        parts = []
        while start < stop:
            index, first = divmod(start, each)
            last = min(each, first + stop - start)
            parts.append(stack[index, first:last].astype(np.float32))
            start += last - first
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return read, math.prod(stack.shape[:2]), columns

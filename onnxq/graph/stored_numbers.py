"""Tensors of external files, in other shapes and orders, without reading them before their turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def remapped(tensor: ir.TensorProtocol, shape: Sequence[int] | None = None) -> ir.TensorProtocol:
    """Return a tensor that maps its file for itself, until nobody reads it any more.

    A mapping that others have would count as memory of the process as long as they have it. Tensors in memory
    are returned as they are, but for the shape.

    Args:
        tensor: the tensor.
        shape: another shape for the same numbers.
    """
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape if shape is None else ir.Shape(shape),
            name=str(tensor.name),
            base_dir=tensor.base_dir,
        )
    return tensor if shape is None else ir.tensor(np.asarray(tensor.numpy()).reshape(shape), name=tensor.name)


def rearranged(tensor: ir.TensorProtocol, order: Sequence[int], shape: Sequence[int]) -> ir.TensorProtocol:
    """Return a tensor with other axes; those of an external file change their order whenever they are read.

    Args:
        tensor: the tensor.
        order: its axes in their new order.
        shape: the shape after that, with the same number of elements.
    """
    if list(order) == sorted(order):
        return remapped(tensor, shape)

    def made() -> ir.TensorProtocol:
        array = np.asarray(remapped(tensor).numpy())
        return ir.tensor(np.ascontiguousarray(array.transpose(order)).reshape(shape), name=tensor.name)

    if not isinstance(tensor, ir.ExternalTensor):
        return made()
    return ir.LazyTensor(made, tensor.dtype, ir.Shape(shape), name=tensor.name)

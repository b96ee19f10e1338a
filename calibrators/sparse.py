"""Make the sparse tensors of a model plain, since onnx_ir knows none: initializers, and values of Constant.

A sparse tensor of ONNX has the values that are not zero, and their indices in one of two forms::

    indices [n]         position of each value in the flattened tensor
    indices [n, rank]   position of each value, one number for each axis
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

MOST_BYTES = 2**31
"""Bytes that all sparse tensors of a model may have when they are plain: a protobuf holds no more."""


def make_sparse_plain(messages: Sequence[Any], folder: str | os.PathLike[str]) -> None:
    """Replace sparse tensors by plain ones.

    Args:
        messages: all messages of a model, which are changed.
        folder: the folder with external data.

    Raises:
        OSError, ValueError: a sparse tensor is not valid, or too large when it is plain, or its external
            data cannot be used, or a node other than a Constant has it.
    """
    stored = [message for message in messages if isinstance(message, onnx.SparseTensorProto)]
    size = sum(_plain_bytes(tensor) for tensor in stored)
    if size > MOST_BYTES:
        raise ValueError(
            f"its sparse tensors have {size / 2**30:.1f} GiB when they are plain: store them as plain tensors"
        )
    for message in messages:
        if isinstance(message, onnx.GraphProto):
            message.initializer.extend(_plain(tensor, folder) for tensor in message.sparse_initializer)
            message.ClearField("sparse_initializer")
        elif isinstance(message, onnx.NodeProto):
            _change_attributes(message, folder)


def _change_attributes(node: onnx.NodeProto, folder: str | os.PathLike[str]) -> None:
    for attribute in node.attribute:
        if attribute.type not in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS):
            continue
        if node.op_type != "Constant" or attribute.name != "sparse_value":
            raise ValueError(
                f"node {node.name!r} ({node.op_type}) has a sparse tensor as attribute {attribute.name!r}: "
                "only Constant may have one"
            )
        plain = _plain(attribute.sparse_tensor, folder)
        attribute.CopyFrom(onnx.helper.make_attribute("value", plain))


def _plain_bytes(tensor: onnx.SparseTensorProto) -> float:
    return float(math.prod(tensor.dims) * ir.DataType(tensor.values.data_type).itemsize)


def _plain(tensor: onnx.SparseTensorProto, folder: str | os.PathLike[str]) -> onnx.TensorProto:
    name, dims = tensor.values.name, tuple(tensor.dims)
    try:
        values, indices = _array(tensor.values, folder), _array(tensor.indices, folder)
        plain = np.zeros(math.prod(dims), values.dtype)
        plain[_positions(indices, dims)] = values.reshape(-1)
    except (OSError, ValueError, IndexError) as e:
        raise ValueError(f"sparse tensor {name!r} cannot be used: {e}") from e
    return onnx.numpy_helper.from_array(plain.reshape(dims), name)


def _positions(indices: NDArray[Any], dims: tuple[int, ...]) -> NDArray[Any]:
    """Compute positions in the flattened tensor; out of bounds is a ValueError or an IndexError."""
    if indices.size and indices.min() < 0:
        raise ValueError("an index is negative")
    return np.asarray(np.ravel_multi_index(tuple(indices.T), dims)) if indices.ndim == 2 else indices


def _array(proto: onnx.TensorProto, folder: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a tensor, perhaps from an external file in ``folder``."""
    return np.asarray(ir.serde.deserialize_tensor(proto, folder).numpy())

"""A short name for a model by what it computes: statistics tell by it which model they belong to."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import onnx_ir as ir


class _Digest(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


def fingerprint(model: ir.Model) -> str:
    """SHA-256, in hexadecimal digits, over the nodes and the weights of ``model``.

    Names count, because statistics go by them; documentation and metadata of the file do not.
    """
    digest = hashlib.sha256()
    for graph in model.graphs():
        for node in graph:
            digest.update(ir.to_proto(node).SerializeToString(deterministic=True))
        for name, value in graph.initializers.items():
            digest.update(name.encode())
            if value.const_value is not None:
                _add(digest, value.const_value)
    return digest.hexdigest()


def _add(digest: _Digest, tensor: ir.TensorProtocol) -> None:
    """Type, shape and values, without a copy where the values lie in one piece."""
    digest.update(f"{tensor.dtype} {tensor.shape}".encode())
    array = tensor.numpy()
    if array.dtype.hasobject:  # text
        digest.update(repr(array.tolist()).encode())
    else:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

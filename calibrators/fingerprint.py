"""Fingerprints: which model statistics belong to, and which samples a run was given.

A short name for a model by what it computes: statistics tell by it which model they belong to.

Arrays as bytes, and checksums of them: whether two runs were given the same.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class _Digest(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


def fingerprint(model: ir.Model) -> str:
    """SHA-256, in hexadecimal digits, over the nodes and the weights of ``model``.

    Names count, because statistics go by them; documentation and metadata of the file do not.
    """
    digest = hashlib.sha256()
    for graph in model.graphs():
        for node in graph:
            inputs, outputs = (
                [value and value.name for value in side] for side in (node.inputs, node.outputs)
            )
            digest.update(f"{node.domain}:{node.op_type} {inputs} {outputs}".encode())
            for attribute in node.attributes.values():
                _add_attribute(digest, attribute)
        for name, value in graph.initializers.items():
            digest.update(name.encode())
            if value.const_value is not None:
                _add_tensor(digest, value.const_value)
    return digest.hexdigest()


def _add_attribute(digest: _Digest, attribute: ir.Attr) -> None:
    """Name and value; graphs inside are among the model's graphs anyway."""
    digest.update(f" {attribute.name}".encode())
    if attribute.type is ir.AttributeType.TENSOR:
        _add_tensor(digest, attribute.as_tensor())
    elif attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        digest.update(repr(attribute.value).encode())


def _add_tensor(digest: _Digest, tensor: ir.TensorProtocol) -> None:
    """Type, shape and values, without a copy where the values lie in one piece."""
    array = tensor.numpy()
    digest.update(f"{tensor.dtype} {array.shape}".encode())
    digest.update(content(array))


Array = NDArray[np.generic]


def content(array: Array) -> bytes | memoryview:
    """The values in C order, without a copy where they lie in one piece; of text, its spelling."""
    if array.dtype.hasobject:
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def checksum(array: Array, before: int = 0) -> int:
    """CRC-32 of the values, going on from ``before``: the same however a stretch of them is cut."""
    return zlib.crc32(content(array), before)

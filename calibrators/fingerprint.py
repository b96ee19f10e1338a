"""Fingerprints of models and checksums of arrays.

The fingerprint of a model follows from what it computes; it tells which model statistics belong to.
Checksums of arrays tell whether two runs were given the same samples.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class _Digest(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


def fingerprint(model: ir.Model) -> str:
    """Compute the SHA-256, in hexadecimal digits, of the nodes and weights of ``model``.

    Names count, because statistics refer to tensors by name; documentation and metadata of the file do not.
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
    """Add name and value; graphs in attributes are skipped, because `fingerprint` visits them anyway."""
    digest.update(f" {attribute.name}".encode())
    if attribute.type is ir.AttributeType.TENSOR:
        _add_tensor(digest, attribute.as_tensor())
    elif attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        digest.update(repr(attribute.value).encode())


def _add_tensor(digest: _Digest, tensor: ir.TensorProtocol) -> None:
    """Add type, shape and values, without a copy if the values are contiguous."""
    array = tensor.numpy()
    digest.update(f"{tensor.dtype} {array.shape}".encode())
    digest.update(content(array))


Array = NDArray[np.generic]


def content(array: Array) -> bytes | memoryview:
    """Give the values as bytes in C order, without a copy if they are contiguous; strings as their repr."""
    if array.dtype.hasobject:
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


SUM_DIGITS = 16
"""Hexadecimal digits of a sum of checksums: it is taken modulo 2^64."""


def sample_checksum(feeds: Mapping[str, Array], number: int) -> int:
    """Compute a checksum of a sample's arrays and of its number, to be `added` to those of other samples."""
    parts = [f"{name} {checksum(feeds[name])}" for name in sorted(feeds)]
    digest = hashlib.blake2b(f"{number} {parts}".encode(), digest_size=SUM_DIGITS // 2)
    return int.from_bytes(digest.digest(), "big")


def added(one: str, other: str) -> str:
    """Add the checksums of two sets of samples, in hexadecimal digits; the order of samples does not matter.

    "" if one of them is unknown.
    """
    if not one or not other:
        return ""
    return sum_text(int(one, 16) + int(other, 16))


def sum_text(total: int) -> str:
    """Write a sum of checksums in hexadecimal digits."""
    return f"{total % 16**SUM_DIGITS:0{SUM_DIGITS}x}"


def checksum(array: Array, before: int = 0) -> int:
    """Compute the CRC-32 of the values, continuing from ``before``.

    The result does not depend on how a sequence of values is split into arrays.
    """
    return zlib.crc32(content(array), before)

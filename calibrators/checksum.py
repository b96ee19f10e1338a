"""Arrays as bytes, and checksums of them: whether two runs were given the same."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


def content(array: Array) -> bytes | memoryview:
    """The values in C order, without a copy where they lie in one piece; of text, its spelling."""
    if array.dtype.hasobject:
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def checksum(array: Array, before: int = 0) -> int:
    """CRC-32 of the values, going on from ``before``: the same however a stretch of them is cut."""
    return zlib.crc32(content(array), before)

"""Write tensors to the data file of a model one after the other, so that one at a time is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

ALIGNMENT = 4096
"""Tensors begin at multiples of this, in bytes: runtimes map pages of the file."""


class TensorStore:
    """A data file that is being written.

    Attributes:
        bytes: the bytes written so far.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Write to ``file``, which is open at its start.

        Args:
            path: its path; tensors refer to it by name.
            file: the file.
        """
        self._path, self._file = path, file
        self.bytes = 0

    def add(self, name: str, array: NDArray[np.generic]) -> ir.ExternalTensor:
        """Write an array of a type that onnx_ir knows."""
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        return self.copy(name, tensor)

    def add_packed(
        self, name: str, levels: NDArray[np.uint8], dtype: ir.DataType, shape: Sequence[int]
    ) -> ir.ExternalTensor:
        """Write integers of fewer than 8 bits, the first ones in the low bits of each byte.

        Args:
            name: the name of the tensor.
            levels: the integers; of signed ones the low bits count.
            dtype: their type in the file.
            shape: their shape in the file.
        """
        data = packed(levels.reshape(1, -1), dtype.bitwidth)
        return self._written(name, dtype, shape, data)

    def copy(self, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Write a tensor of another file, or one in memory."""
        start = self._start()
        if isinstance(tensor, ir.ExternalTensor):
            tensor.tofile(self._file)
            tensor.release()
        else:
            self._file.write(tensor.tobytes())
        return self._made(name, tensor.dtype, tensor.shape.numpy(), start)

    def holds(self, tensor: ir.TensorProtocol) -> bool:
        """Whether the tensor is in this file."""
        return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) == self._path

    def _written(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], data: NDArray[np.uint8]
    ) -> ir.ExternalTensor:
        start = self._start()
        self._file.write(np.ascontiguousarray(data).data)
        return self._made(name, dtype, shape, start)

    def _start(self) -> int:
        start = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(start)
        return start

    def _made(self, name: str, dtype: ir.DataType, shape: Sequence[int], start: int) -> ir.ExternalTensor:
        self._file.flush()
        length = self._file.tell() - start
        self.bytes += length
        return ir.ExternalTensor(
            self._path.name,
            start,
            length,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=self._path.parent,
        )


def packed(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack levels ``[R, n]`` along the second axis, the first ones in the low bits of each byte.

    Args:
        levels: the levels; only the low ``bits`` of each count.
        bits: 2, 4 or 8.

    Returns:
        ``[R, ceil(n * bits / 8)]``; missing levels at the end of a row are 0.
    """
    each = 8 // bits
    if each == 1:
        return levels
    count = -(-levels.shape[1] // each)
    padded = levels
    if count * each != levels.shape[1]:
        padded = np.zeros((len(levels), count * each), np.uint8)
        padded[:, : levels.shape[1]] = levels
    mask = np.uint8(2**bits - 1)
    result: NDArray[np.uint8] = padded[:, 0::each] & mask
    for place in range(1, each):
        result |= (padded[:, place::each] & mask) << np.uint8(place * bits)
    return result

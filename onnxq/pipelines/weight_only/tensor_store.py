"""Write tensors to the data files of a model one after the other, so that one at a time is in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph import files
from onnxq.graph.files import data_files

ALIGNMENT = 4096
"""Tensors begin at multiples of this, in bytes: runtimes map pages of the file."""


class TensorStore:
    """The data files of a model that is being written, as a context that closes them.

    Attributes:
        bytes: the bytes written so far.
    """

    def __init__(self, model: Path) -> None:
        """Write the `data_files` of ``model``: another one begins where one would be larger than a limit."""
        self._files = list(data_files(model))
        self._open: list[BinaryIO] = []
        self.bytes = 0

    def __enter__(self) -> TensorStore:
        """Open the first file."""
        self._open.append(self._files[0].open("wb"))
        return self

    def __exit__(self, *error: object) -> None:
        """Close all files."""
        for file in self._open:
            file.close()

    def keep(self, used: Collection[Path]) -> None:
        """Remove the files that are not ``used``, because all their tensors are in the model itself."""
        for path in self._files[: len(self._open)]:
            if path not in used:
                path.unlink()

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
        start = self._start(tensor.nbytes)
        if isinstance(tensor, ir.ExternalTensor):
            tensor.tofile(self._open[-1])
            tensor.release()
        else:
            self._open[-1].write(tensor.tobytes())
        return self._made(name, tensor.dtype, tensor.shape.numpy(), start)

    def holds(self, tensor: ir.TensorProtocol) -> bool:
        """Whether the tensor is in one of the files."""
        return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) in self._files

    def _written(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], data: NDArray[np.uint8]
    ) -> ir.ExternalTensor:
        start = self._start(data.nbytes)
        self._open[-1].write(np.ascontiguousarray(data).data)
        return self._made(name, dtype, shape, start)

    def _start(self, size: int) -> int:
        """Return where a tensor of so many bytes begins, in the last file, or in a new one."""
        start = -(-self._open[-1].tell() // ALIGNMENT) * ALIGNMENT
        if start and start + size > files.SHARD_BYTES and len(self._open) < len(self._files):
            self._open.append(self._files[len(self._open)].open("wb"))
            start = 0
        self._open[-1].seek(start)
        return start

    def _made(self, name: str, dtype: ir.DataType, shape: Sequence[int], start: int) -> ir.ExternalTensor:
        file, path = self._open[-1], self._files[len(self._open) - 1]
        file.flush()
        length = file.tell() - start
        self.bytes += length
        return ir.ExternalTensor(
            path.name,
            start,
            length,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=path.parent,
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

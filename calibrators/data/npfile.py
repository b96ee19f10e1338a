"""Read ``.npz`` and ``.npy`` files: headers, whole arrays, or arrays row by row.

numpy loads the arrays of a ``.npz`` file whole. Here a row is decompressed only when it is needed.
The array of a ``.npy`` file has the name "".
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from calibrators.data.samples import Array
from calibrators.errors import CalibrationError

DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that numpy and zipfile raise on damaged files; SyntaxError because headers are Python literals."""


@dataclass(frozen=True)
class Header:
    """The header of a stored array: shape, type, and whether it is in Fortran order."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of numpy, zipfile or the system into a CalibrationError that names the file."""
    try:
        yield
    except DAMAGE as e:
        raise CalibrationError(
            f"{path}: cannot be read, or is damaged ({e}): write it again with numpy.savez or numpy.save"
        ) from e


def _open(stack: ExitStack, path: Path, key: str) -> IO[bytes]:
    if path.suffix.lower() == ".npy":
        return stack.enter_context(path.open("rb"))
    return stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(f"{key}.npy"))


def read_headers(path: Path) -> dict[str, Header]:
    """Read the headers of a file, by array name.

    Raises:
        CalibrationError: the file is damaged, or holds something other than plain arrays.
    """
    with _reading(path):
        if path.suffix.lower() == ".npy":
            keys = [""]
        else:
            with zipfile.ZipFile(path) as archive:
                keys = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
        return {key: _header(path, key) for key in keys}


def _header(path: Path, key: str) -> Header:
    with ExitStack() as stack:
        return _read_header(_open(stack, path, key), f"{path}: array '{key}'" if key else str(path))


def _read_header(file: IO[bytes], where: str) -> Header:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"unknown format version {version}")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject or dtype.names:
        raise CalibrationError(
            f"{where} holds Python objects or records, which are not loaded: store plain arrays of numbers"
        )
    return Header(shape, dtype, fortran)


def check_sums(path: Path) -> None:
    """Verify the checksums of an archive, by reading it once.

    Raises as `read_headers` does. A ``.npy`` file has no checksum and is not read.
    """
    if path.suffix.lower() == ".npy":
        return
    with _reading(path), zipfile.ZipFile(path) as archive:
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {bad} is wrong")


def read_whole(path: Path, key: str) -> Array:
    """Read one whole array; raises as `read_headers` does."""
    with _reading(path), ExitStack() as stack:
        array: Array = np.lib.format.read_array(_open(stack, path, key), allow_pickle=False)
        return array


class Rows:
    """Reads single rows ``[i]`` of a stored array in C order; fastest if read in order.

    The file stays open until ``stack`` closes. Raises as `read_headers` does; after a row that cannot be
    read, others can still be read.
    """

    def __init__(self, stack: ExitStack, path: Path, key: str, header: Header) -> None:
        self._path, self._header = path, header
        self._size = math.prod(header.shape[1:]) * header.dtype.itemsize
        with _reading(path):
            self._file = _open(stack, path, key)
            _read_header(self._file, str(path))
            self._start = self._file.tell()

    def __call__(self, index: int) -> Array:
        """Read row ``index``."""
        place = self._start + index * self._size
        with _reading(self._path):
            if self._file.tell() != place:
                self._file.seek(place)
            data = self._file.read(self._size)
            if len(data) < self._size:
                raise EOFError(f"it ends in row {index} of {self._header.shape[0]}")
        return np.frombuffer(data, self._header.dtype).reshape(self._header.shape[1:])

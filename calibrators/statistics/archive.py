"""Read and write files of statistics: an ``.npz`` of columns, with a JSON header.

A column has one row for each tensor. Data whose length differs from tensor to tensor is concatenated to one
array, and another column holds the lengths.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrators.atomic import NOT_PLAIN, drafts, is_special
from calibrators.errors import CalibrationError
from calibrators.statistics.channel_means import ChannelMeans
from calibrators.statistics.exact_sum import WINDOWS, ExactSum
from calibrators.statistics.histogram import EXPONENTS, SIDE, Histogram
from calibrators.statistics.kept_inputs import KeptInputs, read_inputs
from calibrators.statistics.sample_extremes import LENGTH, SampleExtremes
from calibrators.statistics.tensor import Extreme, TensorStatistics

FORMAT = "calibration statistics"
VERSION = 2
HEADER = "header"

MOST_HEADER_BYTES = 1 << 26
"""The largest header that is read. It holds little but tensor names: 100 000 of 600 characters fit."""

MOST_ITEM_BYTES = 1 << 16
"""The largest element of an array that is read. Names of samples may be paths: up to 4096
characters of 4 bytes."""

MOST_ROWS = {"": 1, "entries": LENGTH, "channels": 1 << 22}
"""The most rows of one tensor, by the column that holds their number. The longest axes of channels are
vocabularies, with some 2^18 entries."""

Arrays = Mapping[str, NDArray[Any]]

_COLUMNS: tuple[tuple[str, type, Callable[[TensorStatistics], object]], ...] = (
    ("low", np.float64, lambda t: t.low),
    ("high", np.float64, lambda t: t.high),
    ("low_number", np.int64, lambda t: t.lowest.number),
    ("high_number", np.int64, lambda t: t.highest.number),
    ("low_name", np.str_, lambda t: t.lowest.name),
    ("high_name", np.str_, lambda t: t.highest.name),
    ("count", np.int64, lambda t: t.count),
    ("nonfinite", np.int64, lambda t: t.nonfinite),
    ("samples", np.int64, lambda t: t.samples),
    ("exponent", np.int64, lambda t: t.histogram.exponent),
    ("block", np.int64, lambda t: t.trail.block),
    ("entries", np.int64, lambda t: len(t.trail.lows)),
    ("channel_axis", np.int64, lambda t: t.channels.axis if t.channels else 0),
    ("channels", np.int64, lambda t: t.channels.counts.size if t.channels else 0),
)
"""Columns with one value per tensor: name, type, getter."""

_ARRAYS: tuple[
    tuple[str, type, tuple[int, ...], str, Callable[[TensorStatistics], NDArray[Any] | None]], ...
] = (
    ("counts", np.int64, (2 * SIDE,), "", lambda t: t.histogram.counts[None]),
    ("trail_lows", np.float32, (), "entries", lambda t: t.trail.lows),
    ("trail_highs", np.float32, (), "entries", lambda t: t.trail.highs),
    (
        "channel_sums",
        np.int64,
        (WINDOWS,),
        "channels",
        lambda t: t.channels.sums.windows if t.channels else None,
    ),
    ("channel_counts", np.int64, (), "channels", lambda t: t.channels.counts if t.channels else None),
)
"""Concatenated arrays: name, type, shape of a row, column with the number of rows ("": one row), getter."""


def write(
    path: Path,
    header: Mapping[str, object],
    tensors: Sequence[TensorStatistics],
    inputs: KeptInputs | None = None,
) -> None:
    """Write statistics to a file, which is replaced only when all is written.

    Args:
        path: the file.
        header: JSON values to store.
        tensors: the statistics of each tensor.
        inputs: samples to store beside them, without compression.

    Raises:
        CalibrationError: the file cannot be written.
    """
    described = {} if inputs is None else {"inputs": inputs.described()}
    text = json.dumps({"format": FORMAT, "version": VERSION, **header, **described})
    arrays: dict[str, Any] = {HEADER: np.frombuffer(text.encode(), np.uint8)}
    arrays |= {name: np.array([get(t) for t in tensors], kind) for name, kind, get in _COLUMNS}
    for name, kind, shape, _, get_rows in _ARRAYS:
        parts = [rows for t in tensors if (rows := get_rows(t)) is not None]
        arrays[name] = np.concatenate([np.empty((0, *shape), kind), *parts])
    try:
        with drafts([path]) as beside, beside[path].open("wb+") as file:
            np.savez_compressed(file, **arrays)
            with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
                for name, array in () if inputs is None else inputs.arrays():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
    except OSError as error:
        raise CalibrationError(
            f"statistics cannot be written to {path}: {error.strerror or error}"
        ) from error


def read(path: Path) -> tuple[dict[str, Any], list[TensorStatistics], KeptInputs | None]:
    """Read the header, the tensors and the inputs of a file that `write` made.

    An array is read only if its type and shape are those that the number of tensors asks for: a small file
    may declare, and unpack to, more than the memory holds.

    Raises:
        CalibrationError: the file is missing or damaged, or has another format or version.
    """
    with _opened(path) as archive:
        header, array = _header(path, archive), partial(_array, archive)
        try:
            inputs = read_inputs(header["inputs"], array) if "inputs" in header else None
            return header, list(_tensors(array, len(header["tensors"]))), inputs
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, error) from error


def read_header(path: Path) -> dict[str, Any]:
    """Read only the header of a file; raises as `read`."""
    with _opened(path) as archive:
        return _header(path, archive)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if is_special(path):
        raise CalibrationError(f"statistics cannot be read from {path}: it {NOT_PLAIN}: give a plain file")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OSError as error:
        raise CalibrationError(f"statistics cannot be read from {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(
            f"{path} does not hold calibration statistics, or is damaged: {error}"
        ) from error


def damaged(path: Path, error: Exception) -> CalibrationError:
    """Make the error for a file whose contents are inconsistent."""
    return CalibrationError(f"{path} is damaged: {error!r}; collect the statistics again")


def _header(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    if f"{HEADER}.npy" not in archive.namelist():
        raise CalibrationError(f"{path} does not hold calibration statistics")
    (size,), _ = _declared(archive, HEADER)
    header = json.loads(_array(archive, HEADER, np.uint8, (min(size, MOST_HEADER_BYTES),)).tobytes())
    _check(path, header)
    return dict(header)


def _declared(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the shape and the type of an array."""
    with archive.open(f"{name}.npy") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} has an unknown format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read an array of this type and shape; ValueError, before it is unpacked, if it has others."""
    found, dtype = _declared(archive, name)
    if found != shape:
        raise ValueError(f"{name} of shape {found}, expected {shape}")
    if not np.can_cast(dtype, kind, "safe") or dtype.itemsize > MOST_ITEM_BYTES:
        raise ValueError(f"{name} of type {dtype}, expected {np.dtype(kind)}")
    with archive.open(f"{name}.npy") as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{name} is longer than its shape {found}")
    return array.astype(kind)


def _check(path: Path, header: object) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CalibrationError(f"{path} does not hold calibration statistics")
    if header.get("version") != VERSION:
        raise CalibrationError(
            f"{path} holds statistics of version {header.get('version')}, expected {VERSION}; "
            "collect them again with this release"
        )


def _tensors(read_array: Callable[..., NDArray[Any]], tensors: int) -> Iterator[TensorStatistics]:
    """Yield the statistics of each tensor; KeyError or ValueError if the arrays are inconsistent."""
    columns = {name: read_array(name, kind, (tensors,)).tolist() for name, kind, _ in _COLUMNS}
    rows = {}
    for name, kind, shape, lengths, _ in _ARRAYS:
        counts = columns[lengths] if lengths else [1] * tensors
        _require(
            all(0 <= count <= MOST_ROWS[lengths] for count in counts),
            f"{name} with up to {max(counts, default=0)} rows",
        )
        ends = np.cumsum(counts, dtype=np.int64)
        whole = read_array(name, kind, (int(ends[-1]) if tensors else 0, *shape))
        rows[name] = np.split(whole, ends[:-1]) if tensors else []
    for i in range(tensors):
        single = {name: values[i] for name, values in columns.items()}
        yield _tensor(single, {name: parts[i].copy() for name, parts in rows.items()})


def _tensor(row: Mapping[str, Any], rows: Arrays) -> TensorStatistics:
    counts = rows["counts"][0]
    _require((counts >= 0).all() and counts.sum() == row["count"], "the counts do not add up")
    _require(row["exponent"] in EXPONENTS, f"exponent {row['exponent']}")
    _require(row["block"] > 0, f"{row['block']} samples per entry")
    if row["count"]:
        _require(-math.inf < row["low"] <= row["high"] < math.inf, f"range [{row['low']}, {row['high']}]")
    tensor = TensorStatistics()
    tensor.lowest = Extreme(row["low"], row["low_number"], row["low_name"])
    tensor.highest = Extreme(row["high"], row["high_number"], row["high_name"])
    tensor.count, tensor.nonfinite, tensor.samples = row["count"], row["nonfinite"], row["samples"]
    tensor.histogram = Histogram(row["exponent"], counts)
    tensor.trail = SampleExtremes(rows["trail_lows"], rows["trail_highs"], row["block"])
    if row["channels"]:
        sums = ExactSum(rows["channel_sums"])
        tensor.channels = ChannelMeans(row["channel_axis"], sums, rows["channel_counts"])
    return tensor


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)

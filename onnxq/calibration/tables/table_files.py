"""Read and write calibration tables in any format, and check what a format can hold."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from calibrators.atomic import NotWrittenError, staged
from calibrators.errors import shorten
from onnxq.calibration.tables import ncnn
from onnxq.calibration.tables.formats import FORMATS, Format, Part
from onnxq.calibration.tables.parsing import Document
from onnxq.calibration.tables.table import INT8, Encoding, Table
from onnxq.core.errors import CalibrationError, ConfigError, ModelError, did_you_mean

logger = logging.getLogger(__name__)


def format_for(path: Path, name: str | None = None) -> Format:
    """Find the format called ``name``, or else the one that the file's name implies.

    Raises:
        ConfigError: there is none; the message lists the valid ones.
    """
    valid = ", ".join(FORMATS)
    if name is not None:
        if name not in FORMATS:
            near = did_you_mean(name, FORMATS)
            raise ConfigError(f"unknown table format {name!r}; valid formats: {valid}{near}")
        return FORMATS[name]
    endings = {suffix: each for each in FORMATS.values() for suffix in each.suffixes}
    for ending in sorted(endings, key=len, reverse=True):
        if path.name.lower().endswith(ending):
            return endings[ending]
    raise ConfigError(f"{path}: the name does not imply a table format: give one of {valid}")


def is_statistics(path: Path) -> bool:
    """Whether a file holds saved statistics instead of a table.

    Raises:
        CalibrationError: the file cannot be read.
    """
    return Document.load(path).data.startswith(b"PK")


def read(path: str | os.PathLike[str], name: str | None = None) -> Table:
    """Read the table in a file; without ``name``, its format is recognised by the content.

    Raises:
        CalibrationError: the file cannot be read, is damaged, or holds no table that can be read.
        ConfigError: there is no format called ``name``, or onnxq only writes it.
    """
    document = Document.load(Path(path))
    known = _known_format(document) if name is None else format_for(document.path, name)
    if known.reader is None:
        raise ConfigError(f"tables of format {known.name} can only be written: they do not name tensors")
    try:
        return known.reader.decode(document)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, struct.error) as error:
        raise CalibrationError(f"{path}: a damaged {known.name} table: {_reason(error)}") from error


def encode(table: Table, path: Path, known: Format) -> Mapping[Path, bytes]:
    """Encode a table, and log the content that the format cannot hold.

    Args:
        table: the table.
        path: the path to write to.
        known: the format.

    Returns:
        The content of each file of the table.

    Raises:
        CalibrationError: the format cannot hold a name, or it names layers and the table has none.
    """
    if not known.ours:
        _say_absent(table, path, known)
        table = table.for_others()
    check_names(table.layers if known.layers else table.activations, path, known)
    if losses := [part.value for part in Part if part not in known.holds and _PRESENT[part](table)]:
        logger.warning("%s: %s tables hold %s", path, known.name, "; ".join(losses))
    try:
        return known.encode(table, path)
    except (CalibrationError, UnicodeEncodeError) as error:
        raise CalibrationError(f"{path}: {error}") from error


def encode_all(table: Table, goals: Iterable[tuple[Path, str | None]]) -> dict[Path, bytes]:
    """Encode a table for several ``goals``, (path, format name or None).

    Raises:
        OnnxqError: as `encode` and `format_for`.
    """
    contents = [encode(table, path, format_for(path, name)) for path, name in goals]
    return {path: data for files in contents for path, data in files.items()}


def write(files: Mapping[Path, bytes]) -> None:
    """Write the files from `encode`: each one completely or not at all, and none if one cannot be written.

    In a block of `onnxq.graph.files.written_together` they appear at its end.

    Raises:
        ModelError: a file cannot be written.
    """
    path = next(iter(files), Path())
    try:
        with staged(files) as beside:
            for path, content in files.items():
                beside[path].write_bytes(content)
    except OSError as error:
        where = error.filename if isinstance(error, NotWrittenError) else path
        raise ModelError(f"{where}: the table cannot be written: {error.strerror or error}") from error


def check_names(names: Collection[str], path: Path, known: Format) -> None:
    """Check that a format can hold these names.

    Args:
        names: names of tensors or layers.
        path: the path of the table, for the message.
        known: the format.

    Raises:
        CalibrationError: it cannot hold one of them.
    """
    for name in names:
        if clash := next((letter for letter in known.refuses if letter in name), None):
            raise CalibrationError(
                f"{path}: {'layer' if known.layers else 'tensor'} {name!r} has {clash!r} in its name, which "
                f"{known.name} tables cannot hold: rename it in the model, or write another format"
            )


def _say_absent(table: Table, path: Path, known: Format) -> None:
    held = {} if known.layers else {**table.activations}
    if Part.WEIGHTS in known.holds and not known.layers:
        held |= table.weights
    if left_out := [name for name in held if name in table.absent]:
        logger.warning(
            "%s: tensors that the float model does not have, or has with other values, are left out: %s",
            path,
            shorten(left_out),
        )


def _known_format(document: Document) -> Format:
    readable = [each for each in FORMATS.values() if each.reader is not None]
    for known in readable:
        if known.reader is not None and known.reader.recognises(document):
            return known
    if ncnn.looks_like_one(document):
        raise CalibrationError(f"{document.path}: ncnn tables cannot be read: they name layers, not tensors")
    raise CalibrationError(
        f"{document.path}: not a calibration table, or a damaged one; onnxq reads saved statistics and "
        f"tables of {', '.join(each.name for each in readable)}"
    )


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _all(table: Table) -> list[Encoding]:
    return [*table.activations.values(), *table.weights.values()]


def _off_center(encoding: Encoding) -> bool:
    return not bool((encoding.low == -encoding.high).all())


def _other_width(encoding: Encoding) -> bool:
    return encoding.spec is not None and encoding.spec.dtype.bitwidth != 8


def _odd_scale(encoding: Encoding) -> bool:
    return bool((np.frexp(encoding.params_for(INT8).scale)[0] != 0.5).any())


_PRESENT: Mapping[Part, Callable[[Table], bool]] = {
    Part.WEIGHTS: lambda table: bool(table.weights),
    Part.ENDS: lambda table: any(map(_off_center, table.activations.values())),
    Part.WIDTHS: lambda table: any(map(_other_width, _all(table))),
    Part.ANY_SCALE: lambda table: any(map(_odd_scale, table.activations.values())),
}
"""Whether a table has content of each kind."""

"""Read and write the three files of ONNX Runtime's calibration tools.

Its TensorRT and MIGraphX execution providers read ``calibration.flatbuffers``: name -> largest magnitude as a
decimal. ``calibration.cache`` has the same as text, and ``calibration.json`` has both ends of every range.
ONNX Runtime's tools write the larger end as the magnitude. onnxq writes the end that is larger in magnitude:
[-8, 1] becomes 8.

The schema of the flatbuffer::

    table TrtTable { dict: [KeyValue]; }
    table KeyValue { key: string; value: string; }
    root_type TrtTable;
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flatbuffers import Builder, number_types, packer
from flatbuffers import encode as scalars
from flatbuffers.table import Table as Record

from onnxq.calibration.tables.parsing import Document, mapping, number
from onnxq.calibration.tables.table import Encoding, Table
from onnxq.core.numerics import SMALLEST_SCALE

NAME = "calibration.flatbuffers"
"""The default name of the file that the TensorRT provider looks for in its cache folder."""


_TYPE = {"CLS": "TensorData"}


def files(path: Path) -> tuple[Path, ...]:
    """The paths of the three files: with the stem of ``path``, or the usual names if it is a folder."""
    path = path / NAME if path.is_dir() else path
    first = path.with_suffix(".flatbuffers") if path.suffix in (".json", ".cache") else path
    return first, first.with_suffix(".json"), first.with_suffix(".cache")


def encode(table: Table, path: Path) -> Mapping[Path, bytes]:
    """Encode a table as the three files."""
    ranges = {name: encoding.whole() for name, encoding in table.activations.items()}
    values = [(name, _decimal(float(ranges[name].amax))) for name in sorted(ranges)]
    tree = {
        name: {"lowest": float(each.low), "highest": float(each.high), **_TYPE}
        for name, each in ranges.items()
    }
    text = "".join(f"{name} {value}\n" for name, value in values)
    return dict(
        zip(files(path), (_to_flatbuffer(values), json.dumps(tree).encode(), text.encode()), strict=True)
    )


def recognises(document: Document) -> bool:
    """Whether this is one of the three files."""
    if document.text is None:
        return _is_flat(document.data)
    if document.tree:
        return all(isinstance(each, dict) and "CLS" in each for each in document.tree.values())
    return bool(document.lines) and all(map(_is_entry, document.lines))


def decode(document: Document) -> Table:
    """Decode the ranges of one of the three files."""
    if document.tree:
        return Table({name: _range(mapping(each)) for name, each in document.tree.items()})
    entries = _from_flatbuffer(document.data) if document.text is None else map(_entry, document.lines)
    return Table({name: _around_zero(float(value)) for name, value in entries})


def _decimal(amax: float) -> str:
    """Format a magnitude as the providers read it: ``std::stof`` refuses subnormal float32 numbers."""
    return repr(amax if amax >= SMALLEST_SCALE else 0.0)


def _is_flat(data: bytes) -> bool:
    try:
        return bool(_from_flatbuffer(data))
    except ValueError:
        return False


def _entry(line: str) -> tuple[str, str]:
    name, _, value = line.rpartition(" ")
    return name, value


def _is_entry(line: str) -> bool:
    name, value = _entry(line)
    try:
        return bool(name) and float(value) >= 0
    except ValueError:
        return False


def _range(tree: Mapping[str, object]) -> Encoding:
    return Encoding.of_range(number(tree["lowest"]), number(tree["highest"]))


def _around_zero(amax: float) -> Encoding:
    return Encoding.of_range(-amax, amax)


_FIRST, _SECOND = 4, 6
"""The offsets of the first and second field in a record's vtable."""


_POINTER = 4
"""The size of an offset, in bytes."""


def _to_flatbuffer(entries: Iterable[tuple[str, str]]) -> bytes:
    """Build the buffer that holds these keys and values in reverse order, as ONNX Runtime's tools do."""
    builder = Builder(1024)
    records = [_record(builder, *entry) for entry in entries]
    builder.StartVector(_POINTER, len(records), _POINTER)
    for record in records:
        builder.PrependUOffsetTRelative(record)
    vector = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def _record(builder: Builder, key: str, value: str) -> int:
    strings = builder.CreateString(key), builder.CreateString(value)
    builder.StartObject(2)
    for slot, string in enumerate(strings):
        builder.PrependUOffsetTRelativeSlot(slot, string, 0)
    return int(builder.EndObject())


def _from_flatbuffer(data: bytes) -> list[tuple[str, str]]:
    """Read the keys and values of a buffer, in the order in which `_to_flatbuffer` got them.

    Raises:
        ValueError: this is no such buffer, or a damaged one.
    """
    try:
        return list(_entries(data))[::-1]
    except (IndexError, TypeError, struct.error) as error:
        raise ValueError(f"no flatbuffer of keys and values: {error}") from error


def _entries(data: bytes) -> Iterator[tuple[str, str]]:
    root = Record(data, scalars.Get(packer.uoffset, data, 0))
    field = root.Offset(_FIRST)
    if not field:
        return
    count, start = root.VectorLen(field), root.Vector(field)
    if count > len(data) // _POINTER:
        raise ValueError(f"{count} entries in {len(data)} bytes")
    for index in range(count):
        record = Record(data, root.Indirect(start + index * _POINTER))
        yield _string(record, _FIRST), _string(record, _SECOND)


def _string(record: Record, slot: int) -> str:
    field = record.Offset(slot)
    if not field:
        raise ValueError("an entry without a key or a value")
    return bytes(record.String(number_types.UOffsetTFlags.py_type(field + record.Pos))).decode()

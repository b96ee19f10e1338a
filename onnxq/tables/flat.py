"""The flatbuffer that ONNX Runtime keeps calibration tables in.

Its schema::

    table TrtTable { dict: [KeyValue]; }
    table KeyValue { key: string; value: string; }
    root_type TrtTable;
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from flatbuffers import Builder, encode, number_types, packer
from flatbuffers.table import Table as Record

_FIRST, _SECOND = 4, 6
"""Where a record's own table of contents has its first and second field."""

_POINTER = 4
"""Bytes of an offset."""


def write(entries: Iterable[tuple[str, str]]) -> bytes:
    """The buffer that holds these keys and values, backwards: as ONNX Runtime's own tools write it."""
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


def read(data: bytes) -> list[tuple[str, str]]:
    """The keys and values of a buffer, in the order in which `write` was given them.

    Raises:
        ValueError: this is no such buffer, or a damaged one.
    """
    try:
        return list(_entries(data))[::-1]
    except (IndexError, TypeError, struct.error) as error:
        raise ValueError(f"no flatbuffer of keys and values: {error}") from error


def _entries(data: bytes) -> Iterator[tuple[str, str]]:
    root = Record(data, encode.Get(packer.uoffset, data, 0))
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

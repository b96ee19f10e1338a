"""TensorRT's calibration cache (TensorRT 10 and older), beside the float model.

Text: a header, then a line a tensor. The value is the scale, amax / 127, as the bits of a float32 in hex::

    TRT-8205-EntropyCalibration2
    input: 3b810a13
"""

from __future__ import annotations

import struct

from onnxq.calibration.tables.parsing import Document
from onnxq.calibration.tables.table import INT8, Encoding, Table

HEADER = "TRT-8205-EntropyCalibration2"
"""The release of TensorRT that wrote it, and the calibrator, which must be the one that reads it."""


def encode(table: Table) -> bytes:
    """The content of the file."""
    lines = [HEADER, *(f"{name}: {_hex(encoding)}" for name, encoding in table.activations.items())]
    return "".join(f"{line}\n" for line in lines).encode()


def recognises(document: Document) -> bool:
    """Whether this is such a file, of any release and calibrator."""
    return document.text is not None and document.text.startswith("TRT-")


def decode(document: Document) -> Table:
    """The scales of such a file."""
    return Table(dict(map(_entry, document.lines[1:])))


def _hex(encoding: Encoding) -> str:
    return struct.pack(">f", encoding.whole().params_for(INT8).scale).hex()


def _entry(line: str) -> tuple[str, Encoding]:
    name, _, value = line.rpartition(":")
    bits = bytes.fromhex(value)
    if not name or len(bits) != 4:
        raise ValueError(f"expected 'NAME: ' and 8 hex digits, got {line!r}")
    return name, Encoding.of_scale(*struct.unpack(">f", bits))

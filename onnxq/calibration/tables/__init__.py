"""Calibration tables: ranges as files that other programs read, in several formats.

`Table` is the content of any of them. `FORMATS` lists the formats; a table read from one can be written as
any other.
"""

from __future__ import annotations

from onnxq.calibration.tables.formats import FORMATS
from onnxq.calibration.tables.table import Table
from onnxq.calibration.tables.table_files import (
    encode,
    encode_all,
    format_for,
    is_statistics,
    read,
    write,
)

__all__ = [
    "FORMATS",
    "Table",
    "encode",
    "encode_all",
    "format_for",
    "is_statistics",
    "read",
    "write",
]

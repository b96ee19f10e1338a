"""The three files of ONNX Runtime's calibration tools: for its TensorRT and MIGraphX execution providers.

``calibration.flatbuffers`` is the one that the providers read, name -> largest magnitude as a decimal;
``calibration.cache`` has the same as text, and ``calibration.json`` both ends of every range. Where the
peer writes the larger end, we write the end that is larger in magnitude: [-8, 1] is ±8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from onnxq.numerics import SMALLEST_SCALE
from onnxq.tables import flat
from onnxq.tables.document import Document, mapping, number
from onnxq.tables.table import Encoding, Table

NAME = "calibration.flatbuffers"
"""What the TensorRT provider looks for in its cache folder, unless it is told another name."""

_TYPE = {"CLS": "TensorData"}


def files(path: Path) -> tuple[Path, ...]:
    """The three files: ``path`` and its neighbours, or those of the usual names in a folder."""
    path = path / NAME if path.is_dir() else path
    first = path.with_suffix(".flatbuffers") if path.suffix in (".json", ".cache") else path
    return first, first.with_suffix(".json"), first.with_suffix(".cache")


def encode(table: Table, path: Path) -> Mapping[Path, bytes]:
    """The content of the three files."""
    ranges = {name: encoding.whole() for name, encoding in table.activations.items()}
    values = [(name, _decimal(float(ranges[name].amax))) for name in sorted(ranges)]
    tree = {
        name: {"lowest": float(each.low), "highest": float(each.high), **_TYPE}
        for name, each in ranges.items()
    }
    text = "".join(f"{name} {value}\n" for name, value in values)
    return dict(zip(files(path), (flat.write(values), json.dumps(tree).encode(), text.encode()), strict=True))


def recognises(document: Document) -> bool:
    """Whether this is one of the three."""
    if document.text is None:
        return _is_flat(document.data)
    if document.tree:
        return all(isinstance(each, dict) and "CLS" in each for each in document.tree.values())
    return bool(document.lines) and all(map(_is_entry, document.lines))


def decode(document: Document) -> Table:
    """The ranges of one of the three."""
    if document.tree:
        return Table({name: _range(mapping(each)) for name, each in document.tree.items()})
    entries = flat.read(document.data) if document.text is None else map(_entry, document.lines)
    return Table({name: _around_zero(float(value)) for name, value in entries})


def _decimal(amax: float) -> str:
    """As providers read it: ``std::stof`` refuses what is no normal float32."""
    return repr(amax if amax >= SMALLEST_SCALE else 0.0)


def _is_flat(data: bytes) -> bool:
    try:
        return bool(flat.read(data))
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

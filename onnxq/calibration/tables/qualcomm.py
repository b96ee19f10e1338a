"""Read and write encodings files of Qualcomm's SNPE (0.6.1) and QNN (1.0.0), used with the float model.

In both, ``real = (level + offset) * scale``, where level 0 is the lowest integer, signed or not. So offset is
minus the zero point of the unsigned type, and -128 for symmetric signed 8 bits. They differ in layout.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.tables.parsing import Document, mapping, numbers, scales, shortest
from onnxq.calibration.tables.table import (
    INT8,
    LARGEST,
    UINT8,
    Encoding,
    Table,
    integer_type,
    lowest,
    on_grid,
)
from onnxq.core.numerics import params_from_range
from onnxq.core.plan import QuantParams, QuantSpec

logger = logging.getLogger(__name__)

SNPE, QNN = "0.6.1", "1.0.0"
"""The versions of the two layouts."""

ACTIVATIONS, WEIGHTS = "activation_encodings", "param_encodings"


def encode_snpe(table: Table) -> bytes:
    """Encode a table in layout 0.6.1: one list of channels per tensor."""
    tree = {
        "version": SNPE,
        ACTIVATIONS: {name: _snpe(e, UINT8) for name, e in table.activations.items()},
        WEIGHTS: {name: _snpe(e, INT8) for name, e in table.weights.items()},
    }
    return _dump(tree)


def encode_qnn(table: Table) -> bytes:
    """Encode a table in layout 1.0.0: a list of tensors."""
    tree = {
        "version": QNN,
        ACTIVATIONS: [_qnn(name, e, UINT8) for name, e in table.activations.items()],
        WEIGHTS: [_qnn(name, e, INT8) for name, e in table.weights.items()],
    }
    return _dump(tree)


def recognises_snpe(document: Document) -> bool:
    """Whether this is a file of the older layout: a mapping by tensor."""
    return _is_encodings(document, dict)


def recognises_qnn(document: Document) -> bool:
    """Whether this is a file of the newer layout: a list of tensors."""
    return _is_encodings(document, list)


def decode_snpe(document: Document) -> Table:
    """Decode a file of layout 0.6.1."""
    activations, weights = (mapping(document.tree[key]).items() for key in (ACTIVATIONS, WEIGHTS))
    return Table(_known(activations, _from_snpe), _known(weights, _from_snpe))


def decode_qnn(document: Document) -> Table:
    """Decode a file of layout 1.0.0."""
    sections = ([mapping(entry) for entry in document.tree[key]] for key in (ACTIVATIONS, WEIGHTS))
    activations, weights = ([(str(entry["name"]), entry) for entry in section] for section in sections)
    return Table(_known(activations, _from_qnn), _known(weights, _from_qnn))


def _is_encodings(document: Document, kind: type) -> bool:
    activations = document.tree.get(ACTIVATIONS)
    return isinstance(activations, kind) and "version" in document.tree


def _dump(tree: Mapping[str, object]) -> bytes:
    return json.dumps(tree, separators=(",", ":")).encode()


def _snpe(encoding: Encoding, default: QuantSpec) -> list[dict[str, object]]:
    spec, params = encoding.decided(default)
    offsets = _offsets(spec, params).reshape(-1).tolist()
    steps = 2**spec.dtype.bitwidth - 1
    return [
        {
            "bitwidth": spec.dtype.bitwidth,
            "dtype": "int",
            "is_symmetric": str(spec.symmetric),
            "min": shortest(max(float(scale) * offset, -LARGEST)),
            "max": shortest(min(float(scale) * (steps + offset), LARGEST)),
            "offset": offset,
            "scale": shortest(scale),
        }
        for scale, offset in zip(params.scale.reshape(-1), offsets, strict=True)
    ]


def _qnn(name: str, encoding: Encoding, default: QuantSpec) -> dict[str, object]:
    spec, params = encoding.decided(default)
    return {
        "name": name,
        "dtype": "INT",
        "enc_type": "PER_CHANNEL" if encoding.per_channel else "PER_TENSOR",
        "is_sym": spec.symmetric,
        "bw": spec.dtype.bitwidth,
        "scale": shortest(params.scale.reshape(-1)),
        "offset": [float(offset) for offset in _offsets(spec, params).reshape(-1)],
    }


def _offsets(spec: QuantSpec, params: QuantParams) -> NDArray[np.int64]:
    return lowest(spec) - params.zero_point.astype(np.int64)


def _known(
    entries: Iterable[tuple[str, Any]], decode: Callable[[Any], Encoding | None]
) -> dict[str, Encoding]:
    """Decode the integer per-tensor and per-channel encodings, and log those that are ignored."""
    decoded = {name: decode(entry) for name, entry in entries}
    known = {name: encoding for name, encoding in decoded.items() if encoding is not None}
    if passed_over := [name for name in decoded if name not in known]:
        logger.warning(
            "%d encodings are ignored, because they are float or have one scale per block: %s",
            len(passed_over),
            ", ".join(passed_over[:5]),
        )
    return known


def _from_snpe(channels: Sequence[Any]) -> Encoding | None:
    entries = [mapping(channel) for channel in channels]
    if any(str(entry.get("dtype", "int")).lower() != "int" for entry in entries):
        return None
    bits, symmetric = entries[0]["bitwidth"], str(entries[0].get("is_symmetric", False)) == "True"
    if any("scale" not in entry for entry in entries):
        return _from_ends(*_columns(entries, "min", "max"), bits)
    return _encoding(bits, symmetric, *_columns(entries, "scale", "offset"))


def _columns(entries: Sequence[Mapping[str, Any]], first: str, second: str) -> tuple[Any, Any]:
    """Two fields of all channels: a list each, or a number each if there is only one channel."""
    if len(entries) == 1:
        return entries[0][first], entries[0][second]
    return [entry[first] for entry in entries], [entry[second] for entry in entries]


def _from_qnn(entry: Mapping[str, Any]) -> Encoding | None:
    per_channel = entry["enc_type"] == "PER_CHANNEL"
    if entry["dtype"] != "INT" or not (per_channel or entry["enc_type"] == "PER_TENSOR"):
        return None
    scale, offset = ((entry[key] if per_channel else _only(entry[key])) for key in ("scale", "offset"))
    return _encoding(entry["bw"], entry.get("is_sym", False) is True, scale, offset)


def _only(values: Sequence[object]) -> object:
    (value,) = values
    return value


def _encoding(bits: int, symmetric: bool, scale: object, offset: object) -> Encoding:
    """Decode ``scale`` and ``offset`` from JSON: numbers, or lists of them.

    Symmetric files count from the middle or, with a narrow range, from one below it.
    """
    level, middle = -numbers(offset), 2 ** (integer_type(bits, signed=True).bitwidth - 1)
    signed = symmetric and bool(np.isin(level, (middle, middle - 1)).all())
    narrow = signed and bool((level < middle).any())
    spec = QuantSpec(integer_type(bits, signed), symmetric=signed, narrow_range=narrow)
    return on_grid(spec, scales(scale), np.zeros_like(level) if signed else level, symmetric=signed)


def _from_ends(lowest_reals: object, highest_reals: object, bits: int) -> Encoding:
    """Decode the grid from the float values of its lowest and highest level in JSON."""
    low, high = numbers(lowest_reals), numbers(highest_reals)
    spec = QuantSpec(integer_type(bits, signed=False), symmetric=False)
    if not ((low <= 0) & (high >= 0) & (low < high)).all():
        return Encoding.of_range(low, high)
    return Encoding.of_params(spec, params_from_range(low, high, spec))

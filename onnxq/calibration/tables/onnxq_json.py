"""Read and write onnxq's own table in JSON, which holds everything, so reading it back loses nothing.

::

    {
     "format": "onnxq calibration table",
     "version": 1,
     "activations": {
      "x": {"type": "uint8", "symmetric": false, "scale": 0.025, "zero_point": 128},
      "y": {"low": -1.5, "high": 3.0}
     },
     "weights": {"w": {"type": "int8", "symmetric": true, "axis": 0, "narrow_range": true, "scale": […], …}},
     "layers": {"conv1": {"channels": 8, "groups": 1, "winograd": true, "data": {…}, "weight": {…}}},
     "operators": ["conv1"],
     "absent": []
    }

The fields are those of `Table`, `Encoding`, `NcnnLayer` and `QuantSpec`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from onnxq.calibration.tables.parsing import Document, mapping, numbers, scales, shortest
from onnxq.calibration.tables.table import TYPES, Encoding, NcnnLayer, Table, on_grid
from onnxq.core.plan import QuantSpec

FORMAT = "onnxq calibration table"
VERSION = 1


def encode(table: Table) -> bytes:
    """Encode a table as a file of this format."""
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "activations": {name: _encoding(e) for name, e in table.activations.items()},
        "weights": {name: _encoding(e) for name, e in table.weights.items()},
        "layers": {name: _layer(layer) for name, layer in table.layers.items()},
        "operators": list(table.operators),
        "absent": sorted(table.absent),
    }
    return (json.dumps(tree, indent=1) + "\n").encode()


def recognises(document: Document) -> bool:
    """Whether this is a file of this format, of any version."""
    return document.tree.get("format") == FORMAT


def decode(document: Document) -> Table:
    """Decode the file.

    Raises:
        ValueError: it has another version, or inconsistent values.
    """
    tree = document.tree
    if tree["version"] != VERSION:
        raise ValueError(f"it has version {tree['version']}, expected {VERSION}: write it again")
    activations, weights, layers = (mapping(tree[key]) for key in ("activations", "weights", "layers"))
    return Table(
        {name: _decoded(mapping(e)) for name, e in activations.items()},
        {name: _decoded(mapping(e)) for name, e in weights.items()},
        {name: _decoded_layer(mapping(layer)) for name, layer in layers.items()},
        tuple(map(str, tree["operators"])),
        frozenset(map(str, tree["absent"])),
    )


def _encoding(encoding: Encoding) -> dict[str, object]:
    spec, params = encoding.spec, encoding.params
    if spec is None or params is None:
        return {"low": encoding.low.tolist(), "high": encoding.high.tolist()}
    optional = {"axis": spec.axis, "narrow_range": spec.narrow_range, "reduce_bits": spec.reduce_bits or None}
    return {
        "type": spec.dtype.name.lower(),
        "symmetric": spec.symmetric,
        **{name: value for name, value in optional.items() if value is not None and value is not False},
        "scale": shortest(params.scale),
        "zero_point": params.zero_point.astype(int).tolist(),
    }


def _decoded(tree: Mapping[str, Any]) -> Encoding:
    if "scale" not in tree:
        return Encoding.of_range(numbers(tree["low"]), numbers(tree["high"]))
    spec = QuantSpec(
        TYPES[tree["type"]],
        symmetric=bool(tree["symmetric"]),
        axis=tree.get("axis"),
        narrow_range=bool(tree.get("narrow_range")),
        reduce_bits=int(tree.get("reduce_bits", 0)),
    )
    if not 0 <= spec.reduce_bits < spec.dtype.bitwidth - 1 or not isinstance(spec.axis, int | None):
        raise ValueError(f"reduce_bits {spec.reduce_bits} or axis {spec.axis!r} is not valid")
    return on_grid(spec, scales(tree["scale"]), numbers(tree["zero_point"]), symmetric=spec.symmetric)


def _layer(layer: NcnnLayer) -> dict[str, object]:
    return {
        "channels": layer.channels,
        "groups": layer.groups,
        "winograd": layer.winograd,
        "data": _encoding(layer.data),
        "weight": _encoding(layer.weight),
    }


def _decoded_layer(tree: Mapping[str, Any]) -> NcnnLayer:
    data, weight = (_decoded(mapping(tree[key])) for key in ("data", "weight"))
    channels, groups = int(tree["channels"]), int(tree["groups"])
    if weight.low.size not in (1, channels) or groups < 1 or channels % groups:
        raise ValueError(f"a layer of {channels} channels in {groups} groups, with {weight.low.size} scales")
    return NcnnLayer(data, weight, channels, groups, bool(tree["winograd"]))

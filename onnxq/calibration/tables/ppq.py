"""Read and write PPQ's json, which PPLNN takes with the float model: parameters by tensor, and operators.

https://github.com/OpenPPL/ppq/blob/master/ppq/parser/ppl.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxq.calibration.tables.parsing import Document, mapping, numbers, scales
from onnxq.calibration.tables.table import Encoding, Table, grid_spec, mixed, on_grid, unmixed
from onnxq.core.plan import QuantSpec

_TENSORS, _OPERATORS = "quant_info", "op_info"


def encode(table: Table) -> bytes:
    """Encode the activations, weights and operators of a table."""
    tree = {
        _TENSORS: {name: _entry(*each) for name, each in mixed(table).items()},
        _OPERATORS: {name: {"data_type": "INT8"} for name in table.operators},
    }
    return json.dumps(tree, indent=4).encode()


def recognises(document: Document) -> bool:
    """Whether this is a file of PPQ."""
    return _TENSORS in document.tree


def decode(document: Document) -> Table:
    """Decode a file of PPQ; tensors with per-channel scales are weights."""
    tensors = {name: _decoded(mapping(e)) for name, e in mapping(document.tree[_TENSORS]).items()}
    known = {name: encoding for name, encoding in tensors.items() if encoding is not None}
    return replace(unmixed(known), operators=tuple(mapping(document.tree.get(_OPERATORS, {}))))


def _entry(encoding: Encoding, default: QuantSpec) -> dict[str, object]:
    spec, params = encoding.decided(default)
    scale, zero = params.scale.astype(np.float64), params.zero_point.astype(np.int64)
    qmin, qmax = spec.limits
    return {
        "bit_width": spec.dtype.bitwidth,
        "per_channel": encoding.per_channel,
        "quant_flag": True,
        "sym": spec.symmetric,
        "scale": scale.tolist(),
        "zero_point": zero.tolist(),
        "tensor_min": (scale * (qmin - zero)).tolist(),
        "tensor_max": (scale * (qmax - zero)).tolist(),
        "q_min": qmin,
        "q_max": qmax,
    }


def _decoded(tree: Mapping[str, Any]) -> Encoding | None:
    """Decode one tensor; None if it is kept in float."""
    if not tree["quant_flag"]:
        return None
    scale, zero = scales(tree["scale"]), numbers(tree["zero_point"])
    if not tree["per_channel"]:
        scale, zero = scale.reshape(()), zero.reshape(())
    spec = grid_spec(int(tree["bit_width"]), int(tree["q_min"]), int(tree["q_max"]))
    return on_grid(spec, scale, zero, symmetric=bool(tree["sym"]))

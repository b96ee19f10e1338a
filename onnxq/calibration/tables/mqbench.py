"""Read and write MQBench's clip ranges, ``NAME_clip_ranges.json``, used together with the float model.

Each backend has its own layout of the file::

    tensorrt  {"tensorrt": {"blob_range": {"x": 6.4}}}                       scale * 128
    snpe      {"activation_encodings": {"x": [{"bitwidth": 8, "min": …, "max": …}]}, "param_encodings": {}}
    vitis     {"vitis": {"x": {"scale": 0.0625}}}                            powers of two
    ppl       {"ppl": {"x": {"step": …, "zero_point": …, "min": …, "max": …, "bit": 8, "type": "biased"}}}

https://github.com/ModelTC/MQBench/blob/main/mqbench/deploy/deploy_linear.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq.calibration.tables import qualcomm
from onnxq.calibration.tables.parsing import Document, mapping, number, numbers, scales
from onnxq.calibration.tables.table import INT8, UINT8, Encoding, Table, grid_spec, mixed, on_grid, unmixed
from onnxq.core.plan import QuantParams, QuantSpec

_TENSORRT, _RANGES, _VITIS, _PPL = "tensorrt", "blob_range", "vitis", "ppl"

_LARGEST_POWER = np.finfo(np.float32).maxexp - 1

_LEVELS = 128
"""Its TensorRT ranges are those of the whole int8 grid, including -128."""


def encode_tensorrt(table: Table) -> bytes:
    """Encode a table as a file for TensorRT."""
    return _dump({_TENSORRT: {_RANGES: {n: _LEVELS * _scale(e) for n, e in table.activations.items()}}})


def encode_snpe(table: Table) -> bytes:
    """Encode a table as a file for SNPE."""
    ranges = {name: [_ends(encoding)] for name, encoding in table.activations.items()}
    return _dump({qualcomm.ACTIVATIONS: ranges, qualcomm.WEIGHTS: {}})


def encode_vitis(table: Table) -> bytes:
    """Encode a table as a file for Vitis AI. Scales are rounded up to powers of two, which clips nothing."""
    return _dump({_VITIS: {n: {"scale": _power_of_two(_scale(e))} for n, e in table.activations.items()}})


def encode_ppl(table: Table) -> bytes:
    """Encode a table as a file for PPL, including weights."""
    return _dump({_PPL: {name: _ppl(*each) for name, each in mixed(table).items()}})


def recognises_tensorrt(document: Document) -> bool:
    """Whether this is a file for TensorRT."""
    return _TENSORRT in document.tree


def recognises_snpe(document: Document) -> bool:
    """Whether this is a file for SNPE: encodings that name no version."""
    return qualcomm.ACTIVATIONS in document.tree and "version" not in document.tree


def recognises_vitis(document: Document) -> bool:
    """Whether this is a file for Vitis AI."""
    return _VITIS in document.tree


def recognises_ppl(document: Document) -> bool:
    """Whether this is a file for PPL."""
    return _PPL in document.tree


def decode_tensorrt(document: Document) -> Table:
    """Decode the ranges of a file for TensorRT."""
    ranges = mapping(mapping(document.tree[_TENSORRT])[_RANGES])
    return Table({name: Encoding.of_scale(number(value) / _LEVELS) for name, value in ranges.items()})


def decode_vitis(document: Document) -> Table:
    """Decode the scales of a file for Vitis AI."""
    tree = mapping(document.tree[_VITIS])
    return Table({name: Encoding.of_scale(number(mapping(entry)["scale"])) for name, entry in tree.items()})


def decode_ppl(document: Document) -> Table:
    """Decode the parameters of a file for PPL; tensors with per-channel scales are weights."""
    return unmixed({name: _from_ppl(mapping(e)) for name, e in mapping(document.tree[_PPL]).items()})


def _dump(tree: Mapping[str, object]) -> bytes:
    return json.dumps(tree, indent=4).encode()


def _scale(encoding: Encoding) -> float:
    return float(encoding.whole().params_for(INT8).scale)


def _power_of_two(scale: float) -> float:
    """Round up to a power of two, at most the largest one in float32."""
    return float(min(2.0 ** np.ceil(np.log2(scale)), 2.0**_LARGEST_POWER))


def _ends(encoding: Encoding) -> dict[str, object]:
    """The float values of the lowest and the highest integer level."""
    spec, params = encoding.whole().decided(UINT8)
    low, high = _grid_ends(spec, params)
    return {"bitwidth": spec.dtype.bitwidth, "min": low, "max": high}


def _grid_ends(spec: QuantSpec, params: QuantParams) -> tuple[Any, Any]:
    """The float values of the ends of the grid, as numbers, or as lists with one number per channel."""
    scale, zero = params.scale.astype(np.float64), params.zero_point.astype(np.float64)
    low, high = (((limit - zero) * scale).tolist() for limit in spec.limits)
    return low, high


def _ppl(encoding: Encoding, default: QuantSpec) -> dict[str, object]:
    spec, params = encoding.decided(default)
    low, high = _grid_ends(spec, params)
    return {
        "step": params.scale.astype(np.float64).tolist(),
        "zero_point": params.zero_point.astype(np.int64).tolist(),
        "min": low,
        "max": high,
        "bit": spec.dtype.bitwidth,
        "type": "biased",
    }


def _from_ppl(tree: Mapping[str, Any]) -> Encoding:
    """Decode one tensor. The file does not tell symmetric formats: a signed grid centred at zero is one."""
    scale, zero = scales(tree["step"]), numbers(tree["zero_point"])
    limits = (np.rint(numbers(tree[end]) / scale + zero).reshape(-1) for end in ("min", "max"))
    qmin, qmax = (int(limit[0]) for limit in limits)
    return on_grid(grid_spec(int(tree["bit"]), qmin, qmax), scale, zero, symmetric=qmin < 0)

"""Write ncnn's table, for ``ncnn2int8`` with the float model. It names layers, so onnxq cannot read it.

First comes one line ``LAYER_param_0 m m m `` per layer, with 127 / absmax of each output channel's (or each
group's) weights. Then comes one line ``LAYER m `` per layer, with 127 / threshold of its input. Convolutions
with a Winograd kernel have weights of 6 bits, 31 / absmax.
https://github.com/Tencent/ncnn/tree/master/tools/quantize
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.tables.parsing import Document
from onnxq.calibration.tables.table import INT8, Encoding, NcnnLayer, Table
from onnxq.core.errors import CalibrationError

logger = logging.getLogger(__name__)

_STEPS, _WINOGRAD_STEPS = 127, 31

_TOLERANCE = 1e-3
"""The largest relative error of a factor from rounding to six decimals."""


def encode(table: Table) -> bytes:
    """Encode a table as an ncnn table.

    Raises:
        CalibrationError: the table has no layers.
    """
    if not table.layers:
        raise CalibrationError(
            "an ncnn table names layers, which this table does not have: write it while quantizing "
            "(--table), or from a json table that was written while quantizing"
        )
    factors = {name: (_weights(layer), _data(layer)) for name, layer in table.layers.items()}
    held = {name: pair for name, pair in factors.items() if all(map(_is_held, pair))}
    if lost := [name for name in factors if name not in held]:
        logger.warning(
            "ncnn tables have six decimals, too few for %d layers; these are left out: %s",
            len(lost),
            ", ".join(lost[:5]),
        )
    lines = [_line(f"{name}_param_0", weights) for name, (weights, _) in held.items()]
    return "".join([*lines, *(_line(name, data) for name, (_, data) in held.items())]).encode()


def looks_like_one(document: Document) -> bool:
    """Whether this is an ncnn table."""
    return bool(document.lines) and all(map(_is_line, document.lines))


def _is_line(line: str) -> bool:
    name, *factors = line.split(" ")
    return bool(name) and len(factors) > 1 and not factors[-1] and all(map(_is_number, factors[:-1]))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _weights(layer: NcnnLayer) -> NDArray[np.float32]:
    """The factors of the weights: [C], or [groups] for a grouped convolution."""
    thresholds = np.broadcast_to(_threshold(layer.weight), (layer.channels,))
    if layer.groups > 1:
        thresholds = thresholds.reshape(layer.groups, -1).max(axis=1)
    return np.asarray(np.float32(_WINOGRAD_STEPS if layer.winograd else _STEPS) / thresholds)


def _data(layer: NcnnLayer) -> NDArray[np.float32]:
    """The factor of the input: [1]."""
    return np.asarray(np.float32(_STEPS) / _threshold(layer.data.whole()).reshape(1))


def _threshold(encoding: Encoding) -> NDArray[np.float32]:
    scale = encoding.params_for(INT8).scale.astype(np.float64)
    return np.asarray(_STEPS * scale, np.float32)


def _texts(factors: NDArray[np.float32]) -> Iterator[str]:
    return (f"{float(factor):f}" for factor in factors)


def _is_held(factors: NDArray[np.float32]) -> bool:
    pairs = zip(_texts(factors), factors, strict=True)
    return all(abs(float(text) - factor) <= _TOLERANCE * factor for text, factor in pairs)


def _line(name: str, factors: NDArray[np.float32]) -> str:
    return f"{name} {''.join(f'{text} ' for text in _texts(factors))}\n"

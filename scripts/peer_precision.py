"""Convert a model with a peer of the precision benchmark: float16, mixed float16, or FP8.

``python scripts/peer_precision.py MODEL OUTPUT [DATA] --tool TOOL``; DATA is a folder of pictures
(preprocessed for EfficientNet-Lite0) or of ``.npz`` batches. The tools are those of `TOOLS`. They need
packages that the project does not: run this file with the Python of an environment that has them, numpy and
pillow.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import peer_frame

Feeds = dict[str, Any]


def converter_common(model: Path, output: Path, data: Path | None) -> None:
    """Convert with `onnxconverter_common.float16`; inputs and outputs keep their types."""
    from onnxconverter_common import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(model), keep_io_types=True), output)


def ort_transformers(model: Path, output: Path, data: Path | None) -> None:
    """Convert with `onnxruntime.transformers.float16`; inputs and outputs keep their types."""
    _ort_transformers(model, output, keep_io_types=True)


def ort_transformers_io(model: Path, output: Path, data: Path | None) -> None:
    """Convert with `onnxruntime.transformers.float16`, inputs and outputs too."""
    _ort_transformers(model, output, keep_io_types=False)


def _ort_transformers(model: Path, output: Path, keep_io_types: bool) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(model), keep_io_types=keep_io_types), output)


def autocast(model: Path, output: Path, data: Path | None) -> None:
    """Convert with ModelOpt's AutoCast, which measures the ranges of tensors on DATA, one sample of it."""
    from modelopt.onnx import autocast as peer

    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {}
        if data is not None:
            sample = Path(folder) / "sample.npz"
            np.savez(sample, **next(peer_frame.feeds(data, onnx.load(model).graph.input[0].name)))
            given["calibration_data"] = str(sample)
        made = peer.convert_to_mixed_precision(
            str(model), low_precision_type="fp16", keep_io_types=True, providers=["cpu"], **given
        )
    onnx.save(made, output)


def modelopt_max(model: Path, output: Path, data: Path | None) -> None:
    """Quantize to FP8 with ModelOpt, ranges from the largest magnitudes."""
    _modelopt_fp8(model, output, data, "max")


def modelopt_entropy(model: Path, output: Path, data: Path | None) -> None:
    """Quantize to FP8 with ModelOpt, ranges by entropy, which is its default."""
    _modelopt_fp8(model, output, data, "entropy")


def _modelopt_fp8(model: Path, output: Path, data: Path | None, method: str) -> None:
    """Quantize to FP8 with ModelOpt, the rest to float16; inputs and outputs keep their types.

    Raises:
        ValueError: there is no DATA.
    """
    from modelopt.onnx.quantization import quantize

    if data is None:
        raise ValueError("FP8 needs data")
    name = onnx.load(model).graph.input[0].name
    quantize(
        str(model),
        quantize_mode="fp8",
        calibration_data_reader=Reader(peer_frame.feeds(data, name)),
        calibration_method=method,
        calibration_eps=["cpu"],
        output_path=str(output),
        log_level="ERROR",
    )


class Reader:
    """Passes batches to the calibrator, one after the other."""

    def __init__(self, batches: Iterator[Feeds]) -> None:
        self._batches = list(batches)
        self.rewind()

    def rewind(self) -> None:
        """Begin again with the first batch."""
        self._left = iter(self._batches)

    def get_next(self) -> Feeds | None:
        """Return the next batch; None at the end."""
        return next(self._left, None)

    def get_first(self) -> Feeds:
        """Return the first batch."""
        return self._batches[0]


TOOLS: Mapping[str, Callable[[Path, Path, Path | None], None]] = {
    "onnxconverter-common": converter_common,
    "onnxruntime.transformers": ort_transformers,
    "onnxruntime.transformers-io": ort_transformers_io,
    "autocast": autocast,
    "modelopt-fp8-max": modelopt_max,
    "modelopt-fp8-entropy": modelopt_entropy,
}


def main() -> None:
    """Convert as the command line says."""
    parser = peer_frame.parser(__doc__, needs_data=False)
    parser.add_argument("--tool", choices=TOOLS, required=True)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    TOOLS[given.tool](given.model, given.output, given.data)


if __name__ == "__main__":
    main()

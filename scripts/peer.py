"""Quantize with the peer of the benchmarks, `onnxruntime.quantization`, as its documentation recommends.

``python scripts/peer.py MODEL OUTPUT DATA [--method minmax] [--ops MatMul …]``: clean the model with the
peer's pre-processing, then quantize it statically to Q/DQ, with uint8 activations and per-channel int8
weights. Options choose other types and dynamic quantization. DATA is a folder of pictures (preprocessed for
EfficientNet-Lite0) or of ``.npz`` batches.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

import evaldata

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
TYPES = {
    "uint8": QuantType.QUInt8,
    "int8": QuantType.QInt8,
    "uint4": QuantType.QUInt4,
    "int4": QuantType.QInt4,
}


class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    """Passes the files of a folder to the calibrator, one after the other."""

    def __init__(self, folder: Path, input_name: str) -> None:
        self._feeds = feeds(folder, input_name)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch; None at the end."""
        return next(self._feeds, None)


def feeds(folder: Path, input_name: str) -> Iterator[dict[str, Any]]:
    """Yield every file of ``folder`` as the inputs of one run."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".npz":
            with np.load(path) as file:
                yield dict(file)
        else:
            yield {input_name: evaldata.picture(path)}


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def main() -> None:
    """Quantize with the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=_absolute)
    parser.add_argument("output", type=_absolute)
    parser.add_argument("data", type=_absolute)
    parser.add_argument("--method", choices=METHODS, default="minmax")
    parser.add_argument("--ops", nargs="*", help="quantize these operator types only")
    parser.add_argument("--activation", choices=TYPES, default="uint8")
    parser.add_argument("--weight", choices=TYPES, default="int8")
    parser.add_argument("--symmetric", action="store_true", help="activations with zero point 0")
    parser.add_argument("--dynamic", action="store_true", help="ranges at run time, no calibration")
    parser.add_argument(
        "--skip-symbolic-shapes",
        action="store_true",
        help="skip symbolic shape inference, for models on which it fails",
    )
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the peer leaves files in the working folder
        clean = Path(folder) / "clean.onnx"
        quant_pre_process(given.model, clean, skip_symbolic_shape=given.skip_symbolic_shapes)
        if given.dynamic:
            quantize_dynamic(clean, given.output, weight_type=TYPES[given.weight], per_channel=True)
            return
        session = ort.InferenceSession(clean, providers=["CPUExecutionProvider"])
        quantize_static(
            clean,
            given.output,
            Reader(given.data, session.get_inputs()[0].name),
            quant_format=QuantFormat.QDQ,
            activation_type=TYPES[given.activation],
            weight_type=TYPES[given.weight],
            per_channel=True,
            calibrate_method=METHODS[given.method],
            op_types_to_quantize=given.ops,
            extra_options={"ActivationSymmetric": given.symmetric},
        )


if __name__ == "__main__":
    main()

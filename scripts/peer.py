"""Quantize with the peer of the benchmarks, `onnxruntime.quantization`, as its documentation recommends.

``python scripts/peer.py MODEL OUTPUT DATA [--method minmax] [--ops MatMul …]``: clean the model with the
peer's pre-processing, then quantize it statically to Q/DQ, with uint8 activations and per-channel int8
weights. Options choose other types and dynamic quantization. DATA is a folder of pictures (preprocessed for
EfficientNet-Lite0) or of ``.npz`` batches. As a careful user would, the script leaves out shape inference
where it fails, and raises the opset of a model that the peer does not quantize as it is.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnx.version_converter
import onnxruntime as ort
import peer_frame
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

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


OPSET = 17
"""The opset that models are raised to which the peer does not quantize as they are."""


class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    """Passes the files of a folder to the calibrator, one after the other."""

    def __init__(self, folder: Path, input_name: str) -> None:
        self._feeds = peer_frame.feeds(folder, input_name)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch; None at the end."""
        return next(self._feeds, None)


def cleaned(model: Path, output: Path, skip_symbolic: bool) -> Path:
    """Return ``output``: the model after the peer's pre-processing, with as much shape inference as works."""
    without_symbolic = {"skip_symbolic_shape": True}
    attempts = [{}, without_symbolic, {**without_symbolic, "skip_onnx_shape": True}]
    for skipped in attempts[skip_symbolic:]:
        try:
            quant_pre_process(model, output, **skipped)
            return output
        except Exception as error:  # noqa: BLE001 - the peer raises plain ones
            print(f"quant_pre_process {[*skipped]}: {error}", file=sys.stderr)
    return model


def quantize(given: argparse.Namespace, model: Path, folder: Path) -> None:
    """Quantize ``model`` as the command line says, and run one batch of the data on the result."""
    clean = cleaned(model, folder / "clean.onnx", given.skip_symbolic_shapes)
    if given.dynamic:
        quantize_dynamic(clean, given.output, weight_type=TYPES[given.weight], per_channel=True)
        return
    name = _session(clean).get_inputs()[0].name
    quantize_static(
        clean,
        given.output,
        Reader(given.data, name),
        quant_format=QuantFormat.QDQ,
        activation_type=TYPES[given.activation],
        weight_type=TYPES[given.weight],
        per_channel=True,
        calibrate_method=METHODS[given.method],
        op_types_to_quantize=given.ops,
        extra_options={"ActivationSymmetric": given.symmetric},
    )
    _session(given.output).run(None, next(peer_frame.feeds(given.data, name)))


def _session(model: Path) -> ort.InferenceSession:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def main() -> None:
    """Quantize with the options of the command line."""
    parser = peer_frame.parser(__doc__, needs_data=True)
    parser.add_argument("--method", choices=METHODS, default="minmax")
    parser.add_argument("--ops", nargs="*", help="quantize these operator types only")
    parser.add_argument("--activation", choices=TYPES, default="uint8")
    parser.add_argument("--weight", choices=TYPES, default="int8")
    parser.add_argument("--symmetric", action="store_true", help="activations with zero point 0")
    parser.add_argument("--dynamic", action="store_true", help="ranges at run time, no calibration")
    parser.add_argument(
        "--skip-symbolic-shapes",
        action="store_true",
        help="skip symbolic shape inference at once, for models on which it fails",
    )
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the peer leaves files in the working folder
        try:
            quantize(given, given.model, Path(folder))
        except Exception as error:  # noqa: BLE001 - the peer raises plain ones
            print(f"as it is: {error}", file=sys.stderr)
            raised = Path(folder) / "raised.onnx"
            model = onnx.load(given.model)
            onnx.save(onnx.version_converter.convert_version(model, OPSET), raised)
            quantize(given, raised, Path(folder))


if __name__ == "__main__":
    main()

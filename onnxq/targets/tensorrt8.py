"""TensorRT 8 and 9: as 10, but weights are float in the file, with Q and DQ behind them, and no 4 bits."""

from __future__ import annotations

from dataclasses import replace

from onnxq.targets.target import Storage
from onnxq.targets.tensorrt import TENSORRT

TENSORRT8 = replace(
    TENSORRT,
    name="tensorrt8",
    about="TensorRT 8 and 9, explicit quantization.",
    notes=(
        "The file is as large as the float model: weights are stored in float, on their grid. The engine's "
        "are of 8 bits.",
        *TENSORRT.notes,
    ),
    blocks=None,
    storage=Storage.REALS,
)

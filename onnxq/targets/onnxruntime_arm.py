"""ONNX Runtime on Arm: sdot, udot and smmla take signed and unsigned activations alike.

The fusions are those of x86. Which type of activations is faster depends on the core: measure both. Depthwise
convolutions have kernels of their own there, but no figures were taken on Arm, so the rules of x86 stand.
"""

from __future__ import annotations

from dataclasses import replace

from onnxq.targets.onnxruntime import ONNXRUNTIME

ONNXRUNTIME_ARM = replace(
    ONNXRUNTIME,
    name="onnxruntime-arm",
    about="ONNX Runtime's CPU provider on 64-bit Arm (sdot, udot, smmla).",
    notes=(
        "Measure --activation int8 too: which type is faster depends on the core. Nothing was timed on Arm.",
        *ONNXRUNTIME.notes,
    ),
)

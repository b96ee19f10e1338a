"""Dynamic and weight-only quantization: no calibration, ranges of activations are computed at run time."""

from __future__ import annotations

from onnxq.pipelines.dynamic.pipeline import as_dynamic, prepare_dynamic, quantize_dynamic

__all__ = ["as_dynamic", "prepare_dynamic", "quantize_dynamic"]

"""Weight-only quantization: matrices in blocks of 2 to 8 bits beside float activations."""

from __future__ import annotations

from onnxq.pipelines.weight_only.pipeline import prepare_weights, quantize_weights

__all__ = ["prepare_weights", "quantize_weights"]

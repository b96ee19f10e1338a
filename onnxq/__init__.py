"""onnxq: an offline quantizer, float ONNX in, int8 ONNX out.

The public names are imported when they are first asked for, so that ``import onnxq`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq import torch as torch
    from onnxq.api import calibrate, convert, quantize_cache, quantize_dynamic, quantize_static, requantize
    from onnxq.core.config import QuantConfig
    from onnxq.core.errors import CalibrationError, ConfigError, ModelError, OnnxqError, TargetError
    from onnxq.core.goal import Goal
    from onnxq.pipelines.calibrate import Calibration, merge
    from onnxq.pipelines.conversions.cache import CacheResult
    from onnxq.pipelines.conversions.convert import Converted
    from onnxq.pipelines.requantize import Requantized
    from onnxq.pipelines.result import QuantResult

    __version__: str

__all__ = [
    "CacheResult",
    "Calibration",
    "CalibrationError",
    "ConfigError",
    "Converted",
    "Goal",
    "ModelError",
    "OnnxqError",
    "QuantConfig",
    "QuantResult",
    "Requantized",
    "TargetError",
    "__version__",
    "calibrate",
    "convert",
    "merge",
    "quantize_cache",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weights",
    "requantize",
]

_HOMES = {
    "Calibration": "pipelines.calibrate",
    "CalibrationError": "core.errors",
    "ConfigError": "core.errors",
    "CacheResult": "pipelines.conversions.cache",
    "Converted": "pipelines.conversions.convert",
    "Goal": "core.goal",
    "ModelError": "core.errors",
    "OnnxqError": "core.errors",
    "QuantConfig": "core.config",
    "QuantResult": "pipelines.result",
    "Requantized": "pipelines.requantize",
    "TargetError": "core.errors",
    "calibrate": "api",
    "convert": "api",
    "merge": "pipelines.calibrate",
    "quantize_cache": "api",
    "quantize_dynamic": "api",
    "quantize_weights": "api",
    "quantize_static": "api",
    "requantize": "api",
}
"""Public name -> the module it lives in."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("onnxq")
    if name == "torch":  # so that `import onnxq` is enough for `onnxq.torch.export`
        return import_module("onnxq.torch")
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxq' has no attribute {name!r}")
    return getattr(import_module(f"onnxq.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)

"""onnxq: an offline quantizer, float ONNX in, int8 ONNX out.

The public names are imported when they are first asked for, so that ``import onnxq`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq import torch as torch
    from onnxq.adoption import Requantized, requantize
    from onnxq.calibration import calibrate
    from onnxq.config import QuantConfig
    from onnxq.dynamic import quantize_dynamic
    from onnxq.errors import CalibrationError, ConfigError, ModelError, OnnxqError, TargetError
    from onnxq.goal import Goal
    from onnxq.loop import Calibration
    from onnxq.result import QuantResult
    from onnxq.static import quantize_static

    __version__: str

__all__ = [
    "Calibration",
    "CalibrationError",
    "ConfigError",
    "Goal",
    "ModelError",
    "OnnxqError",
    "QuantConfig",
    "QuantResult",
    "Requantized",
    "TargetError",
    "__version__",
    "calibrate",
    "quantize_dynamic",
    "quantize_static",
    "requantize",
]

_HOMES = {
    "Calibration": "loop",
    "CalibrationError": "errors",
    "ConfigError": "errors",
    "Goal": "goal",
    "ModelError": "errors",
    "OnnxqError": "errors",
    "QuantConfig": "config",
    "QuantResult": "result",
    "Requantized": "adoption",
    "TargetError": "errors",
    "calibrate": "calibration",
    "quantize_dynamic": "dynamic",
    "quantize_static": "static",
    "requantize": "adoption",
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

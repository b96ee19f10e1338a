"""Work with PyTorch modules: export, calibrate and train them. Only this package of onnxq imports torch.

Names are imported at their first use, so ``import onnxq.torch`` alone needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxq.core.errors import ConfigError

if TYPE_CHECKING:
    from onnxq.torch.exporting import Exported, export
    from onnxq.torch.factory import export_made as export_made
    from onnxq.torch.module_patterns import skip_quant
    from onnxq.torch.ptq import PTQ
    from onnxq.torch.qat.module import freeze_batch_norms, freeze_ranges
    from onnxq.torch.qat.pt2e import quantizer as quantizer
    from onnxq.torch.qat.workflow import QatResult, convert_qat, prepare_qat

__all__ = [
    "PTQ",
    "Exported",
    "QatResult",
    "convert_qat",
    "export",
    "freeze_batch_norms",
    "freeze_ranges",
    "prepare_qat",
    "skip_quant",
]
"""The names that need only PyTorch: ``from onnxq.torch import *`` must not need torchao."""

_HOMES = {
    "PTQ": "ptq",
    "Exported": "exporting",
    "QatResult": "qat.workflow",
    "convert_qat": "qat.workflow",
    "export": "exporting",
    "export_made": "factory",
    "freeze_batch_norms": "qat.module",
    "freeze_ranges": "qat.module",
    "prepare_qat": "qat.workflow",
    "quantizer": "qat.pt2e",
    "skip_quant": "module_patterns",
}
"""Public name -> the module that defines it."""

_NEEDED = {"quantizer": ("torchao", "torchao")}
"""Public name -> the package it needs besides PyTorch, and the extra of onnxq that installs it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxq.torch' has no attribute {name!r}")
    try:
        home = import_module(f"onnxq.torch.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        needed, extra = _NEEDED.get(name, ("PyTorch", "torch"))
        raise ConfigError(f"onnxq.torch needs {needed}: pip install 'onnxq[{extra}]' ({error})") from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return list(__all__)

"""The PyTorch door: modules in, ONNX out. The only place of the library that imports torch.

Names are imported when they are first asked for: ``import onnxq.torch`` needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxq.errors import ConfigError

if TYPE_CHECKING:
    from onnxq.torch.exporting import Exported, export
    from onnxq.torch.factory import export_made as export_made
    from onnxq.torch.layers import skip_quant
    from onnxq.torch.ptq import PTQ

__all__ = [
    "PTQ",
    "Exported",
    "export",
    "skip_quant",
]

_HOMES = {
    "PTQ": "ptq",
    "Exported": "exporting",
    "export": "exporting",
    "export_made": "factory",
    "skip_quant": "layers",
}
"""Public name -> the module it lives in."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxq.torch' has no attribute {name!r}")
    try:
        home = import_module(f"onnxq.torch.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"onnxq.torch needs PyTorch: pip install 'onnxq[torch]' ({error})") from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return list(__all__)

"""Refuse a module that is not the float module any more, but what a tool for quantization made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from onnxq.core.errors import ConfigError, ModelError
from onnxq.torch.qat.module import QatModule

_OBSERVERS: Mapping[str, str] = {
    "ObserverBase": "an observer",
    "AffineQuantizedObserverBase": "an observer",
    "FakeQuantizeBase": "a fake quantizer",
}
"""Base classes of what the tools of PyTorch and torchao insert in prepare() -> what they are."""

_INTEGERS = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
"""Packages of modules that compute with integers or keep their weights packed."""

_FLOAT = ("FloatFunctional", "FXFloatFunctional")
"""Classes of these packages that compute in float."""

_PACKED = ("torchao", "bitsandbytes")
"""Packages whose tensors hold packed weights, in modules that look like float ones."""

_GRAPH = (
    "quantize_per_tensor",
    "quantize_per_channel",
    "quantized.",
    "quantized_decomposed.",
    "fake_quantize",
)
"""Parts of the names of operators that convert() and convert_pt2e() write into graphs."""


class CalibrationHook:
    """Base class of the hook of a module that `onnxq.torch.PTQ` observes."""


def check_float(module: Any) -> None:
    """Refuse a module that was prepared for quantization or is quantized, and one of TorchScript.

    Modules that were only fused, or that hold QuantStub, DeQuantStub or FloatFunctional, compute in float.

    Raises:
        ConfigError: it is no `torch.nn.Module` that can be traced.
        ModelError: it holds observers, fake quantizers or integers.
    """
    if not isinstance(module, nn.Module):
        hint = ": give program.module()" if isinstance(module, torch.export.ExportedProgram) else ""
        raise ConfigError(f"a {type(module).__name__}, expected a torch.nn.Module{hint}")
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise ConfigError(
            f"{kind} is TorchScript, which cannot be exported: give the torch.nn.Module that it was made from"
        )
    if found := next(
        (reason for name, part in module.named_modules() for reason in _reasons(name, part)), None
    ):
        raise ModelError(f"{kind} is not the float module: {found}")


def _reasons(name: str, part: nn.Module) -> Iterator[str]:
    """Say why a part of a module is not float, and what to do."""
    where, kind = repr(name) if name else "it", type(part).__name__
    if isinstance(part, QatModule):
        yield f"{where} was prepared already: train it, then pass it to onnxq.torch.convert_qat()"
    if any(isinstance(hook, CalibrationHook) for hook in part._forward_pre_hooks.values()):
        yield f"{where} is observed by onnxq.torch.PTQ: convert it there, or release() it first"
    bases = [base.__name__ for base in type(part).__mro__]
    if what := next((_OBSERVERS[base] for base in bases if base in _OBSERVERS), None):
        yield (
            f"{where} is {what} ({kind}), which prepare() inserted. Give the module as it was before: onnxq "
            "observes it itself"
        )
    if type(part).__module__.startswith(_INTEGERS) and kind not in _FLOAT:
        yield (
            f"{where} is a quantized {kind} ({type(part).__module__}), which convert() or quantize_dynamic() "
            "made. Give the module as it was before"
        )
    for key, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
        if type(tensor).__module__.split(".")[0] in _PACKED:
            yield (
                f"{key!r} of {where} is packed ({type(tensor).__module__}.{type(tensor).__name__}), as "
                "quantize_() of torchao and bitsandbytes leave it. Give the module as it was before"
            )
    for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
        if node.op == "call_function" and any(word in (operator := _called(node.target)) for word in _GRAPH):
            yield (
                f"its graph calls {operator}, which a conversion to integers wrote. Give the float module; "
                "or, after convert_pt2e(), pass the file that torch.onnx.export(..., dynamo=True) writes to "
                "onnxq.requantize()"
            )


def _called(target: Any) -> str:
    return (
        str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    )


def has_modes(module: nn.Module) -> bool:
    """Whether train() and eval() work; a graph of `torch.export` keeps the mode that it was captured in."""
    return "eval" not in vars(module)

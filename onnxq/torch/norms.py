"""BatchNorms that compute with the statistics of each batch cannot be quantized, so they are refused."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from onnxq.errors import ModelError

_TRAINING = 5
"""The place of ``training`` among the arguments of ``aten.batch_norm``."""


def check_norms(module: torch.nn.Module, program: torch.export.ExportedProgram | None = None) -> None:
    """Refuse what gives a sample another output in every batch, and so has no fixed scale and shift to fold.

    Args:
        module: in eval mode.
        program: the graph of it, where also F.batch_norm(…, training=True) shows.

    Raises:
        ModelError: there is such a BatchNorm.
    """
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, torch.nn.modules.instancenorm._InstanceNorm):
            if part.training:
                raise _refusal(name, "it stays in training mode after eval()")
            if part.running_mean is None:
                raise _refusal(name, "track_running_stats is False")
    for node in program.graph.nodes if program is not None else ():
        if node.target is torch.ops.aten.batch_norm.default and node.args[_TRAINING]:
            scopes = list((node.meta.get("nn_module_stack") or {}).values())
            raise _refusal(str(scopes[-1][0]) if scopes else "", "batch_norm is called with training=True")


def _refusal(name: str, why: str) -> ModelError:
    return ModelError(
        f"BatchNorm {name!r} is in training mode: {why}. It would compute with the statistics of each batch, "
        "which no quantized model can. Let it have running statistics, and use them in eval mode."
    )

"""Check that an ONNX model computes the same as its PyTorch module, and refuse modules that cannot."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

import calibrators.errors
from calibrators.session import RUNTIME_ERRORS, brief, open_session
from onnxq.core.errors import ModelError
from onnxq.core.numerics import sqnr
from onnxq.torch.calls import Call, to_numpy
from onnxq.torch.tracing import quiet

logger = logging.getLogger(__name__)

LEAST_SQNR = 50.0
"""The least SQNR of an exported model, in dB. Runtimes add float32 numbers in different orders, but even deep
networks keep 90 dB and more."""


BATCH_SQNR = 60.0
"""The least SQNR between batch sizes, in dB. PyTorch may use other kernels for another batch size."""


_EQUAL = 0.99
"""The share of integers that must be equal: rounding may decide between equal scores."""


def check_same(
    module: torch.nn.Module,
    inputs: Sequence[str],
    calls: Mapping[int, Call],
    noisy: Collection[str],
    path: Path,
) -> dict[int, float]:
    """Compare all outputs of the ONNX model at ``path`` with those of ``module``, for each of ``calls``.

    A batch size that the module itself does not take is skipped.

    Args:
        module: the module, in eval mode.
        inputs: the names of the model's inputs.
        calls: the calls to check, by batch size.
        noisy: the outputs that random numbers go into; they are compared in shape only.
        path: the ONNX file.

    Returns:
        the SQNR of the worst output, in dB, by batch size.

    Raises:
        ModelError: ONNX Runtime refuses the model or a call, or an output differs.
    """
    try:
        session = open_session(path)
    except calibrators.errors.CalibrationError as error:
        raise ModelError(f"the exported model cannot be run: {error}") from error
    if noisy:
        names = ", ".join(sorted(noisy))
        logger.warning("not compared with the module's, because random numbers go in: %s", names)
    found: dict[int, float] = {}
    for size, call in calls.items():
        try:
            with quiet():
                wanted = call.outputs(module)
        except (RuntimeError, ValueError, IndexError):
            if len(calls) == 1:
                raise
            continue
        feeds = {name: to_numpy(tensor, name) for name, tensor in zip(inputs, call.tensors, strict=True)}
        found[size] = _check_call(session, feeds, wanted, size, noisy)
    return found


def _check_call(
    session: ort.InferenceSession,
    feeds: dict[str, NDArray[np.generic]],
    wanted: list[torch.Tensor],
    size: int,
    noisy: Collection[str],
) -> float:
    """Compare one call. Outputs called ``noisy`` are compared in shape only."""
    try:
        given = session.run(None, feeds)
    except RUNTIME_ERRORS as error:
        raise _differs(size, f"cannot be run: {brief(error)}") from error
    names = [output.name for output in session.get_outputs()]
    if len(names) != len(wanted):
        raise _differs(size, f"has {len(names)} outputs, the module {len(wanted)}")
    worst = math.inf
    for name, one, other in zip(names, wanted, given, strict=True):
        expected = to_numpy(one, name)
        if expected.shape != other.shape:
            raise _differs(
                size, f"gives {name!r} in shape {list(other.shape)}, the module {list(expected.shape)}"
            )
        if name not in noisy:
            worst = min(worst, _checked(name, expected, other, size))
    return worst


def _checked(name: str, expected: NDArray[np.generic], given: NDArray[np.generic], size: int) -> float:
    quality = closeness(expected, given)
    if quality < LEAST_SQNR:
        raise _differs(
            size,
            f"gives another {name!r}: SQNR {quality:.1f} dB, expected at least {LEAST_SQNR:.0f}. "
            "Does the module compute with random numbers, or with values that the export makes constant?",
        )
    return quality


def closeness(expected: NDArray[np.generic], given: NDArray[np.generic]) -> float:
    """SQNR in dB of arrays of equal shape. For integers: infinity if nearly all are equal, else -infinity."""
    if expected.dtype.kind != "f":
        equal = float(np.mean(expected == given)) if expected.size else 1.0
        return math.inf if equal >= _EQUAL else -math.inf
    known = np.isfinite(expected)
    if not np.array_equal(known, np.isfinite(given)):
        return -math.inf
    return sqnr(expected[known], given[known])


def same(one: torch.Tensor, other: torch.Tensor, least: float) -> bool:
    """Whether two tensors are equal up to rounding.

    Args:
        one: a tensor.
        other: another one; different shapes are allowed, but not equal.
        least: the least SQNR of equal tensors, in dB.
    """
    if one.shape != other.shape:
        return False
    return closeness(to_numpy(one, ""), to_numpy(other, "")) >= least


def _differs(size: int, how: str) -> ModelError:
    return ModelError(f"the exported model {how} (batch size {size})")


_TRAINING = 5
"""The index of ``training`` among the arguments of ``aten.batch_norm``."""


def check_norms(module: torch.nn.Module, program: torch.export.ExportedProgram | None = None) -> None:
    """Refuse a BatchNorm that uses the statistics of each batch, so it has no fixed scale and shift.

    Args:
        module: the module, in eval mode.
        program: its graph, which also shows F.batch_norm(…, training=True).

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
        "which a quantized model cannot do. Give it running statistics, and use them in eval mode."
    )

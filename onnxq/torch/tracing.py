"""Trace a module to a PyTorch graph: for any batch size if the module allows it, else for the example's."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument

from onnxq.core.errors import ModelError
from onnxq.torch.calls import Call

_MESSAGE = 400

_DEPENDS = ("data-dependent", "guard on", "control flow", "unbacked")
"""Words of PyTorch's messages about code that depends on the values of tensors."""


@dataclass(frozen=True)
class Traced:
    """A traced module.

    Attributes:
        program: the graph.
        shapes: the axes that vary, as for `torch.export.export`; None: no axis.
        other: a call with another batch size; None if only the example's batch size works.
        reason: why only that one works.
    """

    program: ExportedProgram
    shapes: Any
    other: Call | None
    reason: str = ""


def trace_free(module: torch.nn.Module, call: Call, dim: Any, check: Callable[[Call], None]) -> Traced:
    """Trace ``module`` with a free batch size if it allows one, else with the sizes of ``call``.

    Args:
        module: the module, in eval mode.
        call: an example call.
        dim: the `torch.export.Dim` of the batch.
        check: called with ``call`` with every sample twice; an error from it means that the batch is not
            free.

    Raises:
        ModelError: PyTorch cannot trace the module, even for the sizes of ``call``.
    """
    doubled = call.doubled()
    shapes = _batch_shapes(module, doubled, dim)
    try:
        check(doubled)
        program = _program(module, doubled, shapes)
    except Exception as error:  # noqa: BLE001 - the sizes of the example remain
        return Traced(trace(module, call), None, None, root(error))
    if any(isinstance(size, int) for size in _batch_sizes(program, doubled)):
        return Traced(trace(module, call), None, None, "it computes with its batch size.")
    return Traced(program, shapes, doubled)


def trace(module: torch.nn.Module, call: Call, shapes: Any = None) -> ExportedProgram:
    """Trace ``module``.

    Args:
        module: the module, in eval mode.
        call: an example call; the graph has its sizes.
        shapes: the axes that vary, as for `torch.export.export`; None: no axis.

    Raises:
        ModelError: PyTorch cannot trace the module.
    """
    try:
        return _program(module, call, shapes)
    except Exception as error:
        raise ModelError(f"{type(module).__name__} cannot be exported: {_advised(root(error))}") from error


def _advised(text: str) -> str:
    """Add what to do, if the message is about code that depends on the values of tensors."""
    if not any(word in text for word in _DEPENDS):
        return text
    return (
        f"{text} Code that depends on the values of tensors (if, while, .item()) must use torch.where or "
        "torch.cond instead."
    )


def _program(module: torch.nn.Module, call: Call, shapes: Any) -> ExportedProgram:
    with quiet(), torch.no_grad():
        return torch.export.export(module, call.args, dict(call.kwargs), dynamic_shapes=shapes, strict=False)


def _batch_shapes(module: torch.nn.Module, call: Call, dim: Any) -> Any:
    """Make the dynamic shapes for `torch.export`: the first axis of every batched input varies.

    They have one entry for each parameter of ``forward``, so one for all of ``*args``.
    """
    shapes = call.map(lambda leaf: {0: dim} if call.is_batched(leaf) else None)
    return tuple(inspect.signature(module.forward).bind(*shapes.args, **shapes.kwargs).arguments.values())


def _batch_sizes(program: ExportedProgram, call: Call) -> list[Any]:
    """List the batch sizes of the batched inputs: a number each, or a symbol if it is free."""
    names = set(tensor_inputs(program))
    values = [node.meta["val"] for node in program.graph.find_nodes(op="placeholder") if node.name in names]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return [t.shape[0] for t, given in zip(tensors, call.tensors, strict=True) if call.is_batched(given)]


def tensor_inputs(program: ExportedProgram) -> list[str]:
    """List the names of the tensors that the graph takes; arguments of other types are constants of it."""
    specs = program.graph_signature.input_specs
    return [
        spec.arg.name
        for spec in specs
        if spec.kind == InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)
    ]


def root(error: BaseException) -> str:
    """The message of the root cause of an error, on one line; PyTorch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
    text = text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"
    return text if text.endswith((".", "…")) else f"{text}."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress prints, logs and warnings in the ``with`` block; errors are raised as usual."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

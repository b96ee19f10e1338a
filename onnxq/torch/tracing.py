"""A module as a graph of PyTorch: for any batch size if it takes one, else for that of the example."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from onnxq.core.errors import ModelError
from onnxq.torch.calls import Call

_MESSAGE = 400


@dataclass(frozen=True)
class Traced:
    """A module as a graph.

    Attributes:
        program: the graph.
        shapes: what varies in it, as `torch.export.export` takes it; None: nothing.
        other: a call with another batch size; None if only that of the example will do.
        reason: why only that will do.
    """

    program: ExportedProgram
    shapes: Any
    other: Call | None
    reason: str = ""


def trace_free(module: torch.nn.Module, call: Call, dim: Any, check: Callable[[Call], None]) -> Traced:
    """``module`` with a free batch size, if it allows one.

    Args:
        module: in eval mode.
        call: an example.
        dim: the `torch.export.Dim` of the batch.
        check: given ``call`` with every sample twice; its error too says that the batch is not free.

    Raises:
        ModelError: PyTorch cannot trace it, not for the sizes of ``call`` either.
    """
    doubled = call.doubled()
    shapes = _batch_shapes(doubled, dim)
    try:
        check(doubled)
        program = _program(module, doubled, shapes)
    except Exception as error:  # noqa: BLE001 - the sizes of the example are the way out
        return Traced(trace(module, call), None, None, root(error))
    if any(isinstance(size, int) for size in _batch_sizes(program, doubled)):
        return Traced(trace(module, call), None, None, "it computes with its batch size.")
    return Traced(program, shapes, doubled)


def trace(module: torch.nn.Module, call: Call, shapes: Any = None) -> ExportedProgram:
    """``module``, with the sizes of ``call`` but for ``shapes``.

    Raises:
        ModelError: PyTorch cannot trace it.
    """
    try:
        return _program(module, call, shapes)
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} cannot be exported: {root(error)} What depends on the values of "
            "tensors (if, while, .item()) has to be written with torch.where or torch.cond."
        ) from error


def _program(module: torch.nn.Module, call: Call, shapes: Any) -> ExportedProgram:
    with quiet(), torch.no_grad():
        return torch.export.export(module, call.args, dict(call.kwargs), dynamic_shapes=shapes, strict=False)


def _batch_shapes(call: Call, dim: Any) -> Any:
    """For `torch.export`: the first axis of every batched input varies."""
    args, kwargs = pytree.tree_map(
        lambda leaf: {0: dim} if call.is_batched(leaf) else None, (call.args, dict(call.kwargs))
    )
    return (*args, *kwargs.values())


def _batch_sizes(program: ExportedProgram, call: Call) -> list[Any]:
    """Of the inputs that have one: a number, or a symbol where it is free."""
    names = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.find_nodes(op="placeholder") if node.name in names]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return [t.shape[0] for t, given in zip(tensors, call.tensors, strict=True) if call.is_batched(given)]


def root(error: BaseException) -> str:
    """What lies behind an error, on one line: PyTorch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
    text = text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"
    return text if text.endswith((".", "…")) else f"{text}."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed, logged or warned of in the ``with`` block; errors are raised as ever."""
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

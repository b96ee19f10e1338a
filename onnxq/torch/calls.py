"""Represent a call of a module: its arguments in any form, and the tensors among them in a fixed order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from onnxq.core.errors import CalibrationError, ConfigError

Example = torch.Tensor | Sequence[Any] | Mapping[str, Any]
"""One tensor, positional arguments, or arguments by name."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call, in the form in which ``forward`` declares them.

    Two calls are the same whether a user gives arguments by name or by position, and in any order.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def leaves(self) -> list[Any]:
        """All values in the arguments, containers unpacked."""
        return list(pytree.tree_leaves((self.args, dict(self.kwargs))))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among `leaves`: the inputs of the ONNX model, in its order."""
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    @property
    def form(self) -> tuple[Any, ...]:
        """The part that must be the same in every call: containers, and all values except tensors."""
        spec = pytree.tree_structure((self.args, dict(self.kwargs)))
        fixed = (None if isinstance(leaf, torch.Tensor) else (leaf,) for leaf in self.leaves)
        return spec, *fixed

    @property
    def batch(self) -> int | None:
        """The size of the first axis of the first tensor that has axes, which is presumably the batch."""
        return next((tensor.shape[0] for tensor in self.tensors if tensor.ndim), None)

    def is_batched(self, leaf: Any) -> bool:
        """Whether ``leaf`` may be a tensor whose first axis counts samples."""
        return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == self.batch

    def map(self, change: Callable[[Any], Any]) -> Call:
        """Make the same call with ``change`` applied to each leaf."""
        args, kwargs = pytree.tree_map(change, (self.args, dict(self.kwargs)))
        return Call(args, kwargs)

    def doubled(self) -> Call:
        """Make the call with every sample twice: the batch, followed by the same batch again."""
        return self.map(lambda leaf: torch.cat([leaf, leaf]) if self.is_batched(leaf) else leaf)

    def first(self) -> Call:
        """Make the call with only the first sample."""
        return self.map(lambda leaf: leaf[:1] if self.is_batched(leaf) else leaf)

    def outputs(self, module: torch.nn.Module) -> list[torch.Tensor]:
        """Run ``module`` and return the tensors in its output."""
        with torch.no_grad():
            return tensors_of(module(*self.args, **self.kwargs))


def example_call(module: torch.nn.Module, example: Example) -> Call:
    """Make the call that ``example`` describes.

    Raises:
        ConfigError: it is no valid example, holds no tensor, or ``forward`` does not take it.
    """
    if isinstance(example, torch.Tensor):
        return example_call(module, (example,))
    if not isinstance(example, tuple | list | Mapping):
        raise ConfigError(
            f"example inputs of type {type(example).__name__}: expected a tensor, a tuple of arguments, or "
            "a dictionary of arguments by name"
        )
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})
    call = bind(module, args, kwargs)
    if not call.tensors:
        raise ConfigError("the example inputs hold no tensor: give the arguments of the module's forward()")
    return call


def bind(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Make a call with arguments sorted as ``forward`` declares them.

    Args:
        module: the module.
        args: positional arguments.
        kwargs: arguments by name.

    Raises:
        ConfigError: ``forward`` does not take them.
    """
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(
            f"{type(module).__name__}.forward{inspect.signature(module.forward)} cannot be called with these "
            f"inputs: {error}"
        ) from error
    return Call(bound.args, bound.kwargs)


def tensors_of(output: Any) -> list[torch.Tensor]:
    """List the tensors in the output of a module, containers unpacked."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def output_names(output: Any) -> list[str | None]:
    """List the key of each tensor in an output; None unless it is in a dictionary or in named fields."""
    found, _ = pytree.tree_flatten_with_path(output)
    return [_key(path) for path, leaf in found if isinstance(leaf, torch.Tensor)]


def _key(path: tuple[Any, ...]) -> str | None:
    keys = [getattr(step, "key", getattr(step, "name", getattr(step, "idx", None))) for step in path]
    named = any(isinstance(key, str) for key in keys)
    return "_".join(map(str, keys)) if named else None


def to_numpy(tensor: torch.Tensor, name: str) -> NDArray[np.generic]:
    """Copy the tensor to the CPU as an array.

    Raises:
        CalibrationError: numpy has no such number type.
    """
    try:
        return np.asarray(tensor.detach().cpu().numpy())
    except TypeError as error:
        raise CalibrationError(f"input {name!r}: {tensor.dtype} cannot be passed to ONNX: {error}") from error

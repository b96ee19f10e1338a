"""Represent a call of a module: its arguments in any form, and the tensors among them in a fixed order."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from onnxq.core.errors import CalibrationError, ConfigError

Forward = Callable[..., Any]

Path = tuple[str | int, ...]
"""The keys and positions that lead to a tensor."""

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

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Call:
        """Make the same call with other tensors, in the order of `tensors`."""
        rest = iter(tensors)
        return self.map(lambda leaf: next(rest) if isinstance(leaf, torch.Tensor) else leaf)

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
    call = bind(module.forward, args, kwargs)
    if not call.tensors:
        raise ConfigError("the example inputs hold no tensor: give the arguments of the module's forward()")
    return call


def bind(forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Make a call with arguments sorted as ``forward`` declares them.

    Args:
        forward: the ``forward`` of a module.
        args: positional arguments.
        kwargs: arguments by name.

    Raises:
        ConfigError: ``forward`` does not take them.
    """
    bound = _bound(forward, args, kwargs)
    return Call(bound.args, bound.kwargs)


def _bound(forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
    signature = inspect.signature(forward)
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(
            f"{_owner(forward)}.forward{signature} cannot be called with these inputs: {error}"
        ) from error


def _owner(forward: Forward) -> str:
    return type(getattr(forward, "__self__", forward)).__name__


def matching_tensors(forward: Forward, known: Call, given: Call) -> list[torch.Tensor]:
    """Get the tensors of a call of a module that was traced with another call.

    Only the values of tensors may differ: containers and all other values are constants of the trace. An
    argument that is left out has its default.

    Args:
        forward: the ``forward`` of the module.
        known: the call that the module was traced with.
        given: the other call.

    Raises:
        CalibrationError: something else differs; the message names the argument.
    """
    then, now = (_with_defaults(forward, call) for call in (known, given))
    for name, value in then.items():
        if _form(value) != _form(now[name]):
            raise CalibrationError(
                f"argument {name!r} of {_owner(forward)} is {_told(now[name])}, but was {_told(value)} in "
                "the example inputs, of which the graph was made: only the values and the batch size of "
                "tensors may differ. Prepare the module with an example like this."
            )
    return given.tensors


def _with_defaults(forward: Forward, call: Call) -> dict[str, Any]:
    bound = _bound(forward, call.args, call.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _form(value: Any) -> tuple[Any, ...]:
    """What must be the same in every call: containers, and all values except tensors."""
    leaves, spec = pytree.tree_flatten(value)
    return spec, *(None if isinstance(leaf, torch.Tensor) else (leaf,) for leaf in leaves)


def _told(value: Any) -> str:
    """Write an argument for a message: tensors as their shape, anything else shortened."""
    shown = pytree.tree_map(
        lambda leaf: f"tensor{list(leaf.shape)}" if isinstance(leaf, torch.Tensor) else leaf, value
    )
    return textwrap.shorten(str(shown), 80, placeholder=" …")


def tensors_of(output: Any) -> list[torch.Tensor]:
    """List the tensors in the output of a module, containers unpacked."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def tensor_paths(values: Any) -> list[Path]:
    """List the place of each tensor in a container of containers."""
    found, _ = pytree.tree_flatten_with_path(values)
    return [tuple(map(_step, path)) for path, leaf in found if isinstance(leaf, torch.Tensor)]


def _step(key: Any) -> str | int:
    """The key in a dictionary, the name of a field, or the position in a sequence."""
    step: str | int = getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))
    return step


def output_names(output: Any) -> list[str | None]:
    """List the key of each tensor in an output; None unless it is in a dictionary or in named fields."""
    return [
        "_".join(map(str, path)) if any(isinstance(step, str) for step in path) else None
        for path in tensor_paths(output)
    ]


def to_numpy(tensor: torch.Tensor, name: str) -> NDArray[np.generic]:
    """Copy the tensor to the CPU as an array.

    Raises:
        CalibrationError: numpy has no such number type.
    """
    try:
        return np.asarray(tensor.detach().cpu().numpy())
    except TypeError as error:
        raise CalibrationError(f"input {name!r}: {tensor.dtype} cannot be passed to ONNX: {error}") from error

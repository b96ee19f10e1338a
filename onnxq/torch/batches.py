"""Find the inputs of a module in the batches that a data loader yields, whatever their form.

The example inputs say where each tensor lies among the arguments. A batch may have the form of these
arguments, by position or by name, or hold them at any depth, beside labels. Whatever else it holds is
ignored::

    x    (x, y)    (a, b)    (a, b, y)    ((a, b), y)    {"a": a, "b": b, "y": y}    ({"a": a, "b": b}, y)
    (args, kwargs)    {"inputs": (a, b), "labels": y}    ((a, (b,)), y)

Tensors that lie elsewhere than in the example, as in the last form, are taken in their order, if each of them
has as many axes as the example's and is of the same kind, integers or not.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from onnxq.calibration.sample_split import Data
from onnxq.torch.calls import Call, Path, tensor_paths, to_numpy

Kind = tuple[int, bool]
"""The number of axes, and whether the numbers are floating-point."""


@dataclass(frozen=True)
class Batches:
    """The batches of a loader as arrays by input name. They can be read as often as those of the loader.

    A batch of another form is passed on as it is: it may suit the ONNX model, else its reader refuses it.

    Attributes:
        loader: yields the batches.
        names: the inputs of the ONNX model.
        places: the place of each input among the arguments by position, and by name.
        kinds: the number of axes of each input, and whether it holds floating-point numbers.
        labelled: whether to yield what lies beside the inputs too, as labels in a tuple with the inputs.
    """

    loader: Iterable[Any]
    names: Sequence[str]
    places: tuple[Sequence[Path], Sequence[Path]]
    kinds: Sequence[Kind | None]
    labelled: bool = False

    def __iter__(self) -> Iterator[Any]:
        """Convert each batch."""
        for batch in self.loader:
            found = self._found(batch)
            if found is None:
                yield batch
                continue
            feeds = dict(zip(self.names, map(_array, self.names, found), strict=True))
            labels = _beside(batch, {id(leaf) for leaf in found}) if self.labelled else None
            yield feeds if labels is None else (feeds, labels)

    def _found(self, batch: Any) -> list[Any] | None:
        """Find the inputs in a batch, or at any depth in it; None if it does not hold them."""
        found = self._here(batch)
        if found is not None:
            return found
        inner = batch.values() if isinstance(batch, Mapping) else batch if _is_sequence(batch) else ()
        inside = (self._found(item) for item in inner if isinstance(item, Mapping) or _is_sequence(item))
        return next((found for found in inside if found is not None), None) or self._in_order(batch)

    def _here(self, batch: Any) -> list[Any] | None:
        """Find the inputs where the example has them."""
        by_position, by_name = self.places
        tries: list[Sequence[Path]] = [[(name,) for name in self.names], by_name, by_position]
        if len({path[0] for path in by_position}) == 1:  # the batch may be the only argument itself
            tries.append([path[1:] for path in by_position])
        for paths in tries:
            found = [_at(batch, path) for path in paths]
            if all(map(_is_array, found)):
                return found
        if _is_sequence(batch) and len(batch) == 2 and isinstance(batch[1], Mapping):
            args, kwargs = batch
            pairs = ((_at(args, one), _at(kwargs, other)) for one, other in zip(*self.places, strict=True))
            found = [one if _is_array(one) else other for one, other in pairs]
            return found if all(map(_is_array, found)) else None
        return None

    def _in_order(self, batch: Any) -> list[Any] | None:
        """Take the first arrays in sequences of sequences, if they may be the inputs."""
        found = list(islice(_leaves(batch), len(self.names)))
        return found if [_kind(leaf) for leaf in found] == list(self.kinds) else None


def batches_for(module: torch.nn.Module, call: Call, names: Sequence[str], data: Data) -> Data:
    """Let ``data`` yield arrays by input name; a path stays as it is.

    Args:
        module: the module.
        call: its example call.
        names: the names of the inputs of the exported model, in the order of ``call.tensors``.
        data: a path, or batches for the module or for its ONNX model.
    """
    if isinstance(data, str | os.PathLike | Mapping) or not isinstance(data, Iterable):
        return data
    parameters = list(inspect.signature(module.forward).parameters)
    by_position = [*tensor_paths(call.args), *tensor_paths(dict(call.kwargs))]
    named = [
        (parameters[path[0]], *path[1:]) if isinstance(path[0], int) and path[0] < len(parameters) else path
        for path in by_position
    ]
    return Batches(data, names, (by_position, named), [_kind(tensor) for tensor in call.tensors])


def _at(value: Any, path: Path) -> Any:
    """Follow ``path`` into containers; None if it leads nowhere."""
    for key in path:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(key, int) and isinstance(value, tuple | list):
            value = value[key] if key < len(value) else None
        else:
            value = getattr(value, key, None) if isinstance(key, str) and not _is_array(value) else None
    return value


def _beside(batch: Any, inputs: Collection[int]) -> Any:
    """Return what a batch holds beside the arrays whose identities are ``inputs``; None: nothing.

    It is one thing, or a dictionary of several, by name or by position.
    """
    if not isinstance(batch, Mapping) and not _is_sequence(batch):
        return None
    items = batch if isinstance(batch, Mapping) else dict(enumerate(batch))
    rest = {key: value for key, value in items.items() if not _holds(value, inputs)}
    return next(iter(rest.values())) if len(rest) == 1 else rest or None


def _holds(value: Any, inputs: Collection[int]) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if _is_sequence(value) else ()
    return id(value) in inputs or any(_holds(item, inputs) for item in inner)


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the items of sequences of sequences; a dictionary is an item."""
    if _is_sequence(value):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _kind(value: Any) -> Kind | None:
    """The number of axes of an array, and whether it holds floating-point numbers; None: it is none."""
    if isinstance(value, torch.Tensor):
        return value.ndim, value.is_floating_point()
    return (value.ndim, value.dtype.kind == "f") if isinstance(value, np.ndarray) else None


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__")


def _array(name: str, value: Any) -> Any:
    return to_numpy(value, name) if isinstance(value, torch.Tensor) else value

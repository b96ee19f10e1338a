"""Find the inputs of a module in the batches that a data loader yields, whatever their form.

The example inputs say where each tensor lies among the arguments. A batch may have the form of these
arguments, by position or by name, or hold them as its first item, beside labels. Whatever else it holds is
ignored::

    x    (x, y)    (a, b)    (a, b, y)    ((a, b), y)    {"a": a, "b": b, "y": y}    ({"a": a, "b": b}, y)
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from onnxq.calibration.sample_split import Data
from onnxq.torch.calls import Call, Path, tensor_paths, to_numpy


@dataclass(frozen=True)
class Batches:
    """The batches of a loader as arrays by input name. They can be read as often as those of the loader.

    A batch of another form is passed on as it is: it may suit the ONNX model, else its reader refuses it.

    Attributes:
        loader: yields the batches.
        names: the inputs of the ONNX model.
        places: the place of each input among the arguments by position, and by name.
    """

    loader: Iterable[Any]
    names: Sequence[str]
    places: tuple[Sequence[Path], Sequence[Path]]

    def __iter__(self) -> Iterator[Any]:
        """Convert each batch."""
        for batch in self.loader:
            found = self._found(batch)
            yield (
                batch if found is None else dict(zip(self.names, map(_array, self.names, found), strict=True))
            )

    def _found(self, batch: Any) -> list[Any] | None:
        """Find the inputs in a batch; None if it does not hold them."""
        by_position, by_name = self.places
        tries: list[Sequence[Path]] = [[(name,) for name in self.names], by_name, by_position]
        if len({path[0] for path in by_position}) == 1:  # the batch may be the only argument itself
            tries.append([path[1:] for path in by_position])
        for paths in tries:
            found = [_at(batch, path) for path in paths]
            if all(map(_is_array, found)):
                return found
        has_labels = isinstance(batch, tuple | list) and batch and not _is_array(batch[0])
        return self._found(batch[0]) if has_labels else None


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
    return Batches(data, names, (by_position, named))


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


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__")


def _array(name: str, value: Any) -> Any:
    return to_numpy(value, name) if isinstance(value, torch.Tensor) else value

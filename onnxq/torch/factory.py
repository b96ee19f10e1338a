"""Export a module that a Python factory makes, for ``onnxq export MODULE:FACTORY``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from calibrators.atomic import NOT_PLAIN, is_special
from onnxq.core.errors import ConfigError
from onnxq.pipelines.preflight import check_places
from onnxq.torch.calls import Example
from onnxq.torch.exporting import Exported, export


def export_made(source: str, output: str, shape: str | None, *, dynamic_batch: bool) -> Exported:
    """Export the module that a factory makes.

    Args:
        source: ``package.module:factory`` or ``file.py:factory``. The factory is called without arguments and
            returns a module, or a module and its example inputs. The name may also be that of a module.
        output: the file to write.
        shape: the shape of the only input, such as ``1,3,224,224``; None: the factory gives an example.
        dynamic_batch: as for `export`.

    Raises:
        ConfigError: there is no such factory, or it returns something else.
        ModelError: as `export`.
    """
    module, example = _made(source, output)
    if shape is not None:
        example = torch.zeros(_sizes(shape))
    if example is None:
        raise ConfigError(
            f"{source} gives no example inputs: give the shape of the input (--shape 1,3,224,224), or let "
            "the factory return (module, example inputs)"
        )
    return export(module, example, output, dynamic_batch=dynamic_batch)


def _made(source: str, output: str) -> tuple[torch.nn.Module, Example | None]:
    place, colon, name = source.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"{source!r}: expected package.module:factory or file.py:factory")
    holder = _imported(place)
    check_places((getattr(holder, "__file__", None),), (output,))
    made = _attribute(holder, name, source)
    if not isinstance(made, torch.nn.Module) and callable(made):
        made = made()
    pair = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(pair[0], torch.nn.Module):
        raise ConfigError(
            f"{source} gives a {type(made).__name__}: expected a torch.nn.Module, or (module, example inputs)"
        )
    return pair


def _attribute(holder: ModuleType, name: str, source: str) -> Any:
    names: Mapping[str, Any] = vars(holder)
    if name not in names:
        found = ", ".join(key for key, value in names.items() if callable(value) and not key.startswith("_"))
        raise ConfigError(f"{source}: there is no {name!r}; callables are: {found or 'none'}")
    return names[name]


def _imported(place: str) -> ModuleType:
    """Import a Python module by name or from a file; the current folder is searched too."""
    if place.endswith(".py"):
        return _from_file(Path(place))
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ConfigError(f"cannot import {place}: {error}") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{path}: {NOT_PLAIN if is_special(path) else 'no such file'}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _sizes(shape: str) -> list[int]:
    try:
        return [int(part) for part in shape.split(",")]
    except ValueError as error:
        raise ConfigError(f"shape {shape!r}: expected whole numbers, like 1,3,224,224") from error

"""A model as the user has it, in a file or in memory, becomes a file: all pipelines work on files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxq.core.errors import ConfigError
from onnxq.graph.files import external_files, from_memory, save
from onnxq.pipelines.preflight import check_places


def is_path(model: Any) -> bool:
    """Whether ``model`` is the path of a file."""
    return isinstance(model, str | os.PathLike)


def is_module(model: Any) -> bool:
    """Whether ``model`` is a `torch.nn.Module`, without importing torch."""
    return not isinstance(model, type) and callable(getattr(model, "named_modules", None))


def write_given(model: Any, folder: str | os.PathLike[str], written: Sequence[Path] = ()) -> Path:
    """Write a model in memory to a file in ``folder`` and return the path.

    Args:
        model: an `onnx.ModelProto` or an `onnx_ir.Model`.
        folder: an existing folder.
        written: the files that will be written; weights of ``model`` may lie in files too.

    Raises:
        ConfigError: ``model`` is something else.
        ModelError: one of ``written`` holds weights of ``model``, or cannot be written.
    """
    if isinstance(model, onnx.ModelProto):
        model = from_memory(model)
    if not isinstance(model, ir.Model):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        what = f"the class {kind} itself" if isinstance(model, type) else f"a model of type {kind}"
        raise ConfigError(f"{what}: expected the path of an ONNX file, an ONNX model, or a torch.nn.Module")
    check_places(external_files(model), written)
    path = Path(folder) / "model.onnx"
    save(model, path)
    return path

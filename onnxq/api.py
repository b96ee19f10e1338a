"""`onnxq.quantize_static`: whatever form the float model has, it goes to the pipeline as a file."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnx_ir as ir

from onnxq.calibration.sample_split import Data
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.goal import Goal
from onnxq.core.progress import Progress, silent
from onnxq.graph.files import external_files, from_memory, save
from onnxq.pipelines import static
from onnxq.pipelines.preflight import check_places, files_written
from onnxq.pipelines.result import QuantResult


def quantize_static(
    model: Any,
    output: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
    goal: Goal | None = None,
    *,
    example_inputs: Any = None,
) -> QuantResult:
    """Quantize ``model`` with ranges from ``data`` and write it to ``output``, whole or not at all.

    Args:
        model: path of a float ONNX model; an `onnx.ModelProto` or an `onnx_ir.Model`; or a `torch.nn.Module`,
            which is exported first (see `onnxq.torch.export`).
        output: path of the int8 model to write.
        data: as ``config.data``, or any iterable of ``{input name: array or tensor}`` batches; for a model
            with one input also of bare tensors, or of pairs of it and a label.
        config: the options; defaults if None.
        progress: told how far the work is.
        goal: what the model must reach, as ``config.goal``; its measure may be a function of one's own.
        example_inputs: what a module is called with: a tensor, a tuple of arguments, or a dictionary by name.

    Raises:
        OnnxqError: with one clear message; ``output`` is then as it was before.
    """
    if isinstance(model, str | os.PathLike):
        if example_inputs is not None:
            raise ConfigError("example_inputs go with a torch.nn.Module, not with the path of a model")
        return static.quantize_static(model, output, data, config, progress, goal)
    config = config or QuantConfig()
    if isinstance(model, onnx.ModelProto):
        model = from_memory(model)
    if isinstance(model, ir.Model):
        check_places(external_files(model), files_written(output, config))
    with TemporaryDirectory(prefix="onnxq-", ignore_cleanup_errors=True) as folder:
        path, config = _written(model, Path(folder), example_inputs, config)
        result = static.quantize_static(path, output, data, config, progress, goal)
        _ = result.table  # it reads the float model, which goes with the folder
    return result


def _written(model: Any, folder: Path, example: Any, config: QuantConfig) -> tuple[Path, QuantConfig]:
    """The file that holds ``model``, and the options with what is marked on it.

    Raises:
        ConfigError: it is no model.
    """
    if isinstance(model, ir.Model):
        path = folder / "model.onnx"
        save(model, path)
        return path, config
    if not callable(getattr(model, "named_modules", None)):
        raise ConfigError(
            f"a model of type {type(model).__name__}: expected the path of an ONNX file, an ONNX model, or a "
            "torch.nn.Module"
        )
    if example is None:
        raise ConfigError(
            f"{type(model).__name__} has to be exported first: give example_inputs, what it is called with"
        )
    from onnxq.torch import export
    from onnxq.torch.module_patterns import Layers

    path = folder / f"{type(model).__name__}.onnx"
    export(model, example, path)
    return path, Layers().added_to(config, model, path)

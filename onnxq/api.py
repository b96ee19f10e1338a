"""The public functions: whatever form the model has, it goes to the pipelines as a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from calibrators.statistics import Statistics
from onnxq.calibration.sample_split import Data
from onnxq.calibration.shards import Scope, Shard
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.goal import Goal
from onnxq.core.progress import Progress, silent
from onnxq.graph.files import load
from onnxq.pipelines import calibrate as calibration
from onnxq.pipelines import requantize as requantization
from onnxq.pipelines import static
from onnxq.pipelines.conversions import cache as caching
from onnxq.pipelines.conversions import convert as conversion
from onnxq.pipelines.conversions.cache import CacheResult
from onnxq.pipelines.conversions.convert import Converted
from onnxq.pipelines.dynamic import pipeline as dynamic
from onnxq.pipelines.given_model import is_module, is_path, write_given
from onnxq.pipelines.preflight import files_written
from onnxq.pipelines.requantize import Requantized
from onnxq.pipelines.result import QuantResult
from onnxq.pipelines.weight_only import pipeline as weight_only


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
        data: as ``config.data``, or any iterable of batches: ``{input name: array or tensor}``, or the arrays
            in the order of the inputs; labels beside them are ignored. For a module, batches may have the
            form of its arguments.
        config: the options; defaults if None.
        progress: told how far the work is.
        goal: what the model must reach, as ``config.goal``; its measure may be a function of one's own.
        example_inputs: what a module is called with: a tensor, a tuple of arguments, or a dictionary by name.

    Raises:
        OnnxqError: with one clear message; ``output`` is then as it was before.
    """
    with _given(model, _Asked(example_inputs), data, config, output) as given:
        result = static.quantize_static(given.path, output, given.data, given.config, progress, goal)
        if not is_path(model):
            _ = result.table  # it reads the file of the model, which goes with the folder
    return result


def quantize_dynamic(
    model: Any,
    output: str | os.PathLike[str],
    config: QuantConfig | None = None,
    data: Data | None = None,
    progress: Progress = silent,
    *,
    example_inputs: Any = None,
    only: Iterable[Any] | None = None,
    skip: Iterable[Any] = (),
) -> QuantResult:
    """Quantize the weights of ``model`` and write it to ``output``, whole or not at all.

    Args:
        model: as for `quantize_static`.
        output: path of the model to write.
        config: the options, with or without ``mode="dynamic"``; defaults if None. ``include`` and ``exclude``
            select nodes by operator type and name.
        data: as for `quantize_static`. The samples show which channels are large, and every fifth is held out
            to measure accuracy and speed on. Synthetic inputs if None.
        progress: told how far the work is.
        example_inputs: what a module is called with, as for `quantize_static`.
        only: of a module, the layers to quantize, by name, glob of names, or type, as the first set of
            `torch.ao.quantization.quantize_dynamic` names them: ``{torch.nn.LSTM, torch.nn.Linear, "head"}``.
            None: all that dynamic mode quantizes.
        skip: of a module, layers to keep in float, by the same names.

    Raises:
        OnnxqError: with one clear message; ``output`` is then as it was before.
    """
    wanted = _Asked(example_inputs, None if only is None else tuple(only), tuple(skip))
    with _given(model, wanted, data, config, output) as given:
        return dynamic.quantize_dynamic(given.path, output, given.config, given.data, progress)


def quantize_weights(
    model: Any,
    output: str | os.PathLike[str],
    config: QuantConfig | None = None,
    data: Data | None = None,
    progress: Progress = silent,
    *,
    example_inputs: Any = None,
) -> QuantResult:
    """Quantize the matrices of ``model`` in blocks and write it to ``output``, whole or not at all.

    Args:
        model: as for `quantize_static`. The weights of a path are read one matrix after the other.
        output: path of the model to write.
        config: the options, with or without ``mode="weight-only"``; defaults if None.
        data: as for `quantize_static`, to choose weights and to measure accuracy on; none are needed.
        progress: told how far the work is.
        example_inputs: what a module is called with, as for `quantize_static`.

    Raises:
        OnnxqError: with one clear message; ``output`` is then as it was before.
    """
    with _given(model, _Asked(example_inputs), data, config, output) as given:
        return weight_only.quantize_weights(given.path, output, given.config, given.data, progress)


def calibrate(
    model: Any,
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
    *,
    example_inputs: Any = None,
    shard: str | None = None,
    with_moments: bool = False,
) -> Statistics:
    """Collect statistics, from which `quantize_static` gets the ranges of every method and target.

    Pass their file as ``from_table``. No samples are held out, unless ``with_moments``. With
    ``config.save_statistics`` the statistics are written to that file, and after an interrupt the same call
    resumes from there. If ``config.target`` is set, they cover that target only.

    Args:
        model: as for `quantize_static`.
        data: as for `quantize_static`.
        config: the options; defaults if None.
        progress: told how far the work is.
        example_inputs: what a module is called with, as for `quantize_static`.
        shard: "I/N": count part I of N only; `merge` makes one file of the parts.
        with_moments: keep channel means, and a bounded sample of inputs, so that `quantize_static` can try
            corrections with the file alone.

    Raises:
        OnnxqError: the model or the data cannot be used; the message says why.
    """
    scope = Scope(None if shard is None else Shard.parse(shard), with_moments)
    with _given(model, _Asked(example_inputs), data, config) as given:
        return calibration.calibrate(given.path, given.data, given.config, progress, scope)


def convert(
    model: Any,
    output: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
    *,
    example_inputs: Any = None,
) -> Converted:
    """Convert ``model`` to another float type, without quantization, and write it whole or not at all.

    Args:
        model: as for `quantize_static`; also a model with Q/DQ, whose integers stay.
        output: path of the model to write.
        data: as for `quantize_static`: it shows the range of each tensor, and the result is compared on it.
        config: ``float_type`` (float16 if None), ``io_types``, ``exclude`` (nodes that stay in float32), and
            how samples are read and run.
        progress: told how far the work is.
        example_inputs: what a module is called with, as for `quantize_static`.

    Raises:
        OnnxqError: with one clear message; ``output`` is then as it was before.
    """
    with _given(model, _Asked(example_inputs), data, config, output) as given:
        return conversion.convert(given.path, output, given.data, given.config, progress)


def quantize_cache(
    model: Any,
    output: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
) -> CacheResult:
    """Let the caches of keys and values of a decoder go in and come out as int8; all else stays.

    Args:
        model: as for `requantize`: a decoder whose float caches are inputs and outputs, float or quantized.
        output: path of the model to write.
        data: as for `quantize_static`: it shows the ranges of keys and values; some of it is held out.
        config: how samples are read and run.
        progress: told how far the work is.

    Raises:
        OnnxqError: with one clear message; ``output`` is then as it was before.
    """
    with _given(model, _Asked(), data, config, output) as given:
        return caching.quantize_cache(given.path, output, given.data, given.config, progress)


def requantize(
    model: Any,
    output: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
) -> Requantized:
    """Convert a model with Q/DQ for ``config.target``; tensors keep the scales that they have.

    Args:
        model: path of a model with pairs of QuantizeLinear and DequantizeLinear; an `onnx.ModelProto` or an
            `onnx_ir.Model`.
        output: path of the model to write, whole or not at all.
        data: as for `quantize_static`: to calibrate tensors without a scale, and to compare both models.
        config: the options. No corrections are applied.
        progress: told how far the work is.

    Raises:
        ConfigError: an option does not apply here: a goal, tables, corrections, dynamic mode.
        ModelError: the model has no Q/DQ, or has integer operators that are no Q/DQ pairs.
        CalibrationError: the target quantizes more tensors than the model, and there is no data.
    """
    if is_module(model):
        raise ConfigError(
            f"{type(model).__name__} is a PyTorch module: export it with its Q and DQ first "
            "(torch.onnx.export), or quantize the float module"
        )
    with _given(model, _Asked(), data, config, output) as given:
        result = requantization.requantize(given.path, output, given.data, given.config, progress)
        if not is_path(model):
            _ = result.table
    return result


@dataclass(frozen=True)
class _Given:
    """What the user gave, in the form that the pipelines take.

    Attributes:
        path: the file of the model.
        data: the data, by the names of its inputs.
        config: the options, with what is marked on a module.
    """

    path: str | os.PathLike[str]
    data: Data | None
    config: QuantConfig


@dataclass(frozen=True)
class _Asked:
    """What the user says about a module.

    Attributes:
        example: what it is called with.
        only: the only layers to quantize; None: all.
        skip: layers to keep in float.
    """

    example: Any = None
    only: tuple[Any, ...] | None = None
    skip: tuple[Any, ...] = ()


@contextmanager
def _given(
    model: Any,
    asked: _Asked,
    data: Data | None,
    config: QuantConfig | None,
    output: str | os.PathLike[str] | None = None,
) -> Iterator[_Given]:
    """Provide the model as a file, for the ``with`` block.

    Raises:
        ConfigError: it is no model, or does not go with the example.
        ModelError: a module cannot be exported.
    """
    config = config or QuantConfig()
    if asked != _Asked() and not is_module(model):
        raise ConfigError(
            "example_inputs go with a torch.nn.Module, not with an ONNX model or its path; so do only and "
            "skip: select the nodes of a file with include and exclude of QuantConfig"
        )
    if is_path(model):
        yield _Given(model, data, config)
        return
    with TemporaryDirectory(prefix="onnxq-", ignore_cleanup_errors=True) as folder:
        if is_module(model):
            yield _exported(model, asked, Path(folder), data, config)
        else:
            yield _Given(write_given(model, folder, _written(output, config)), data, config)


def _written(output: str | os.PathLike[str] | None, config: QuantConfig) -> list[Path]:
    statistics = [Path(config.save_statistics)] if config.save_statistics else []
    return statistics if output is None else files_written(output, config)


def _exported(module: Any, asked: _Asked, folder: Path, data: Data | None, config: QuantConfig) -> _Given:
    """Export a module."""
    kind, example = type(module).__name__, asked.example
    if example is None:
        raise ConfigError(f"{kind} has to be exported first: give example_inputs, what it is called with")
    from onnxq.torch import export
    from onnxq.torch.batches import Batches, batches_for
    from onnxq.torch.calls import example_call
    from onnxq.torch.module_patterns import Layers

    path = folder / f"{kind}.onnx"
    exported = export(module, example, path)
    if data is not None:
        data = batches_for(module, example_call(module, example), exported.inputs, data)
        if config.metric is not None and isinstance(data, Batches):
            data = replace(data, labelled=True)
    layers = Layers(asked.skip, only=asked.only)
    return _Given(path, data, layers.added_to(config, module, load(path)))

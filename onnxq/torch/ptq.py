"""Post-training quantization in a loop of one's own: `PTQ`, as Paddle and `torch.ao` have it."""

from __future__ import annotations

import copy
import os
import weakref
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.core.goal import Goal
from onnxq.core.progress import Progress, silent
from onnxq.pipelines.calibrate import Calibration
from onnxq.pipelines.result import QuantResult
from onnxq.torch.calls import Example, bind, example_call, to_numpy
from onnxq.torch.exporting import Exported, export
from onnxq.torch.module_patterns import Layers, Which


class PTQ:
    """Calibrates a module while its user runs it, and writes it quantized.

    ::

        ptq = onnxq.torch.PTQ(QuantConfig(method="entropy", target="tensorrt"))
        model = ptq.prepare(model, example_inputs)
        for x, _ in loader:
            model(x)
        ptq.convert(model, "model-int8.onnx")

    `prepare` exports the module once. From then on each call of the module also runs the exported model in
    ONNX Runtime on the same inputs, brought to the CPU, and counts what its tensors hold: statistics come
    from the very graph that is quantized, functional operators included, and cost one more run. The module
    itself computes what it always did, on its own device, and nothing in it is replaced or fused.
    """

    def __init__(
        self,
        config: QuantConfig | None = None,
        *,
        skip: Iterable[Which] = (),
        layers: Mapping[Which, Mapping[str, Any]] | None = None,
    ) -> None:
        """Take the options.

        Args:
            config: for all layers; defaults if None.
            skip: layers that stay float, by name (a glob will do) or by type; beside those that
                `onnxq.torch.skip_quant` marked.
            layers: other options for some layers, as `QuantConfig.override` knows them:
                ``{"head": {"method": "entropy"}, torch.nn.Linear: {"per_tensor": True}}``.
        """
        self.config = config or QuantConfig()
        self._layers = Layers(tuple(skip), dict(layers or {}))
        self._prepared: weakref.WeakKeyDictionary[torch.nn.Module, _Prepared] = weakref.WeakKeyDictionary()

    def prepare(
        self,
        model: torch.nn.Module,
        example_inputs: Example,
        *,
        inplace: bool = False,
        dynamic_shapes: Any = None,
    ) -> torch.nn.Module:
        """A module to be called with the calibration data: it gives what ``model`` gives.

        Args:
            model: a module in eval mode, on any device.
            example_inputs: as for `onnxq.torch.export`.
            inplace: observe the calls of ``model`` itself; otherwise those of a copy.
            dynamic_shapes: what may vary beside the batch, as for `onnxq.torch.export`.

        Raises:
            ModelError: the module cannot be exported, or has nothing to quantize.
            ConfigError: it is in training mode, was prepared already, or has no layer that the options name.
            TargetError: the target does not take what was asked for.
        """
        if model in self._prepared:
            raise ConfigError("the model is prepared already: call it with data, then convert it")
        check_eval(model)
        model = model if inplace else copy.deepcopy(model)
        self._prepared[model] = _Prepared(model, example_inputs, self.config, self._layers, dynamic_shapes)
        return model

    def convert(
        self,
        model: torch.nn.Module,
        output: str | os.PathLike[str],
        progress: Progress = silent,
        goal: Goal | None = None,
    ) -> QuantResult:
        """Write the quantized model; ``model`` may be called with more data, and converted again.

        Args:
            model: what `prepare` gave.
            output: path of the ONNX file to write.
            progress: told how far the work is.
            goal: what the model must reach, as for `onnxq.quantize_static`.

        Raises:
            ConfigError: `prepare` did not give this model, or its weights are not those that were exported.
            OnnxqError: as `onnxq.quantize_static`; ``output`` is then as it was before.
        """
        return self._of(model).convert(model, output, progress, goal)

    def release(self, model: torch.nn.Module) -> torch.nn.Module:
        """End the observation: ``model`` is again what it was before `prepare`.

        Raises:
            ConfigError: `prepare` did not give this model.
        """
        self._of(model).close()
        del self._prepared[model]
        return model

    def _of(self, model: torch.nn.Module) -> _Prepared:
        if model not in self._prepared:
            raise ConfigError(
                f"this {type(model).__name__} was not prepared here: give the model that prepare() returned"
            )
        return self._prepared[model]


class _Prepared:
    """A module under observation: its ONNX form, and what was seen of it."""

    def __init__(
        self, module: torch.nn.Module, example: Example, config: QuantConfig, layers: Layers, shapes: Any
    ) -> None:
        """Export the module, plan, and observe its calls from now on."""
        self._folder = TemporaryDirectory(prefix="onnxq-", ignore_cleanup_errors=True)
        self._remove_folder = weakref.finalize(self, self._folder.cleanup)
        path = Path(self._folder.name) / f"{type(module).__name__}.onnx"
        exported = export(module, example, path, dynamic_shapes=shapes)
        self._calibration = Calibration(path, layers.added_to(config, module, path))
        self._weights = checksum(module)
        observer = _Observer(exported, self._calibration, example_call(module, example).form)
        self._hook = module.register_forward_pre_hook(observer, with_kwargs=True)

    def convert(
        self,
        module: torch.nn.Module,
        output: str | os.PathLike[str],
        progress: Progress,
        goal: Goal | None,
    ) -> QuantResult:
        """Write the quantized model, if it still is this module."""
        if checksum(module) != self._weights:
            raise ConfigError(
                f"the weights or buffers of this {type(module).__name__} have changed since prepare(): what "
                "was exported and calibrated is another model. Prepare it again, in eval mode."
            )
        result = self._calibration.convert(output, progress, goal)
        _ = result.table  # it reads the exported model, which goes with us
        return result

    def close(self) -> None:
        """End the observation."""
        self._hook.remove()
        self._calibration.close()
        self._remove_folder()


class _Observer:
    """Called before each call of a module, with its inputs."""

    def __init__(self, exported: Exported, calibration: Calibration, form: tuple[Any, ...]) -> None:
        self._exported = exported
        self._calibration = calibration
        self._form = form

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the exported model on the same inputs."""
        check_eval(module)
        call = bind(module, args, kwargs)
        if call.form != self._form:
            raise CalibrationError(
                f"this {type(module).__name__} was called with other arguments than the example inputs: only "
                "the values and the batch size of tensors may differ. Prepare it with such an example."
            )
        pairs = zip(self._exported.inputs, call.tensors, strict=True)
        self._calibration.observe({name: to_numpy(tensor, name) for name, tensor in pairs})

    def __deepcopy__(self, memo: dict[int, Any]) -> _Observer:
        """A copy of the module feeds the same statistics."""
        return self


def check_eval(module: torch.nn.Module) -> None:
    """Refuse a module that does not compute as it will when it is deployed.

    Raises:
        ConfigError: a part of it is in training mode.
    """
    training = [name for name, part in module.named_modules() if part.training]
    if training:
        where = f"its part {training[0]!r}" if training[0] else "it"
        raise ConfigError(
            f"{type(module).__name__} is to be calibrated, but {where} is in training mode: call eval() first"
        )


def checksum(module: torch.nn.Module) -> int:
    """CRC-32 of all parameters and buffers that are saved with the module."""
    total = 0
    for name, tensor in module.state_dict().items():
        total = zlib.crc32(name.encode(), total)
        if isinstance(tensor, torch.Tensor):
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            total = zlib.crc32(data.data, total)
    return total

"""Post-training quantization with the user's own calibration loop: `PTQ`, as in Paddle and `torch.ao`."""

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
from onnxq.core.errors import ConfigError
from onnxq.core.goal import Goal
from onnxq.core.progress import Progress, silent
from onnxq.graph.files import load
from onnxq.pipelines.calibrate import Calibration
from onnxq.pipelines.result import QuantResult
from onnxq.torch.calls import Call, Example, bind, example_call, matching_tensors, to_numpy
from onnxq.torch.exporting import Exported, export
from onnxq.torch.float_check import CalibrationHook, check_float, has_modes
from onnxq.torch.module_patterns import Layers, Which


class PTQ:
    """Calibrates a module while the user runs it, and writes the quantized model.

    ::

        ptq = onnxq.torch.PTQ(QuantConfig(method="entropy", target="tensorrt"))
        model = ptq.prepare(model, example_inputs)
        for x, _ in loader:
            model(x)
        ptq.convert(model, "model-int8.onnx")

    `prepare` exports the module once. From then on, each call of the module also runs the exported model in
    ONNX Runtime, on the CPU and on the same inputs, and gathers statistics of its tensors. So the statistics
    come from the graph that is quantized, including functional operators, and cost one more run. The module
    itself still computes the same on its own device; nothing in it is replaced or fused.

    Attributes:
        config: the options for all layers.
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
            config: the options for all layers; None: the defaults.
            skip: layers to keep in float, by name, glob of names, or type, besides those marked with
                `onnxq.torch.skip_quant`.
            layers: other options for some layers, as in `QuantConfig.override`:
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
        """Export ``model`` and start to observe its calls.

        Args:
            model: a module in eval mode, on any device.
            example_inputs: as for `onnxq.torch.export`.
            inplace: observe the calls of ``model`` itself; otherwise those of a copy.
            dynamic_shapes: the axes that may vary, as for `onnxq.torch.export`; None: the batch.

        Returns:
            The module to call with the calibration data; it computes the same as ``model``.

        Raises:
            ModelError: the module cannot be exported, or has nothing to quantize.
            ConfigError: it is in training mode, was prepared already, or has no layer that the options name.
            TargetError: the target does not take the requested number formats.
        """
        if model in self._prepared:
            raise ConfigError("the model was prepared already: call it with data, then convert it")
        check_float(model)
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
        """Write the quantized model. Afterwards, ``model`` can be called with more data and converted again.

        Args:
            model: the module that `prepare` returned.
            output: path of the ONNX file to write.
            progress: called with the progress of the work.
            goal: the accuracy that the model must reach, as for `onnxq.quantize_static`.

        Raises:
            ConfigError: `prepare` did not return this model, or its weights have changed since.
            OnnxqError: as `onnxq.quantize_static`; ``output`` is then left unchanged.
        """
        return self._of(model).convert(model, output, progress, goal)

    def release(self, model: torch.nn.Module) -> torch.nn.Module:
        """Stop observing ``model``, which is then as it was before `prepare`.

        Raises:
            ConfigError: `prepare` did not return this model.
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
    """An observed module: its exported model and the calibration so far."""

    def __init__(
        self, module: torch.nn.Module, example: Example, config: QuantConfig, layers: Layers, shapes: Any
    ) -> None:
        """Export the module, plan its quantization, and start to observe its calls."""
        self._folder = TemporaryDirectory(prefix="onnxq-", ignore_cleanup_errors=True)
        self._remove_folder = weakref.finalize(self, self._folder.cleanup)
        path = Path(self._folder.name) / f"{type(module).__name__}.onnx"
        exported = export(module, example, path, dynamic_shapes=shapes)
        self._calibration = Calibration(path, layers.added_to(config, module, load(path)))
        self._weights = checksum(module)
        observer = _Observer(exported, self._calibration, example_call(module, example))
        self._hook = module.register_forward_pre_hook(observer, with_kwargs=True)

    def convert(
        self,
        module: torch.nn.Module,
        output: str | os.PathLike[str],
        progress: Progress,
        goal: Goal | None,
    ) -> QuantResult:
        """Write the quantized model, if the module's weights have not changed.

        Args:
            module: the module that was prepared.
            output: path of the quantized model.
            progress: called with the progress of the work.
            goal: the accuracy to reach; None: no goal.

        Raises:
            ConfigError: the weights or buffers have changed.
        """
        if checksum(module) != self._weights:
            raise ConfigError(
                f"the weights or buffers of this {type(module).__name__} have changed since prepare(), so "
                "the exported and calibrated model is another one. Prepare it again, in eval mode."
            )
        result = self._calibration.convert(output, progress, goal)
        _ = result.table  # reads the exported model now, because it is deleted with this object
        return result

    def close(self) -> None:
        """Stop observing, and delete the exported model."""
        self._hook.remove()
        self._calibration.close()
        self._remove_folder()


class _Observer(CalibrationHook):
    """A hook that runs the exported model before each call of a module, on the same inputs."""

    def __init__(self, exported: Exported, calibration: Calibration, example: Call) -> None:
        self._exported = exported
        self._calibration = calibration
        self._example = example

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the exported model on the same inputs."""
        check_eval(module)
        tensors = matching_tensors(module.forward, self._example, bind(module.forward, args, kwargs))
        pairs = zip(self._exported.inputs, tensors, strict=True)
        self._calibration.observe({name: to_numpy(tensor, name) for name, tensor in pairs})

    def __deepcopy__(self, memo: dict[int, Any]) -> _Observer:
        """Return the same observer, so copies of the module add to the same statistics."""
        return self


def check_eval(module: torch.nn.Module) -> None:
    """Refuse a module in training mode, which does not compute as it will after deployment.

    Raises:
        ConfigError: the module or a part of it is in training mode.
    """
    training = [name for name, part in module.named_modules() if part.training]
    if training and has_modes(module):
        where = f"its part {training[0]!r}" if training[0] else "it"
        raise ConfigError(
            f"{type(module).__name__} cannot be calibrated, {where} is in training mode: call eval() first"
        )


def checksum(module: torch.nn.Module) -> int:
    """Compute the CRC-32 of all parameters and buffers in the module's ``state_dict()``."""
    total = 0
    for name, tensor in module.state_dict().items():
        total = zlib.crc32(name.encode(), total)
        if isinstance(tensor, torch.Tensor):
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            total = zlib.crc32(data.data, total)
    return total

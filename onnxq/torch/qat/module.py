"""Make the user's module run with fake quantization.

The module stays an instance of its class and keeps the names of its parameters, buffers and submodules. So
optimizers, schedulers, checkpoints, hooks, ``train()``, ``eval()`` and its own methods work as usual. Only
``forward`` is different: it runs the trace. The only new child is `FAKE_QUANTIZERS`.
"""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, SupportsIndex

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ModelError
from onnxq.core.plan import QuantParams
from onnxq.torch.calls import Call, bind, matching_tensors
from onnxq.torch.qat.capture import Captured
from onnxq.torch.qat.fake_quantize import FakeQuantize
from onnxq.torch.qat.placement import Layout

logger = logging.getLogger(__name__)

FAKE_QUANTIZERS = "fake_quantizers"
"""The name of the child that holds the fake quantizers."""

_RECIPE = "_onnxq_recipe"
_WRAPPERS = ("module", "_orig_mod")
"""The attribute in which wrappers keep a module: DistributedDataParallel and AveragedModel, torch.compile."""

_MODES = ("training", "train")
"""The names of the argument that tells operators whether they are in training."""


@dataclass(frozen=True)
class Recipe:
    """The data of a prepared module that its conversion needs. Copies of the module share it.

    Attributes:
        run: the function that ``forward`` calls with the module and its arguments.
        captured: the exported float model.
        config: the options.
        params: the parameters of every group, from calibration.
        quantizers: group -> the name of its fake quantizer, and the layout of its matrix.
        call: the example inputs.
        types: the types of parameters and buffers, by name.
    """

    run: Callable[..., Any]
    captured: Captured
    config: QuantConfig
    params: Mapping[str, QuantParams]
    quantizers: Mapping[str, tuple[str, Layout]]
    call: Call
    types: Mapping[str, torch.dtype]

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe:
        return self


_FOREIGN = ("torch.ao.quantization", "torch.quantization", "torchao.quantization")
"""Packages whose functions know nothing of these fake quantizers."""

_REMEDIES: Mapping[str, str] = {
    "disable_fake_quant": "for outputs in float, call the module that prepare_qat() was given",
    "disable_observer": "call onnxq.torch.freeze_ranges(module)",
    "enable_observer": "call onnxq.torch.freeze_ranges(module, False)",
    "freeze_bn_stats": "call onnxq.torch.freeze_batch_norms(module)",
}
"""Function of PyTorch -> what to do instead."""


class FakeQuantizers(nn.ModuleDict):
    """The fake quantizers of a module by name. Checkpoints also hold what is frozen.

    PyTorch's own functions for such modules find nothing that they know here, and would silently do nothing:
    ``module.apply(disable_fake_quant)`` passes by in `apply`, ``convert(module)`` looks for ``qconfig``.

    Attributes:
        frozen_ranges: whether the ranges of activations are frozen.
        frozen_norms: whether the statistics of batch normalizations are frozen.
    """

    frozen_ranges = False
    frozen_norms = False

    def freeze_ranges(self, frozen: bool) -> None:
        """Freeze the ranges of activations, or let them change again."""
        self.frozen_ranges = frozen
        for child in self.values():
            if isinstance(child, FakeQuantize) and not child.constant:
                child.observing = not frozen and not child.fixed

    def apply(self, fn: Callable[[nn.Module], None]) -> FakeQuantizers:
        """Apply ``fn`` as usual; warn if it is one of PyTorch's that has no effect here."""
        home, name = getattr(fn, "__module__", None) or "", getattr(fn, "__name__", "")
        if home.startswith(_FOREIGN):
            logger.warning(
                "%s.%s has no effect on a module of prepare_qat(): %s",
                *(home, name, _REMEDIES.get(name, "see onnxq.torch.freeze_ranges and freeze_batch_norms")),
            )
        super().apply(fn)
        return self

    def __getattr__(self, name: str) -> Any:
        """Get an attribute as usual; warn of ``qconfig``, which only prepare() and convert() ask for."""
        if name == "qconfig":
            logger.warning(
                "prepare() and convert() of torch.ao.quantization have no effect on a module of "
                "prepare_qat(), which is quantized for its target already: write it with "
                "onnxq.torch.convert_qat(module, path)"
            )
        return super().__getattr__(name)

    def get_extra_state(self) -> Tensor:
        """The frozen state for `state_dict`, as a tensor like all its values."""
        return torch.tensor([self.frozen_ranges, self.frozen_norms])

    def set_extra_state(self, state: Tensor) -> None:
        """Take the frozen state from `load_state_dict`."""
        ranges, self.frozen_norms = map(bool, state.tolist())
        self.freeze_ranges(ranges)


class QatModule(nn.Module):
    """The base class that a prepared module's class has before the user's class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the trace with fake quantization.

        Raises:
            ConfigError: the user's ``forward`` does not take these arguments.
            CalibrationError: they differ from the example inputs in more than the values of tensors, or in
                a batch size that is a constant of the trace.
        """
        recipe, forward = recipe_of(self), super().forward
        given = bind(forward, args, kwargs)
        call = recipe.call.with_tensors(matching_tensors(forward, recipe.call, given))
        fixed = recipe.captured.fixed_batch
        if fixed not in (None, call.batch):
            raise CalibrationError(
                f"{type(self).__name__} was traced for batches of {fixed} only, as prepare_qat warned, and "
                f"got one of {call.batch}: leave it out (drop_last=True), or prepare with that size"
            )
        return recipe.run(self, *call.args, **call.kwargs)

    def train(self, mode: bool = True) -> QatModule:
        """Set the mode as usual, but keep frozen batch normalizations in eval mode."""
        super().train(mode)
        if _quantizers(self).frozen_norms:
            _freeze(self)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> QatModule:
        """Copy like any module, without `__reduce_ex__`, which refuses because it is for pickling."""
        users = getattr(super(), "__deepcopy__", None)
        if users is not None:
            return users(memo)  # type: ignore[no-any-return]
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))  # type: ignore[no-untyped-call]
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to pickle: the class and the trace are made at run time and could not be loaded again."""
        raise pickle.PicklingError(
            f"a prepared {type(self).__name__} cannot be pickled: save its state_dict(), and load that into "
            "a module that prepare_qat() made in the same way"
        )


def assemble(
    module: nn.Module,
    trace: fx.GraphModule,
    quantizers: FakeQuantizers,
    recipe: Mapping[str, Any],
) -> nn.Module:
    """Make ``module`` run ``trace`` in its ``forward``.

    Args:
        module: the user's module, which is changed.
        trace: a graph that reads parameters and submodules of ``module`` by name and calls ``quantizers``.
        quantizers: the fake quantizers.
        recipe: the fields of `Recipe` except ``run``.

    Raises:
        ModelError: the module already has an attribute named `FAKE_QUANTIZERS`.
    """
    if hasattr(module, FAKE_QUANTIZERS):
        raise ModelError(f"{type(module).__name__} already has an attribute {FAKE_QUANTIZERS!r}: rename it")
    module.add_module(FAKE_QUANTIZERS, quantizers)
    _adopt_constants(module, trace)
    _obey_modes(trace.graph, module)
    compiled = fx.GraphModule(module, trace.graph)
    specs = {name: getattr(compiled, name) for name in ("_in_spec", "_out_spec")}
    user = type(module)
    module.__class__ = type(user.__name__, (QatModule, user), {"__module__": user.__module__, **specs})
    setattr(module, _RECIPE, Recipe(run=type(compiled).forward, **recipe))
    return module


def recipe_of(module: nn.Module) -> Recipe:
    """Get the recipe of a prepared module.

    Raises:
        ModelError: the module was not prepared.
    """
    recipe = vars(module).get(_RECIPE)
    if not isinstance(recipe, Recipe):
        raise ModelError(f"{type(module).__name__} was not prepared: give the result of prepare_qat()")
    return recipe


def prepared(module: nn.Module) -> nn.Module:
    """Get the prepared module itself, if ``module`` wraps it as DistributedDataParallel does.

    Raises:
        ModelError: the module was not prepared.
    """
    while not isinstance(module, QatModule) and (inner := _wrapped(module)) is not None:
        module = inner
    recipe_of(module)
    return module


def _wrapped(module: nn.Module) -> nn.Module | None:
    children = dict(module.named_children())
    return next((children[name] for name in _WRAPPERS if name in children), None)


def freeze_ranges(module: nn.Module, frozen: bool = True) -> None:
    """Freeze the ranges of activations, or let them change again; learned scales and weights still change."""
    _quantizers(prepared(module)).freeze_ranges(frozen)


def freeze_batch_norms(module: nn.Module, frozen: bool = True) -> None:
    """Freeze the statistics of batch normalizations, also in ``train()`` mode, or let them change again."""
    inner = prepared(module)
    _quantizers(inner).frozen_norms = frozen
    inner.train(inner.training)


def _quantizers(module: nn.Module) -> FakeQuantizers:
    child = module.get_submodule(FAKE_QUANTIZERS)
    assert isinstance(child, FakeQuantizers)
    return child


def _freeze(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.eval()


def _adopt_constants(module: nn.Module, trace: fx.GraphModule) -> None:
    """Register constants that tracing found in the code as buffers that checkpoints do not hold."""
    for node in trace.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if not _has(module, name):
            node.target = f"_onnxq_{name.replace('.', '_')}"
            module.register_buffer(node.target, _get(trace, name).detach().clone(), persistent=False)


def _obey_modes(graph: fx.Graph, module: nn.Module) -> None:
    """Let dropout, batch normalization and the like take the mode of the module that they came from."""
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        for index, declared in enumerate(schema.arguments if schema else ()):
            if declared.name in _MODES and index < len(node.args):
                with graph.inserting_before(node):
                    node.update_arg(index, graph.get_attr(_owner_mode(node, module)))


def _owner_mode(node: fx.Node, module: nn.Module) -> str:
    """The path of the mode attribute of the innermost module that ``node`` came from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = stack[-1][0] if stack else ""
    return f"{name}.training" if name and _has(module, name) else "training"


def _get(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _has(module: nn.Module, path: str) -> bool:
    try:
        _get(module, path)
    except AttributeError:
        return False
    return True

"""The user's module, trained through fake quantization.

It stays an instance of its own class, with its parameters, buffers and submodules under their names, so that
optimizers, schedulers, checkpoints, hooks, ``train()``, ``eval()`` and its own methods work as ever; only
``forward`` runs the trace, and `FAKE_QUANTIZERS` is new among its children.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, SupportsIndex

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.core.plan import QuantParams
from onnxq.torch.calls import Call
from onnxq.torch.qat.capture import Captured
from onnxq.torch.qat.fake_quantize import FakeQuantize

FAKE_QUANTIZERS = "fake_quantizers"
"""The child that holds them, by group."""

_RECIPE = "_onnxq_recipe"
_WRAPPERS = ("module", "_orig_mod")
"""Where those who wrap a module keep it: DistributedDataParallel and AveragedModel, torch.compile."""

_MODES = ("training", "train")
"""What operators that work otherwise in training call the argument that says so."""


@dataclass(frozen=True)
class Recipe:
    """How the module was prepared, and is to be converted. Copies of a module share it.

    Attributes:
        run: what ``forward`` does, given the module and its arguments.
        captured: the float model that was exported.
        config: the options.
        params: of every group, from calibration.
        quantizers: group -> the name of its fake quantizer, and whether its matrix is transposed in ONNX.
        call: the example inputs.
        types: of parameters and buffers, by name.
    """

    run: Callable[..., Any]
    captured: Captured
    config: QuantConfig
    params: Mapping[str, QuantParams]
    quantizers: Mapping[str, tuple[str, bool]]
    call: Call
    types: Mapping[str, torch.dtype]

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe:
        return self


class FakeQuantizers(nn.ModuleDict):
    """They, by name. What is frozen stands in checkpoints too: training goes on as it was left.

    Attributes:
        frozen_ranges: whether the ranges of activations stay as they are.
        frozen_norms: whether the statistics of batch normalizations do.
    """

    frozen_ranges = False
    frozen_norms = False

    def freeze_ranges(self, frozen: bool) -> None:
        """Or let them go on."""
        self.frozen_ranges = frozen
        for child in self.values():
            if isinstance(child, FakeQuantize) and not child.constant:
                child.observing = not frozen and not child.fixed

    def get_extra_state(self) -> Tensor:
        """For `state_dict`, all of whose values are tensors."""
        return torch.tensor([self.frozen_ranges, self.frozen_norms])

    def set_extra_state(self, state: Tensor) -> None:
        """From `load_state_dict`."""
        ranges, self.frozen_norms = map(bool, state.tolist())
        self.freeze_ranges(ranges)


class QatModule(nn.Module):
    """What the class of a prepared module has before those of the user's class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The trace, with fake quantization."""
        return recipe_of(self).run(self, *args, **kwargs)

    def train(self, mode: bool = True) -> QatModule:
        """As ever, but norms that are frozen stay so."""
        super().train(mode)
        if _quantizers(self).frozen_norms:
            _freeze(self)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> QatModule:
        """As any module's: `__reduce_ex__`, which copies use too, is for pickling only."""
        users = getattr(super(), "__deepcopy__", None)
        if users is not None:
            return users(memo)  # type: ignore[no-any-return]
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))  # type: ignore[no-untyped-call]
        return twin

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Its class and its trace were made at run time, and nobody could load them again."""
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
    """Let ``module`` run ``trace``.

    Args:
        module: is changed.
        trace: reads parameters and submodules of ``module`` by their names, and calls ``quantizers``.
        quantizers: by name.
        recipe: the fields of `Recipe` but ``run``.

    Raises:
        ModelError: the module has a child of our name already.
    """
    if hasattr(module, FAKE_QUANTIZERS):
        raise ModelError(f"{type(module).__name__} has an attribute {FAKE_QUANTIZERS!r} already: rename it")
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
    """How ``module`` was prepared.

    Raises:
        ModelError: it was not.
    """
    recipe = vars(module).get(_RECIPE)
    if not isinstance(recipe, Recipe):
        raise ModelError(f"{type(module).__name__} was not prepared: give what prepare_qat() returned")
    return recipe


def prepared(module: nn.Module) -> nn.Module:
    """``module``, or the prepared one that it wraps, as DistributedDataParallel does."""
    while not isinstance(module, QatModule) and (inner := _wrapped(module)) is not None:
        module = inner
    recipe_of(module)
    return module


def _wrapped(module: nn.Module) -> nn.Module | None:
    children = dict(module.named_children())
    return next((children[name] for name in _WRAPPERS if name in children), None)


def freeze_ranges(module: nn.Module, frozen: bool = True) -> None:
    """Keep the ranges of activations as they are from now on; learned scales and weights still change."""
    _quantizers(prepared(module)).freeze_ranges(frozen)


def freeze_batch_norms(module: nn.Module, frozen: bool = True) -> None:
    """Keep the statistics of batch normalizations from now on, also through ``train()``."""
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
    """Constants that tracing found in the code get a buffer, which no checkpoint holds."""
    for node in trace.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if not _has(module, name):
            node.target = f"_onnxq_{name.replace('.', '_')}"
            module.register_buffer(node.target, _get(trace, name).detach().clone(), persistent=False)


def _obey_modes(graph: fx.Graph, module: nn.Module) -> None:
    """Dropout, batch normalization and the like ask the module that they came from for its mode."""
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        for index, declared in enumerate(schema.arguments if schema else ()):
            if declared.name in _MODES and index < len(node.args):
                with graph.inserting_before(node):
                    node.update_arg(index, graph.get_attr(_owner_mode(node, module)))


def _owner_mode(node: fx.Node, module: nn.Module) -> str:
    """Where to find the mode of the innermost module that ``node`` came from."""
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

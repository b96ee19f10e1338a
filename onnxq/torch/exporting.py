"""A PyTorch module -> an ONNX file that gives the same: `export`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from onnxq.errors import ConfigError, ModelError
from onnxq.model import check_place, write
from onnxq.torch.calls import Call, Example, example_call
from onnxq.torch.calls import output_names as names_in
from onnxq.torch.faithful import BATCH_SQNR, check_same, same
from onnxq.torch.naming import name_axes, name_interface, name_nodes
from onnxq.torch.norms import check_norms
from onnxq.torch.quiet import quiet

logger = logging.getLogger(__name__)

_MESSAGE = 400


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: the file.
        inputs: the names of the inputs, in the order of the module's tensors.
        outputs: the names of the outputs.
        dynamic: whether the model takes any batch size, or the sizes that were asked for.
        sqnr: of the ONNX model against the module, in dB, at each batch size that was tried; the worst
            output's.
    """

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: bool
    sqnr: Mapping[int, float]


def export(
    module: torch.nn.Module,
    example_inputs: Example,
    path: str | os.PathLike[str],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    opset: int | None = None,
) -> Exported:
    """Write ``module`` as float ONNX, checked against PyTorch; whole or not at all.

    The module is exported as it is in eval mode, and then left as it was. Parameters keep their names, inputs
    those of the arguments of ``forward``, outputs in a dictionary those of its keys; nodes are called after
    their modules (``layer1.0.conv2/Conv``).

    Args:
        module: any module that `torch.export` takes, on any device.
        example_inputs: what ``forward`` takes: a tensor, a tuple of arguments, or a dictionary by name.
        path: the file to write.
        input_names: other names for the inputs.
        output_names: other names for the outputs.
        dynamic_batch: let the first axis of the inputs have any size. Where it turns out not to count
            samples, the sizes of the example are kept, with a warning.
        dynamic_shapes: what may vary, as `torch.export.export` takes it, instead of the batch.
        opset: the ONNX opset; None: PyTorch's choice.

    Raises:
        ModelError: the module cannot be exported, its ONNX form gives other outputs, or the file cannot be
            written.
        ConfigError: names or example inputs do not suit the module.
    """
    check_place(path)
    call = example_call(module, example_inputs)
    with evaluating(module):
        task = _Task(module, call, opset)
        program, shapes, used = _captured(task, dynamic_batch, dynamic_shapes)
        model = task.translated(program)
        name_axes(model, shapes)
        inputs = list(input_names or _input_names(program))
        with quiet(), torch.no_grad():
            keys = names_in(module(*call.args, **call.kwargs))
        name_interface(model, inputs, list(output_names or _free(keys, inputs)))
        sizes = _sizes(call, used)
        found: dict[int, float] = {}
        write(model, path, validate=partial(check_same, module, inputs, sizes, found))
    return Exported(
        path=os.fspath(path),
        inputs=tuple(inputs),
        outputs=tuple(value.name or "" for value in model.graph.outputs),
        dynamic=used is not None,
        sqnr=found,
    )


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """In the ``with`` block the module is in eval mode; then every part of it is in its own mode again."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@dataclass(frozen=True)
class _Task:
    """A module, a call of it, and the opset it is to be exported at."""

    module: torch.nn.Module
    call: Call
    opset: int | None
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", type(self.module).__name__)

    def captured(self, shapes: Any, call: Call | None = None) -> torch.export.ExportedProgram:
        """The module as a graph."""
        call = call or self.call
        with quiet(), torch.no_grad():
            return torch.export.export(
                self.module, call.args, dict(call.kwargs), dynamic_shapes=shapes, strict=False
            )

    def translated(self, program: torch.export.ExportedProgram) -> ir.Model:
        """The graph as ONNX, nodes named after modules.

        Raises:
            ModelError: ONNX has no words for something in it.
        """
        try:
            with quiet(), torch.no_grad():
                made = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=self.opset)
        except Exception as error:
            raise ModelError(f"{self.kind} cannot be exported to ONNX: {_root(error)}") from error
        assert made is not None
        model: ir.Model = made.model
        name_nodes(model, {name for name, _ in self.module.named_modules(remove_duplicate=False)})
        return model


def _captured(
    task: _Task, dynamic_batch: bool, shapes: Any
) -> tuple[torch.export.ExportedProgram, Any, Call | None]:
    """The module as a graph, what varies in it, and a call of another batch size if it takes one."""
    check_norms(task.module)
    if shapes is not None or not dynamic_batch:
        return _captured_as(task, shapes), shapes, task.call if shapes is not None else None
    doubled = task.call.doubled()
    shapes = _batch_shapes(doubled)
    try:
        _check_batch(task, doubled)
        program = task.captured(shapes, doubled)
    except Exception as error:  # noqa: BLE001 - the sizes of the example are the way out
        program = _captured_as(task, None)
        logger.warning(
            "%s is exported for the sizes of its example inputs only, not for any batch size: %s",
            *(task.kind, _root(error)),
        )
        return program, None, None
    check_norms(task.module, program)
    return program, shapes, doubled


def _captured_as(task: _Task, shapes: Any) -> torch.export.ExportedProgram:
    """The module as a graph, with the sizes of the example but for ``shapes``.

    Raises:
        ModelError: PyTorch cannot capture it.
    """
    try:
        program = task.captured(shapes)
    except Exception as error:
        raise ModelError(
            f"{task.kind} cannot be exported: {_root(error)} What depends on the values of tensors (if, "
            "while, .item()) has to be written with torch.where or torch.cond."
        ) from error
    check_norms(task.module, program)
    return program


def _check_batch(task: _Task, doubled: Call) -> None:
    """Whether the first axis counts samples: then each of them gives the same again in a larger batch.

    Raises:
        ConfigError: it does not.
    """
    with quiet():
        small, large = task.call.outputs(task.module), doubled.outputs(task.module)
    for index, (one, two) in enumerate(zip(small, large, strict=True)):
        twice = torch.cat([one, one]) if one.ndim else one
        if not same(two, twice, BATCH_SQNR) and not same(two, one, BATCH_SQNR):
            raise ConfigError(
                f"with every sample given twice, output {index} is not what it was, twice: the first axis "
                "does not count samples. Say what may vary with dynamic_shapes."
            )


def _batch_shapes(call: Call) -> Any:
    """For `torch.export`: the first axis of every batched input varies."""
    batch = torch.export.Dim("batch")
    args, kwargs = pytree.tree_map(
        lambda leaf: {0: batch} if call.is_batched(leaf) else None, (call.args, dict(call.kwargs))
    )
    return (*args, *kwargs.values())


def _input_names(program: torch.export.ExportedProgram) -> list[str]:
    """The names of the tensors that the graph takes."""
    signature = program.graph_signature
    kinds = {spec.arg.name: spec for spec in signature.input_specs}
    return [
        name
        for name in signature.user_inputs
        if isinstance(name, str) and isinstance(kinds[name].arg, torch.export.graph_signature.TensorArgument)
    ]


def _free(names: Sequence[str | None], taken: Sequence[str]) -> list[str | None]:
    """``names``, with another one in place of each that an input has."""
    return [f"{name}_out" if name in taken else name for name in names]


def _sizes(call: Call, larger: Call | None) -> dict[int, Call]:
    """The calls to check, by batch size."""
    calls = (call,) if larger is None or larger is call else (call.first(), call, larger)
    return {one.batch or 0: one for one in calls}


def _root(error: BaseException) -> str:
    """What lies behind an error, on one line: PyTorch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
    text = text if len(text) <= _MESSAGE else text[: _MESSAGE - 1] + "…"
    return text if text.endswith((".", "…")) else f"{text}."

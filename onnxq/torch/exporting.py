"""Export a PyTorch module to an ONNX file that computes the same: `export`."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from calibrators.held_noise import noisy_outputs
from onnxq.core.errors import ConfigError, ModelError
from onnxq.graph.files import check_place, write_validated
from onnxq.graph.nodes import name_of
from onnxq.torch.calls import Call, Example, example_call
from onnxq.torch.calls import output_names as names_in
from onnxq.torch.faithful import BATCH_SQNR, check_norms, check_same, same
from onnxq.torch.float_check import check_float, has_modes
from onnxq.torch.lengths import Sequences, find_sequences, with_free_length
from onnxq.torch.naming import name_axes, name_interface, name_nodes
from onnxq.torch.tracing import Traced, quiet, root, tensor_inputs, trace, trace_free

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Attributes:
        path: the file.
        inputs: the names of the inputs, in the order of the module's tensors.
        outputs: the names of the outputs.
        dynamic: whether the model takes any batch size, or the sizes requested with ``dynamic_shapes``.
        sqnr: batch size -> SQNR of the ONNX model against the module in dB, worst output, for each batch
            size that was checked.
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
    """Write ``module`` as a float ONNX model and check it against PyTorch; errors leave ``path`` unchanged.

    The module is exported in eval mode, and its modes are restored afterwards. Parameters keep their names.
    Inputs have the names of the arguments of ``forward``, outputs in a dictionary those of its keys. Nodes
    are named after their modules (``layer1.0.conv2/Conv``).

    Args:
        module: any module that `torch.export` takes, on any device.
        example_inputs: the arguments of ``forward``: a tensor, a tuple, or a dictionary by name.
        path: the file to write.
        input_names: other names for the inputs.
        output_names: other names for the outputs.
        dynamic_batch: let the first axis of the inputs have any size. If it turns out not to count samples,
            the sizes of the example are kept, with a warning. The length of sequences (axis 1) that LSTM and
            GRU read is free too where the model computes the same at other lengths, else a warning tells.
        dynamic_shapes: the axes that may vary, as for `torch.export.export`, instead of the batch.
        opset: the ONNX opset; None: PyTorch's choice.

    Raises:
        ModelError: the module is not float or cannot be exported, its ONNX form gives other outputs, or the
            file cannot be written.
        ConfigError: names or example inputs do not suit the module.
    """
    check_place(path)
    check_float(module)
    call = example_call(module, example_inputs)
    with evaluating(module):
        task = _Task(module, call, opset)
        traced = _traced(task, dynamic_batch, dynamic_shapes)
        model = task.translated(traced.program)
        name_axes(model, traced.shapes)
        inputs = list(input_names or tensor_inputs(traced.program))
        with quiet(), torch.no_grad():
            keys = names_in(module(*call.args, **call.kwargs))
        name_interface(model, inputs, list(output_names or _free(keys, inputs)))
        sizes = _sizes(call, traced.other)
        check = partial(check_same, module, inputs, sizes, noisy_outputs(model))
        sequences = None if traced.reason or dynamic_shapes is not None else find_sequences(module, call)
        found = None if sequences is None else _written_free(task, model, sequences, (path, check))
        if found is None:
            found = write_validated(model, path, check)
    return Exported(
        path=os.fspath(path),
        inputs=tuple(inputs),
        outputs=tuple(name_of(value) for value in model.graph.outputs),
        dynamic=traced.other is not None,
        sqnr=found,
    )


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put the module in eval mode for the ``with`` block, then restore the mode of each of its parts."""
    modes = {part: part.training for part in module.modules()}
    if has_modes(module):
        module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@dataclass(frozen=True)
class _Task:
    """An export to do: a module, a call of it, and the opset."""

    module: torch.nn.Module
    call: Call
    opset: int | None
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", type(self.module).__name__)

    def translated(self, program: torch.export.ExportedProgram) -> ir.Model:
        """Translate the graph to ONNX, with nodes named after modules.

        Raises:
            ModelError: something in it cannot be expressed in ONNX.
        """
        try:
            with quiet(), torch.no_grad():
                made = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=self.opset)
        except Exception as error:
            raise ModelError(f"{self.kind} cannot be exported to ONNX: {root(error)}") from error
        assert made is not None
        model: ir.Model = made.model
        name_nodes(model, {name for name, _ in self.module.named_modules(remove_duplicate=False)})
        return model


def _traced(task: _Task, dynamic_batch: bool, shapes: Any) -> Traced:
    """Trace the module, with ``shapes``, or with a free batch size if the module allows one."""
    check_norms(task.module)
    if shapes is not None or not dynamic_batch:
        program = trace(task.module, task.call, shapes)
        traced = Traced(program, shapes, None if shapes is None else task.call)
    else:
        check = partial(_check_batch, task)
        traced = trace_free(task.module, task.call, torch.export.Dim("batch"), check)
    if traced.reason:
        logger.warning(
            "%s is exported for the sizes of its example inputs only, not for any batch size: %s",
            *(task.kind, traced.reason),
        )
    check_norms(task.module, traced.program)
    return traced


def _written_free(
    task: _Task,
    model: ir.Model,
    sequences: Sequences,
    target: tuple[str | os.PathLike[str], Callable[[Path], dict[int, float]]],
) -> dict[int, float] | None:
    """Write the model for sequences of any length, if it computes the same as the module at other lengths.

    Args:
        task: the export.
        model: the model for the length of the example.
        sequences: the inputs that hold sequences.
        target: the file to write, and the check of a written model at the length of the example.

    Returns:
        what the check gave; None, with a warning, if nothing is written.
    """
    path, check = target
    freed = with_free_length(model, task.module, sequences)

    def check_lengths(draft: Path) -> dict[int, float]:
        names = [name_of(value) for value in model.graph.inputs]
        for length, call in sequences.others.items():
            check_same(task.module, names, {length: call}, (), draft)
        return check(draft)

    if freed is not None:
        with contextlib.suppress(ModelError, RuntimeError, ValueError, IndexError):
            return write_validated(freed, path, check_lengths)
    logger.warning(
        "%s is exported for sequences of the length of its example inputs only (%s): give the axes that "
        "may vary with dynamic_shapes; PyTorch itself fixes the length of nn.RNN, and of what is computed "
        "from the length",
        *(task.kind, sequences.shapes),
    )
    return None


def _check_batch(task: _Task, doubled: Call) -> None:
    """Check that the first axis counts samples: each sample must give the same output in a larger batch.

    Raises:
        ConfigError: it does not.
    """
    with quiet():
        small, large = task.call.outputs(task.module), doubled.outputs(task.module)
    for index, (one, two) in enumerate(zip(small, large, strict=True)):
        twice = torch.cat([one, one]) if one.ndim else one
        if not same(two, twice, BATCH_SQNR) and not same(two, one, BATCH_SQNR):
            raise ConfigError(
                f"with every sample given twice, output {index} is not repeated: the first axis does not "
                "count samples. Give the axes that may vary with dynamic_shapes."
            )


def _free(names: Sequence[str | None], taken: Sequence[str]) -> list[str | None]:
    """Rename each of ``names`` that an input has already."""
    return [f"{name}_out" if name in taken else name for name in names]


def _sizes(call: Call, larger: Call | None) -> dict[int, Call]:
    """The calls to check, by batch size."""
    calls = (call,) if larger is None or larger is call else (call.first(), call, larger)
    return {one.batch or 0: one for one in calls}

"""Free the length of sequences that PyTorch's tracing fixes, where the graph does not depend on it.

Tracing LSTM and GRU makes their number of steps a constant, although their ONNX operators take any number.
The graph then holds the length in the declared shapes only. Nothing tells that but a run, so the shapes are
freed, and the caller compares the model with the module at other lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir
import torch

from onnxq.graph.passes.shapes import InferShapesPass
from onnxq.torch.calls import Call
from onnxq.torch.tracing import quiet

AXIS = 1
"""The axis that counts steps, after that of the samples."""

NAME = "length"
"""The name that it gets in the model."""

LONGER = 3
"""How many steps more than the example the longer check has."""

_STEPS = 3
"""The number of axes of what recurrent layers read: samples, steps, features."""


@dataclass(frozen=True)
class Sequences:
    """The inputs of a call that hold sequences, all of them of one length.

    Attributes:
        call: the call.
        places: the positions of these inputs among its tensors.
        recurrent: whether a recurrent layer may read them.
    """

    call: Call
    places: tuple[int, ...]
    recurrent: bool

    @property
    def shapes(self) -> str:
        """The shapes of the inputs, in words."""
        return ", ".join("x".join(map(str, self.call.tensors[place].shape)) for place in self.places)

    @cached_property
    def others(self) -> dict[int, Call]:
        """Calls with other lengths, a longer and a shorter one, by length."""
        length = self.call.tensors[self.places[0]].shape[AXIS]
        return {other: self._of(other) for other in (length + LONGER, max(1, length // 2))}

    def _of(self, length: int) -> Call:
        tensors = list(self.call.tensors)
        for place in self.places:
            given = tensors[place]
            times = -(-length // given.shape[AXIS])
            tensors[place] = torch.cat([given] * times, AXIS).narrow(AXIS, 0, length)
        return self.call.with_tensors(tensors)


def find_sequences(module: torch.nn.Module, call: Call) -> Sequences | None:
    """Find the inputs whose axis after the batch counts steps of a sequence; None if there are none.

    These are whole numbers, such as tokens, and what recurrent layers may read.
    """
    recurrent = any(isinstance(part, torch.nn.RNNBase) for part in module.modules())
    places = tuple(
        place
        for place, tensor in enumerate(call.tensors)
        if call.is_batched(tensor)
        and (tensor.ndim == _STEPS if tensor.is_floating_point() and recurrent else _is_tokens(tensor))
    )
    return Sequences(call, places, recurrent) if places else None


def _is_tokens(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.int32, torch.int64) and tensor.ndim > 1


def with_free_length(model: ir.Model, module: torch.nn.Module, sequences: Sequences) -> ir.Model | None:
    """Copy ``model`` with the length free in its shapes; None if the module takes no other length.

    Whether the graph computes the same at other lengths is for the caller to check.

    Args:
        model: the exported model, its interface named.
        module: the module, in eval mode.
        sequences: its inputs that hold sequences.
    """
    lengths = {sequences.call.tensors[place].shape[AXIS] for place in sequences.places}
    if not sequences.recurrent or len(lengths) > 1:
        return None
    length = lengths.pop()
    longer = sequences.others[length + LONGER]
    try:
        with quiet():
            before, after = (call.outputs(module) for call in (sequences.call, longer))
    except (RuntimeError, ValueError, IndexError):
        return None
    copy = model.clone()
    outputs = set(copy.graph.outputs)
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            value.shape = value.shape if value in outputs else None
    for place in sequences.places:
        _free(copy.graph.inputs[place], {AXIS: NAME})
    for value, one, other in zip(copy.graph.outputs, before, after, strict=True):
        _free(value, _grown(one.shape, other.shape, length))
    InferShapesPass()(copy)
    return copy


def _grown(before: Sequence[int], after: Sequence[int], length: int) -> dict[int, str | None]:
    """The axes of an output that grow with the length, and their names: those of another size have none."""
    return {
        axis: NAME if one == length and other == length + LONGER else None
        for axis, (one, other) in enumerate(zip(before, after, strict=True))
        if one != other
    }


def _free(value: ir.Value, axes: dict[int, str | None]) -> None:
    if value.shape is not None and axes:
        value.shape = ir.Shape([axes.get(axis, dim) for axis, dim in enumerate(value.shape)])

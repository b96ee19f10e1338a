"""Model inputs and samples: the common types that every data source is converted to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.errors import CalibrationError

Array = NDArray[np.generic]
Dim = int | str | None


@dataclass(frozen=True)
class InputSpec:
    """A graph input. A dimension is a size, a symbol, or None if unknown.

    ``shape`` is None if not even the rank is known. ``is_cache``: it is a cache of keys or values.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[Dim, ...] | None
    is_cache: bool = False

    def __str__(self) -> str:
        kind = "string" if self.dtype.kind == "O" else self.dtype
        return f"'{self.name}' ({kind} {shape_text(self.shape)})"


@dataclass(frozen=True)
class Sample:
    """The inputs for one run of the model: one sample, or a batch of ``count`` samples.

    Attributes:
        name: its origin, for messages: ``pictures/cat.jpg``, ``inputs.npz[3]``.
        feeds: input name -> array, in the shape that the model takes.
        count: number of samples.
        joinable: whether axis 0 counts samples, so samples may be joined to batches and batches cut.
        members: the names of the samples, if several were joined.
        numbers: the samples' numbers in the stream of data; empty: they follow those of the last batch.
        labels: one label for each of the `count` samples; empty if some have none.
    """

    name: str
    feeds: Mapping[str, Array]
    count: int = 1
    joinable: bool = True
    members: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    labels: tuple[Any, ...] = field(default=(), compare=False)

    def name_of(self, index: int) -> str:
        """The name of one sample of a batch."""
        if self.members:
            return self.members[index]
        return self.name if self.count == 1 else f"{self.name}, sample {index}"


@dataclass(frozen=True)
class DataSource:
    """A stream of samples that keeps one in memory at a time; each iteration reads from the start.

    Attributes:
        read: starts a new pass over the samples.
        total: number of samples; None if it is known only after reading.
        read_part: starts a pass over the samples with these numbers, and reads no others; None: the samples
            have no numbers until they are read.
    """

    read: Callable[[], Iterator[Sample]] = field(repr=False)
    total: int | None = None
    read_part: Callable[[range], Iterator[Sample]] | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Sample]:
        return self.read()


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """List the inputs that a caller must feed, without initializers that are also listed as inputs.

    Raises:
        CalibrationError: an input is not a tensor.
    """
    graph = model.graph
    return tuple(_spec(value) for value in graph.inputs if value.name not in graph.initializers)


def _spec(value: ir.Value) -> InputSpec:
    if not isinstance(value.type, ir.TensorType):
        raise CalibrationError(
            f"input '{value.name}' is {value.type}: only tensors can be fed in calibration. Cut the model "
            "behind the nodes that turn it into tensors, for example with onnx.utils.extract_model"
        )
    dims = value.shape
    shape = None if dims is None else tuple(d if isinstance(d, int) else d.value for d in dims)
    return InputSpec(value.name or "", np.dtype(value.type.dtype.numpy()), shape)


def shape_text(shape: Sequence[Dim] | None) -> str:
    """Write a shape as ``[N, 3, ?, ?]``, or in words if not even the rank is known."""
    if shape is None:
        return "of unknown shape"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def describe(inputs: Sequence[InputSpec]) -> str:
    """Describe the inputs for a message: ``'x' (float32 [N, 3, 224, 224]), 'mask' (int64 [N, L])``."""
    return ", ".join(map(str, inputs)) or "nothing"


def batched(inputs: Sequence[InputSpec]) -> frozenset[str]:
    """Find the inputs whose axis 0 counts samples.

    These inputs are left out: inputs without axes; inputs that name another axis "batch"; and, if the first
    sizes of the inputs differ, inputs whose fixed first size is not the batch size.
    """
    able = [spec for spec in inputs if _may_be_batched(spec)]
    size = _batch_size(able)
    return frozenset(s.name for s in able if s.shape is None or s.shape[0] == size or not _is_fixed(s))


def is_whole(shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[InputSpec]) -> bool:
    """Whether arrays of these shapes are together exactly one input of a model that fixes its first axis.

    That axis may be a batch, or the colours of a single picture. Whole, the arrays are right for both.

    Args:
        shapes: input name -> shape of its array.
        inputs: the inputs of the model.
    """
    size = fixed_batch(inputs)
    names = batched(inputs)
    return size not in (None, 1) and all(
        spec.shape is not None
        and len(shapes[spec.name]) == len(spec.shape)
        and all(
            not isinstance(dim, int) or dim == n for dim, n in zip(spec.shape, shapes[spec.name], strict=True)
        )
        for spec in inputs
        if spec.name in names
    )


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """The batch size that the model fixes; None if it takes any."""
    names = batched(inputs)
    return _batch_size([spec for spec in inputs if spec.name in names])


def _may_be_batched(spec: InputSpec) -> bool:
    if spec.shape is None:
        return True
    named = ["batch" in dim.lower() if isinstance(dim, str) else False for dim in spec.shape]
    return bool(spec.shape) and (named[0] or not any(named))


def _is_fixed(spec: InputSpec) -> bool:
    return spec.shape is not None and isinstance(spec.shape[0], int)


def _batch_size(inputs: Sequence[InputSpec]) -> int | None:
    """The first fixed size of axis 0; if other inputs take any size, only 1 counts as a fixed batch size."""
    firsts = [spec.shape[0] for spec in inputs if spec.shape]
    sizes = [size for size in firsts if isinstance(size, int) and size > 0]
    if len(sizes) < len(inputs):
        return 1 if 1 in sizes else None
    return sizes[0] if sizes else None

"""Read samples from ``.npz`` and ``.npy`` files row by row, so memory does not grow with the file.

An array may have the rank of its input: its axis 0 counts samples, and a sample keeps that axis with size 1.
An array with one axis more holds one whole input per row. An array with one axis less is a single sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

from calibrators.data.fit import check_type, fit_sample, fits_shape, misfit
from calibrators.data.npfile import Header, Rows, check_sums, read_headers, read_whole
from calibrators.data.samples import Array, InputSpec, Sample, batched, describe, is_whole
from calibrators.errors import CalibrationError

SUFFIXES = frozenset({".npz", ".npy"})

Row: TypeAlias = Callable[[int], Array]
"""Reads the array that one input gets for sample ``i``."""


class Axis(Enum):
    """The meaning of axis 0 of a stored array."""

    BATCH = "the batch axis of the input"
    STACK = "an axis before those of the input"
    MISSING = "the axis after the batch axis, which is left out"
    OWN = "the input's own first axis, which does not count samples"


@dataclass(frozen=True)
class ArrayFile:
    """One file whose headers were checked against the inputs.

    Attributes:
        path: the file.
        inputs: the inputs of the model.
        headers: array name -> header.
        keys: input name -> (name of the array in the file, meaning of its axis 0).
        count: number of samples in the file.
        joinable: whether samples may be joined to batches.
        labels: the name of the array that holds one label a sample; None: none does.
    """

    path: Path
    inputs: tuple[InputSpec, ...]
    headers: Mapping[str, Header]
    keys: Mapping[str, tuple[str, Axis]]
    count: int
    joinable: bool
    labels: str | None = None

    @property
    def ignored(self) -> list[str]:
        """The names of arrays that do not belong to an input of the model."""
        used = {self.labels, *(key for key, _ in self.keys.values())}
        return [key for key in self.headers if key not in used]

    def loads(self) -> Iterator[Callable[[], Sample]]:
        """Give one loader per sample; a loader raises CalibrationError if its sample is damaged or unfit.

        Call each loader before taking the next one.
        """
        with ExitStack() as stack:
            opened = cache(partial(self._open, stack))
            yield from (partial(self._sample, opened, i) for i in range(self.count))

    def labelled(self, key: str) -> ArrayFile:
        """Return the file with the array ``key`` as its labels.

        Raises:
            CalibrationError: it does not hold one label a sample.
        """
        shape = self.headers[key].shape
        if self.count != (shape[0] if shape else 1) and self.count != 1:
            raise CalibrationError(
                f"{self.path}: the labels '{key}' have shape {list(shape)}, for {self.count} samples: their "
                "first axis counts samples"
            )
        return replace(self, labels=key)

    def _open(self, stack: ExitStack) -> dict[str, Row]:
        return {name: self._row(stack, key, axis) for name, (key, axis) in self.keys.items()}

    def _sample(self, opened: Callable[[], dict[str, Row]], index: int) -> Sample:
        feeds = {name: row(index) for name, row in opened().items()}
        name = str(self.path) if self.count == 1 else f"{self.path}[{index}]"
        labels = () if self.labels is None else (self._labels[index],)
        return fit_sample(Sample(name, feeds, 1, self.joinable, labels=labels), self.inputs)

    @cached_property
    def _labels(self) -> Sequence[Any]:
        assert self.labels is not None
        labels = read_whole(self.path, self.labels)
        return [labels] if self.count == 1 and labels.shape[:1] != (1,) else list(labels)

    def _row(self, stack: ExitStack, key: str, axis: Axis) -> Row:
        header = self.headers[key]
        if axis in (Axis.MISSING, Axis.OWN):
            whole = read_whole(self.path, key)
            shared = whole[None] if axis is Axis.MISSING else whole
            return lambda _: shared
        rows = (
            read_whole(self.path, key).__getitem__ if header.fortran else Rows(stack, self.path, key, header)
        )
        return (lambda index: rows(index)[None]) if axis is Axis.BATCH else rows


def inspect_file(
    path: Path, inputs: Sequence[InputSpec], *, in_directory: bool = False, thorough: bool = False
) -> ArrayFile:
    """Read the headers of a file and match its arrays with the inputs.

    Args:
        path: the ``.npz`` or ``.npy`` file.
        inputs: the inputs of the model.
        in_directory: whether the file is one of a directory. Then it may also hold a single sample whose
            axis 0 does not count samples (a graph, a lone sequence); it is used whole and never joined.
        thorough: verify checksums too. Otherwise a wrong checksum shows only after the last sample.

    Raises:
        CalibrationError: the file is damaged, or its arrays do not fit the inputs.
    """
    headers = read_headers(path)
    keys = _match_names(path, headers, inputs)
    for spec in inputs:
        check_type(headers[keys[spec.name]].dtype, spec, str(path))
    shapes = {spec.name: headers[keys[spec.name]].shape for spec in inputs}
    axes = {spec.name: _axis(path, shapes[spec.name], spec, inputs) for spec in inputs}
    if is_whole(shapes, inputs) or (in_directory and _is_one_sample(inputs, shapes, axes)):
        axes = dict.fromkeys(axes, Axis.OWN)
    joinable = {axes[name] for name in batched(inputs)} in ({Axis.BATCH}, {Axis.MISSING})
    matched = {name: (keys[name], axis) for name, axis in axes.items()}
    count = _count(path, shapes, axes)
    result = ArrayFile(path, tuple(inputs), headers, matched, count, joinable)
    _check_shapes(result, shapes)
    if thorough:
        check_sums(path)
    return result


def _match_names(path: Path, headers: Mapping[str, Header], inputs: Sequence[InputSpec]) -> dict[str, str]:
    """Map input names to array names. A single unnamed array belongs to a model's only input."""
    if len(inputs) == 1 and list(headers) in (["arr_0"], [""]):
        return {inputs[0].name: next(iter(headers))}
    wanted = [spec.name for spec in inputs]
    missing = [name for name in wanted if name not in headers]
    if path.suffix.lower() == ".npy":
        raise CalibrationError(
            f"{path}: a .npy file holds one array, the model takes {len(inputs)} inputs, {describe(inputs)}: "
            "give a .npz file with one array for each"
        )
    if missing:
        raise CalibrationError(
            f"{path}: no array for input {', '.join(map(repr, missing))}. The file holds "
            f"{', '.join(map(repr, headers)) or 'nothing'}, the model takes {describe(inputs)}: "
            "name the arrays after the inputs, as in numpy.savez(path, **{'input name': array})"
        )
    return {name: name for name in wanted}


def _axis(path: Path, shape: tuple[int, ...], spec: InputSpec, inputs: Sequence[InputSpec]) -> Axis:
    has_batch = spec.name in batched(inputs)
    if spec.shape is None:
        return Axis.BATCH if shape else Axis.OWN
    extra = len(shape) - len(spec.shape)
    if extra == 1:
        return Axis.STACK
    if extra == 0:
        return Axis.BATCH if has_batch else Axis.OWN
    if extra == -1 and has_batch:
        return Axis.MISSING
    raise misfit(shape, spec, str(path))


def _is_one_sample(
    inputs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axis]
) -> bool:
    """Whether nothing suggests that the arrays' first axes count samples."""
    if not {Axis.BATCH, Axis.OWN} >= set(axes.values()):
        return False
    ranked = [spec for spec in inputs if shapes[spec.name]]
    symbols = {spec.shape[0] for spec in ranked if spec.shape}
    counts = {shapes[spec.name][0] for spec in ranked}
    return (
        any(axes[spec.name] is Axis.OWN or spec.shape is None for spec in ranked)
        or all(len(shapes[spec.name]) == 1 for spec in ranked)
        or (len(symbols) > 1 and len(counts) > 1)
    )


def _count(path: Path, shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axis]) -> int:
    counted = {Axis.BATCH, Axis.STACK}
    counts = {n: shapes[n][0] if axes[n] in counted else 1 for n in shapes if axes[n] is not Axis.OWN}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise CalibrationError(
            f"{path}: the arrays hold different numbers of samples: {text}. "
            "Their first axes count samples and must agree"
        )
    count = next(iter(counts.values()), 1)
    if count == 0:
        raise CalibrationError(f"{path}: the arrays hold no samples (their first axis has size 0)")
    return count


def _check_shapes(file: ArrayFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for spec in file.inputs:
        axis, shape = file.keys[spec.name][1], shapes[spec.name]
        one = {Axis.BATCH: shape, Axis.STACK: shape[1:], Axis.MISSING: (1, *shape), Axis.OWN: shape}[axis]
        if not fits_shape(one, spec, any_count=axis in (Axis.BATCH, Axis.MISSING)):
            raise misfit(shape, spec, str(file.path))

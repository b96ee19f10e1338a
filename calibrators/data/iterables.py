"""Read samples from Python: whatever a loop over batches, a list or a data loader gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calibrators.data.bad_samples import OnBad, usable
from calibrators.data.fit import fit_sample
from calibrators.data.label_files import open_labels
from calibrators.data.labels import LabelBook, labels_of_batch
from calibrators.data.samples import (
    Array,
    DataSource,
    InputSpec,
    Sample,
    batched,
    describe,
    is_whole,
)
from calibrators.errors import CalibrationError

Inputs = Sequence[InputSpec]


def open_iterable(
    source: Iterable[Any], inputs: Inputs, labels: Any, on_bad: OnBad | None, *, whole: bool
) -> DataSource:
    """Open an iterable of batches.

    Args:
        source: yields what `from_item` takes.
        inputs: the inputs of the model.
        labels: as in `Labelled`, or the name of the labels in items that are dictionaries; None: those that
            lie beside the inputs.
        on_bad: as for `open_data`.
        whole: whether all samples are read, so that there must be a label for each.

    Raises:
        CalibrationError: it is no iterable; while iterating: an item is bad.
    """
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise CalibrationError(
            f"data of type {type(source).__name__}: expected a path, or an iterable such as a list of "
            f"{{input name: array}}; the model takes {describe(inputs)}"
        )
    key = labels if isinstance(labels, str) and not Path(labels).is_file() else None
    book = open_labels(labels, named=False) if key is None else None

    def loads() -> Iterator[partial[Sample]]:
        place = 0
        for i, item in enumerate(source):
            where = f"item {i} of the data"
            if book is None:
                yield partial(from_item, item, inputs, where, key)
                continue
            yield partial(_with_labels, partial(from_item, item, inputs, where), book, place)
            place += _size(item, inputs, where)
        if book is not None and whole:
            book.check_count(place)

    return DataSource(lambda: usable(loads(), on_bad))


def _size(item: Any, inputs: Inputs, where: str) -> int:
    """The number of samples of an item; one if it is none that the model takes."""
    try:
        return _batch(item, inputs, where).count
    except CalibrationError:
        return 1


def _with_labels(load: Callable[[], Sample], book: LabelBook, place: int) -> Sample:
    sample = load()
    labels = tuple(label for i in range(sample.count) for label in book.at(place + i))
    return replace(sample, labels=labels if len(labels) == sample.count else ())


def from_item(item: Any, inputs: Inputs, where: str, labels: str | None = None) -> Sample:
    """Turn an item of an iterable into a batch; a single sample without a batch axis gets one.

    Args:
        item: ``{input name: array}``; an array, or several in the order of the inputs; or a tuple that begins
            with one of these, beside labels.
        inputs: the inputs of the model.
        where: the name of the item, for messages.
        labels: the name of the labels, if the item is a dictionary; None: only what lies beside the inputs.

    Raises:
        CalibrationError: the item does not fit the inputs.
    """
    return fit_sample(_batch(item, inputs, where, labels), tuple(inputs))


def _batch(item: Any, inputs: Inputs, where: str, labels: str | None = None) -> Sample:
    feeds = {name: _with_batch_axis(a, name, inputs) for name, a in _feeds(item, inputs, where).items()}
    names = batched(inputs)
    counts = {feeds[name].shape[0] for name in names if feeds[name].ndim}
    joinable = len(counts) == 1 and not is_whole({name: a.shape for name, a in feeds.items()}, inputs)
    count = counts.pop() if joinable else 1
    if count == 0:
        raise CalibrationError(f"{where}: the arrays hold no samples (their first axis has size 0)")
    beside = _beside(item, [spec.name for spec in inputs], labels)
    return Sample(where, feeds, count, joinable, labels=labels_of_batch(beside, count, joinable))


def _feeds(item: Any, inputs: Inputs, where: str) -> dict[str, Array]:
    given = _without_labels(item, [spec.name for spec in inputs])
    if isinstance(given, Mapping):
        if missing := [spec.name for spec in inputs if spec.name not in given]:
            raise CalibrationError(
                f"{where}: nothing for input {', '.join(map(repr, missing))}, only for "
                f"{', '.join(map(repr, given)) or 'none'}. The model takes {describe(inputs)}"
            )
        return {spec.name: _to_array(given[spec.name], where, spec.name) for spec in inputs}
    if len(inputs) != 1:
        kind = type(item).__name__
        held = f" of {len(item)}" if isinstance(item, list | tuple) else ""
        raise CalibrationError(
            f"{where} is a {kind}{held}, the model takes several inputs: {describe(inputs)}. "
            "Give {input name: array}, or a tuple of arrays in this order"
        )
    return {inputs[0].name: _to_array(given, where, inputs[0].name)}


def _without_labels(item: Any, names: Sequence[str]) -> Any:
    """Unpack what data loaders yield: the inputs, perhaps with labels after them or beside a tuple of them.

    Args:
        item: an item of an iterable.
        names: the names of the inputs, in the order of arrays in a tuple.

    Returns:
        The inputs by name; or ``item`` as it is, if it holds no such tuple.
    """
    if not isinstance(item, list | tuple) or not item:
        return item
    first = item[0]
    if isinstance(first, Mapping):
        return first
    nested = isinstance(first, list | tuple) and len(first) == len(names)
    arrays = first if nested else item[: len(names)]
    able = len(arrays) == len(names) and all(map(_is_data, arrays))
    return dict(zip(names, arrays, strict=True)) if able else item


def _beside(item: Any, names: Sequence[str], labels: str | None) -> Any:
    """Return what an item holds beside the inputs: one thing, or several; None if there is nothing."""
    if isinstance(item, Mapping):
        return None if labels is None else item.get(labels)
    if not isinstance(item, list | tuple) or not item:
        return None
    nested = isinstance(item[0], Mapping | list | tuple)
    rest = tuple(item[1 if nested else len(names) :])
    return rest[0] if len(rest) == 1 else (dict(enumerate(rest)) or None)


def _is_data(value: Any) -> bool:
    return isinstance(value, Mapping | np.ndarray) or hasattr(value, "numpy")


def _to_array(value: Any, where: str, name: str) -> Array:
    """Convert to an array; a tensor of another library is converted by its own methods, via the CPU."""
    try:
        for step in ("detach", "cpu", "numpy"):
            if not isinstance(value, np.ndarray) and hasattr(value, step):
                value = getattr(value, step)()
        return np.array(value)  # a copy: the caller may reuse one buffer for all samples
    except (TypeError, ValueError, RuntimeError) as e:
        raise CalibrationError(f"{where}: the value for input '{name}' is not an array ({e})") from e


def _with_batch_axis(array: Array, name: str, inputs: Inputs) -> Array:
    shape = next(spec.shape for spec in inputs if spec.name == name)
    missing = shape is not None and name in batched(inputs) and array.ndim == len(shape) - 1
    return array[None] if missing else array

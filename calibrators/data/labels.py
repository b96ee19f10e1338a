"""Labels of samples: where they come from, and how each sample gets its own.

Labels stay tied to samples by the place of a sample in the data, or by the name of its file. So limits, bad
samples that are skipped, held-out samples and batches do not move them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrators.errors import CalibrationError, shorten


@dataclass(frozen=True)
class Labelled:
    """Data with labels beside them, for `calibrators.data.open.open_data`.

    Attributes:
        data: as for `open_data`.
        labels: the name of an array in the ``.npz`` files of the data; the path of a file with labels (see
            `calibrators.data.label_files`); a sequence with one label a sample, in the order of the samples;
            or a mapping from file name to label.
    """

    data: str | os.PathLike[str] | Iterable[Any]
    labels: Any


@dataclass(frozen=True)
class LabelBook:
    """Labels by the place of a sample, or by the name of its file.

    Attributes:
        origin: where they come from, for messages.
        by_place: one label a sample, in the order of the samples; None: by name.
        by_name: file name -> label; a name may have folders before it.
    """

    origin: str
    by_place: Sequence[Any] | None = None
    by_name: Mapping[str, Any] | None = None

    def check_count(self, samples: int, *, limited: bool = False) -> None:
        """Check that there is one label for each sample; with a limit, that there are enough.

        Raises:
            CalibrationError: the numbers differ.
        """
        count = None if self.by_place is None else len(self.by_place)
        if count is None or count == samples or (limited and count >= samples):
            return
        raise CalibrationError(
            f"{self.origin}: {count} labels for {samples} samples: give one label a sample, in their order"
        )

    def check_names(self, paths: Sequence[Path]) -> None:
        """Check that each file has a label.

        Raises:
            CalibrationError: labels are missing; the message counts and names them.
        """
        if self.by_name is None:
            return
        missing = [path.name for path in paths if self.named(path) is None]
        if missing:
            raise CalibrationError(
                f"{self.origin}: no label for {len(missing)} of {len(paths)} files: {shorten(missing)}. It "
                f"has labels for {shorten(list(self.by_name)) or 'nothing'}"
            )

    def at(self, place: int, path: Path | None = None) -> tuple[Any, ...]:
        """Return the label of one sample, in a tuple of one; an empty tuple if there is none.

        Args:
            place: its place in the data, from 0, bad samples included.
            path: its file, if it has one of its own.
        """
        if self.by_place is not None:
            return (self.by_place[place],) if place < len(self.by_place) else ()
        label = None if path is None else self.named(path)
        return () if label is None else (label,)

    def named(self, path: Path) -> Any:
        """Return the label of a file by its longest known ending, ``folder/name`` before ``name``."""
        parts = path.parts
        endings = ("/".join(parts[start:]) for start in range(len(parts)))
        book = self.by_name or {}
        return next((book[ending] for ending in endings if ending in book), None)


def given_labels(labels: Any) -> LabelBook:
    """Return labels from Python: a mapping from file name to label, or one label a sample.

    Raises:
        CalibrationError: they are neither.
    """
    if isinstance(labels, Mapping):
        return LabelBook("labels", by_name={str(name): label for name, label in labels.items()})
    array = as_array(labels)
    if isinstance(array, np.ndarray) and array.ndim:
        return LabelBook("labels", by_place=list(array))
    if isinstance(labels, Sequence):
        return LabelBook("labels", by_place=labels)
    raise CalibrationError(
        f"labels of type {type(labels).__name__}: expected a path, the name of an array of the data, a "
        "sequence with one label a sample, or {file name: label}"
    )


def labels_of_batch(rest: Any, count: int, joinable: bool) -> tuple[Any, ...]:
    """Return one label a sample of what a data loader yields beside the inputs.

    Args:
        rest: an array, a sequence or a number; a dictionary of these, of which each sample gets a dictionary;
            None: nothing.
        count: the number of samples in the batch.
        joinable: whether the batch has an axis of samples.
    """
    rest = as_array(rest)
    if rest is None:
        return ()
    if isinstance(rest, Mapping):
        parts = {name: labels_of_batch(part, count, joinable) for name, part in rest.items()}
        if any(len(part) != count for part in parts.values()):
            return ()
        return tuple({name: part[i] for name, part in parts.items()} for i in range(count))
    if not joinable:
        return (rest,)
    if isinstance(rest, np.ndarray) and rest.ndim and len(rest) == count:
        return tuple(rest)
    if isinstance(rest, list | tuple) and len(rest) == count:
        return tuple(map(as_array, rest))
    return (rest,) if count == 1 else ()


def as_array(value: Any) -> Any:
    """Return a tensor of another library as an array; anything else as it is."""
    for step in ("detach", "cpu", "numpy"):
        if not isinstance(value, np.ndarray) and callable(getattr(value, step, None)):
            value = getattr(value, step)()
    return value

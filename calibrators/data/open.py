"""Open calibration data in any supported form: arrays, directories of arrays or images, Python iterables.

====================================  ==============================================================
``.npz``                              arrays named after the inputs; axis 0 counts samples
``.npy``                              one array, for a model with one input; axis 0 counts samples
directory of ``.npz`` and ``.npy``    one sample or batch per file; shapes may differ between files
image, or directory of images         decoded and preprocessed, for a model that takes images
iterable of ``{input name: array}``   one batch per item; arrays in the order of the inputs too, or
                                      either of them beside labels
`Labelled`                            one of these, with labels from elsewhere
====================================  ==============================================================
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from calibrators.atomic import NOT_PLAIN, is_special
from calibrators.data import arrays, images, preprocess
from calibrators.data.bad_samples import OnBad, usable
from calibrators.data.batching import batches, cut
from calibrators.data.iterables import open_iterable
from calibrators.data.label_files import open_labels
from calibrators.data.labels import LabelBook, Labelled
from calibrators.data.samples import (
    DataSource,
    InputSpec,
    Sample,
    batched,
    input_specs,
)
from calibrators.errors import CalibrationError, shorten

__all__ = ["DataSource", "InputSpec", "Sample", "batches", "input_specs", "open_data"]

log = logging.getLogger(__name__)

Inputs = Sequence[InputSpec]
Load: TypeAlias = Callable[[], Sample]


@dataclass(frozen=True)
class _Wanted:
    """The arguments of `open_data`."""

    inputs: Inputs
    preprocess: str | None
    limit: int | None
    on_bad: OnBad | None
    labels: Any = None


def open_data(
    source: str | os.PathLike[str] | Iterable[Any] | Labelled,
    inputs: Inputs,
    *,
    preprocess: str | None = None,
    limit: int | None = None,
    on_bad: OnBad | None = None,
) -> DataSource:
    """Open ``source`` as a lazy stream of samples, checked and cast to the inputs' types.

    The headers of files are checked against the inputs at once, their values only when they are read.

    Args:
        source: a path, or an iterable as in the table above. Tensors of any library that have a method
            ``numpy()`` are accepted. An iterator can be read only once. Samples carry the labels that a
            `Labelled` gives, else those of a data loader.
        inputs: the inputs of the model, see `input_specs`.
        preprocess: for images, see `calibrators.data.preprocess.parse_preprocess`; None: the default.
        limit: the largest number of samples to use. These are the first ones; images, which are often
            sorted by class, are chosen evenly from all.
        on_bad: called for every sample, or file in a directory, that is damaged, does not fit the inputs
            or holds NaN or Inf, each time it is read; it is then skipped. None: it is an error.

    Raises:
        CalibrationError: the path does not exist, nothing in it is usable, or it does not fit the
            inputs; while iterating: a sample is bad, or there are no samples.
    """
    if limit is not None and limit < 1:
        raise CalibrationError(f"at most {limit} samples: expected a limit of at least 1")
    labels = source.labels if isinstance(source, Labelled) else None
    source = source.data if isinstance(source, Labelled) else source
    wanted = _Wanted(inputs, preprocess, limit, on_bad, labels)
    if isinstance(source, str | os.PathLike):
        opened = _open_path(Path(source), wanted)
    else:
        _is_not_used(preprocess)
        opened = open_iterable(source, inputs, labels, on_bad, whole=limit is None)
    total = opened.total if limit is None or opened.total is None else min(limit, opened.total)
    return DataSource(lambda: _limited(opened, batched(inputs), limit), total, opened.read_part)


def _limited(samples: Iterable[Sample], names: frozenset[str], limit: int | None) -> Iterator[Sample]:
    """Yield at most ``limit`` samples; raise CalibrationError if there are none."""
    done = 0
    for sample in samples:
        left = sample.count if limit is None else limit - done
        yield cut(sample, names, 0, left) if sample.joinable and sample.count > left else sample
        done += sample.count
        if limit is not None and done >= limit:
            return
    if not done:
        raise CalibrationError("the data holds no samples (an iterator can be read only once: pass a list)")


def _open_path(path: Path, wanted: _Wanted) -> DataSource:
    if path.is_dir():
        return _open_directory(path, wanted)
    if not path.exists():
        raise CalibrationError(f"{path}: no such file or directory: give the path of the calibration data")
    if is_special(path):
        raise CalibrationError(f"{path} {NOT_PLAIN}: give a plain file, or a directory")
    suffix = path.suffix.lower()
    if suffix in images.SUFFIXES:
        return _open_images([path], wanted)
    if suffix in arrays.SUFFIXES:
        return _open_arrays([_inspect(path, wanted)], wanted)
    raise CalibrationError(f"{path}: '{suffix}' files are not read: expected {_expected()}")


def _open_directory(path: Path, wanted: _Wanted) -> DataSource:
    files = _files(path)
    pictures = [f for f in files if f.suffix.lower() in images.SUFFIXES]
    stored = [f for f in files if f.suffix.lower() in arrays.SUFFIXES]
    if pictures and stored:
        raise CalibrationError(
            f"{path}: holds both images ({pictures[0].name}) and arrays ({stored[0].name}): keep one kind"
        )
    if not pictures and not stored:
        holds = f"none of its {len(files)} files can be read" if files else "the directory is empty"
        raise CalibrationError(f"{path}: {holds}: expected {_expected()}")
    log.debug("%s: %d of %d files are read", path, len(pictures) + len(stored), len(files))
    if pictures:
        return _open_images(pictures, wanted)
    inspected = usable((partial(_inspect, f, wanted, in_directory=True) for f in stored), wanted.on_bad)
    return _open_arrays(_until(wanted.limit, inspected), wanted)


def _inspect(path: Path, wanted: _Wanted, in_directory: bool = False) -> arrays.ArrayFile:
    skips = wanted.on_bad is not None
    return arrays.inspect_file(path, wanted.inputs, in_directory=in_directory, thorough=skips)


def _until(limit: int | None, files: Iterable[arrays.ArrayFile]) -> list[arrays.ArrayFile]:
    """Return the first files that together hold ``limit`` samples."""
    found: list[arrays.ArrayFile] = []
    count = 0
    for file in files:
        found.append(file)
        count += file.count
        if limit is not None and count >= limit:
            break
    return found


def _files(root: Path) -> list[Path]:
    """All files below ``root``, sorted, without those that are hidden or in a hidden directory."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    special = list(filter(is_special, found))
    for path in special:
        log.warning("%s %s: skipped", path, NOT_PLAIN)
    return sorted(set(found) - set(special))


def _expected() -> str:
    return f"arrays ({' '.join(sorted(arrays.SUFFIXES))}) or images ({' '.join(sorted(images.SUFFIXES))})"


def _open_arrays(files: Sequence[arrays.ArrayFile], wanted: _Wanted) -> DataSource:
    _is_not_used(wanted.preprocess)
    files, book = _labelled(files, wanted)
    if ignored := {name: file.path for file in reversed(files) for name in file.ignored}:
        for name, path in ignored.items():
            log.warning("%s: array '%s' is not an input of the model: ignored", path, name)
    total = sum(file.count for file in files)
    if book is not None:
        book.check_count(total, limited=wanted.limit is not None)

    def loads() -> Iterator[Load]:
        every = ((file, load) for file in files for load in file.loads())
        for place, (file, load) in enumerate(every):
            yield load if book is None else partial(_with_label, load, book, place, file.path)

    return _numbered(loads, total, wanted)


def _labelled(
    files: Sequence[arrays.ArrayFile], wanted: _Wanted
) -> tuple[Sequence[arrays.ArrayFile], LabelBook | None]:
    """Return the files with the array of theirs that holds labels, or the labels from elsewhere."""
    key = wanted.labels if isinstance(wanted.labels, str) else None
    having = [file for file in files if key in file.headers]
    if key is not None and having:
        if lacking := [str(file.path) for file in files if key not in file.headers]:
            raise CalibrationError(
                f"{len(lacking)} of {len(files)} files have no array '{key}' with labels: {shorten(lacking)}"
            )
        return [file.labelled(key) for file in files], None
    held = list(dict.fromkeys(name for file in files for name in file.ignored))
    return files, open_labels(wanted.labels, held, named=len(files) > 1)


def _with_label(load: Callable[[], Sample], book: LabelBook, place: int, path: Path) -> Sample:
    return replace(load(), labels=book.at(place, path))


def _numbered(loads: Callable[[], Iterable[Load]], total: int, wanted: _Wanted) -> DataSource:
    """Number the samples by their place among all, also among those that cannot be read.

    Args:
        loads: gives one loader a sample; those that are not called read nothing.
        total: the number of samples.
        wanted: what happens to bad samples.
    """

    def of(numbers: range) -> Iterator[Load]:
        for number, load in islice(enumerate(loads()), numbers.stop):
            if number >= numbers.start:
                yield partial(_with_number, load, number)

    every = range(total if wanted.limit is None else min(total, wanted.limit))
    return DataSource(
        lambda: usable(of(every), wanted.on_bad),
        len(every),
        lambda part: usable(of(part), wanted.on_bad, may_be_empty=True),
    )


def _with_number(load: Load, number: int) -> Sample:
    return replace(load(), numbers=(number,))


def _is_not_used(preprocess: str | None) -> None:
    if preprocess is not None:
        log.warning("preprocess '%s' is not used: it is for images, and the data are arrays", preprocess)


def _open_images(paths: Sequence[Path], wanted: _Wanted) -> DataSource:
    spec = images.image_input(wanted.inputs)
    settings = preprocess.parse_preprocess(wanted.preprocess or preprocess.DEFAULT)
    images.frame_for(settings, spec)
    book = open_labels(wanted.labels, named=True)
    if book is not None:
        book.check_count(len(paths))
    limit = wanted.limit
    places: Sequence[int] = range(len(paths))
    if limit is not None and limit < len(paths):
        places = [i * len(paths) // limit for i in range(limit)]
    if book is not None:
        book.check_names([paths[place] for place in places])
    labels = {place: book.at(place, paths[place]) if book else () for place in places}
    loads = [partial(_image, paths[place], settings, spec, labels[place]) for place in places]
    return _numbered(lambda: loads, len(places), wanted)


def _image(path: Path, settings: preprocess.Preprocess, spec: InputSpec, labels: tuple[Any, ...]) -> Sample:
    joinable = spec.shape is None or len(spec.shape) == 4
    array, placement = images.load_placed(path, settings, spec)
    labels = tuple(placement.placed(label) for label in labels)
    return Sample(str(path), {spec.name: array}, 1, joinable, labels=labels)

"""Open calibration data in any supported form: arrays, directories of arrays or images, Python iterables.

====================================  ==============================================================
``.npz``                              arrays named after the inputs; axis 0 counts samples
``.npy``                              one array, for a model with one input; axis 0 counts samples
directory of ``.npz`` and ``.npy``    one sample or batch per file; shapes may differ between files
image, or directory of images         decoded and preprocessed, for a model that takes images
iterable of ``{input name: array}``   one batch per item; arrays in the order of the inputs too, or
                                      either of them beside labels
====================================  ==============================================================
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from calibrators.atomic import NOT_PLAIN, is_special
from calibrators.data import arrays, images, preprocess
from calibrators.data.bad_samples import OnBad, usable
from calibrators.data.batching import batches, cut
from calibrators.data.fit import fit_sample
from calibrators.data.samples import (
    Array,
    DataSource,
    InputSpec,
    Sample,
    batched,
    describe,
    input_specs,
    is_whole,
)
from calibrators.errors import CalibrationError

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


def open_data(
    source: str | os.PathLike[str] | Iterable[Any],
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
            ``numpy()`` are accepted. An iterator can be read only once.
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
    wanted = _Wanted(inputs, preprocess, limit, on_bad)
    if isinstance(source, str | os.PathLike):
        opened = _open_path(Path(source), wanted)
    else:
        opened = _open_iterable(source, wanted)
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
    if ignored := {name: file.path for file in reversed(files) for name in file.ignored}:
        for name, path in ignored.items():
            log.warning("%s: array '%s' is not an input of the model: ignored", path, name)
    total = sum(file.count for file in files)
    return _numbered(lambda: (load for file in files for load in file.loads()), total, wanted)


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
    limit = wanted.limit
    if limit is not None and limit < len(paths):
        paths = [paths[i * len(paths) // limit] for i in range(limit)]
    loads = [partial(_image, path, settings, spec) for path in paths]
    return _numbered(lambda: loads, len(paths), wanted)


def _image(path: Path, settings: preprocess.Preprocess, spec: InputSpec) -> Sample:
    joinable = spec.shape is None or len(spec.shape) == 4
    return Sample(str(path), {spec.name: images.load_image(path, settings, spec)}, 1, joinable)


def _open_iterable(source: Iterable[Any], wanted: _Wanted) -> DataSource:
    inputs = wanted.inputs
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise CalibrationError(
            f"data of type {type(source).__name__}: expected a path, or an iterable such as a list of "
            f"{{input name: array}}; the model takes {describe(inputs)}"
        )
    _is_not_used(wanted.preprocess)

    def loads() -> Iterator[partial[Sample]]:
        for i, item in enumerate(source):
            yield partial(from_item, item, inputs, f"item {i} of the data")

    return DataSource(lambda: usable(loads(), wanted.on_bad))


def from_item(item: Any, inputs: Inputs, where: str) -> Sample:
    """Turn an item of an iterable into a batch; a single sample without a batch axis gets one.

    Args:
        item: ``{input name: array}``; an array, or several in the order of the inputs; or a tuple that begins
            with one of these, beside labels.
        inputs: the inputs of the model.
        where: the name of the item, for messages.

    Raises:
        CalibrationError: the item does not fit the inputs.
    """
    feeds = {name: _with_batch_axis(a, name, inputs) for name, a in _feeds(item, inputs, where).items()}
    names = batched(inputs)
    counts = {feeds[name].shape[0] for name in names if feeds[name].ndim}
    joinable = len(counts) == 1 and not is_whole({name: a.shape for name, a in feeds.items()}, inputs)
    count = counts.pop() if joinable else 1
    if count == 0:
        raise CalibrationError(f"{where}: the arrays hold no samples (their first axis has size 0)")
    return fit_sample(Sample(where, feeds, count, joinable), tuple(inputs))


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

"""Join samples to batches that the model takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from calibrators.data.samples import Array, InputSpec, Sample, batched, fixed_batch
from calibrators.errors import CalibrationError

log = logging.getLogger(__name__)

MOST_REPEATED = 2**28
"""Most elements of a batch that is filled by repeating samples: 1 GiB in float32."""

Group: TypeAlias = list[Sample]


def batches(samples: Iterable[Sample], inputs: Sequence[InputSpec], batch_size: int) -> Iterator[Sample]:
    """Concatenate neighbouring samples of the same shape along axis 0 to batches.

    If the model fixes the batch size, every batch has exactly that size. An incomplete last batch is then
    left out. An incomplete batch that cannot be left out (the only one, or followed by another shape) is
    filled by repeating its samples. Both cases log a warning.

    Args:
        samples: samples, or batches; a batch larger than ``batch_size`` stays as it is.
        inputs: the inputs of the model.
        batch_size: the largest number of samples to join; not used if the model fixes the batch size.

    Raises:
        CalibrationError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise CalibrationError(f"batch size {batch_size}: expected at least 1")
    names = batched(inputs)
    fixed = fixed_batch(inputs)
    if fixed is None:
        return (join(group, names) for group in _groups(samples, names, batch_size))
    if batch_size not in (1, fixed):
        log.info("the model fixes the batch size to %d: %d is not used", fixed, batch_size)
    pieces = (piece for sample in samples for piece in _singles(sample, names))
    return _exact(_groups(pieces, names, fixed), names, fixed)


def cut(sample: Sample, names: frozenset[str], start: int, stop: int) -> Sample:
    """Cut the samples ``start`` to ``stop - 1`` out of a batch.

    Args:
        sample: the batch.
        names: the inputs that have a batch axis.
        start: index of the first sample.
        stop: index after the last sample.
    """
    feeds = {name: a[start:stop] if name in names else a for name, a in sample.feeds.items()}
    return replace(
        sample,
        feeds=feeds,
        count=stop - start,
        members=sample.members[start:stop],
        numbers=sample.numbers[start:stop],
        labels=sample.labels[start:stop],
    )


def parts(batch: Sample, inputs: Sequence[InputSpec]) -> list[Sample]:
    """Cut a batch into its samples; return it whole if it cannot be cut or the model fixes its size."""
    names = batched(inputs) & batch.feeds.keys()
    able = batch.joinable and all(len(batch.feeds[name]) == batch.count for name in names)
    if not able or fixed_batch(inputs) is not None:
        return [batch]
    return [replace(one, name=batch.name_of(i)) for i, one in enumerate(_singles(batch, names))]


def _singles(sample: Sample, names: frozenset[str]) -> Iterator[Sample]:
    if not sample.joinable or sample.count == 1:
        return iter([sample])
    return (cut(sample, names, i, i + 1) for i in range(sample.count))


def _groups(samples: Iterable[Sample], names: frozenset[str], size: int) -> Iterator[Group]:
    """Group neighbours that fit together, at most ``size`` samples per group unless one item has more."""
    group: Group = []
    for sample in samples:
        if group and (_count(group) + sample.count > size or not _agree(group[-1], sample, names)):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _count(group: Group) -> int:
    return sum(sample.count for sample in group)


def _agree(a: Sample, b: Sample, names: frozenset[str]) -> bool:
    """Whether both fit in one batch: same shapes, and the same values where there is no batch axis."""
    return (
        a.joinable
        and b.joinable
        and all(
            x.shape[1:] == b.feeds[n].shape[1:] if n in names else np.array_equal(x, b.feeds[n])
            for n, x in a.feeds.items()
        )
    )


def join(group: Group, names: frozenset[str]) -> Sample:
    """Concatenate samples or batches along axis 0 to one batch.

    Args:
        group: what to join, at least one.
        names: the inputs that have a batch axis; the others are those of the first sample.
    """
    if len(group) == 1:
        return group[0]
    feeds: dict[str, Array] = {
        name: np.concatenate([s.feeds[name] for s in group]) if name in names else value
        for name, value in group[0].feeds.items()
    }
    ends = dict.fromkeys((group[0].name, group[-1].name))
    members = tuple(sample.name_of(i) for sample in group for i in range(sample.count))
    numbers = tuple(number for sample in group for number in sample.numbers)
    labels = tuple(label for sample in group for label in sample.labels)
    known = labels if len(labels) == _count(group) else ()
    return Sample(" to ".join(ends), feeds, _count(group), members=members, numbers=numbers, labels=known)


def _exact(groups: Iterable[Group], names: frozenset[str], size: int) -> Iterator[Sample]:
    """Make each group a batch of exactly ``size``; ``count`` stays the number of real samples."""
    made = 0
    last: Group = []
    for group in groups:
        if last:
            yield _filled(last, names, size)
            made += 1
        last = group
    if made and last and last[0].joinable and _count(last) < size:
        log.warning(
            "the model fixes the batch size to %d: the last %d samples do not fill a batch and are left out",
            size,
            _count(last),
        )
    elif last:
        yield _filled(last, names, size)


def _filled(group: Group, names: frozenset[str], size: int) -> Sample:
    count = _count(group)
    batch = join(group, names)
    if not batch.joinable or count == size:
        return batch
    if size * sum(batch.feeds[name].size for name in names) > MOST_REPEATED * count:
        raise CalibrationError(
            f"the model fixes the batch size to {size}, and {count} samples cannot be repeated that often: "
            "declare the batch size that the model is used with"
        )
    log.warning("too few samples of one shape: they are repeated to fill the model's batch size %d", size)
    indices = np.arange(size) % count
    return replace(batch, feeds={n: a[indices] if n in names else a for n, a in batch.feeds.items()})

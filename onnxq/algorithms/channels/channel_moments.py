"""Statistics of the channels of a float model, from which their factors and offsets are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxq.algorithms.channels.labels import Channels
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.watching import Arrays

Reals = NDArray[np.float64]

SILENT = 2.0**-12
"""A channel is silent if its largest magnitude is at most this share of the largest in its tensor."""

LEVELS = 255
"""Quantization steps over the range, for the rounding noise that clipping is compared with."""

BEARABLE = 1.0
"""Largest clipping noise to accept for unseen samples, as a multiple of the rounding noise."""

HEADROOMS = np.geomspace(1.0, 1024.0, 101)
"""Candidates for `headroom`, in ascending order."""


ENOUGH = 48
"""The number of batches that are measured of any model."""

MOST_VALUES = 300e6
"""The number of values up to which more batches are measured, all tensors together. It takes a few seconds.

Outliers of a channel show in few samples: 40 of 160 short sentences cost a sentence encoder 1.8 dB.
"""


@dataclass(frozen=True)
class ChannelMoments:
    """Statistics of the channels of a tensor, in the order of its labels.

    Attributes:
        highs: the largest value of each sample, ``[samples, C]``.
        lows: the smallest value of each sample, ``[samples, C]``.
        total: the sum of the values, ``[C]``.
        squares: the sum of the squared values, ``[C]``.
        count: number of values per channel.
    """

    highs: Reals
    lows: Reals
    total: Reals
    squares: Reals
    count: int

    @property
    def variance(self) -> Reals:
        """The variance of each channel, ``[C]``."""
        return np.maximum(self.squares / self.count - np.square(self.total / self.count), 0.0)

    def ends(self, silence: float = SILENT) -> tuple[Reals, Reals, NDArray[np.bool_]]:
        """Return the largest and the smallest value to expect of each channel, and which channels are silent.

        The ranges include zero. A silent channel gets the range of the tensor, so that it is not scaled up:
        its own range is unknown.

        Args:
            silence: the largest magnitude of a silent channel, as a share of the largest in the tensor.

        Returns:
            The upper ends, the lower ends and the mask of silent channels, ``[C]`` each.
        """
        room = headroom(self.highs, self.lows)
        high, low = np.maximum(self.highs.max(axis=0), 0.0), np.minimum(self.lows.min(axis=0), 0.0)
        silent = np.maximum(high, -low) <= max(high.max(), -low.min()) * silence
        high, low = np.minimum(high * room, high.max()), np.maximum(low * room, low.min())
        return np.where(silent, high.max(), high), np.where(silent, low.min(), low), silent


def headroom(highs: Reals, lows: Reals) -> float:
    """Return the factor by which the range of every channel must exceed the observed one.

    A channel that is rarely active may exceed its observed range on new samples, and is then clipped. The
    clipping error of a new sample is estimated by leave-one-out: for each sample, by how much its largest
    value exceeds that of all others. The smallest factor is chosen whose clipping error is at most `BEARABLE`
    times the rounding noise, both relative to the range of the channel.

    Args:
        highs: the largest value of each sample, ``[samples, C]``.
        lows: the smallest value of each sample, ``[samples, C]``.
    """
    if len(highs) < 2:
        return float(HEADROOMS[-1])
    second, first = np.maximum(np.partition(np.maximum(highs, -lows), -2, axis=0)[-2:], 0.0)
    known = second[first > 0] / first[first > 0]
    for room in HEADROOMS:
        lost = np.square(np.maximum(1 - room * known, 0.0)).sum() / len(highs)
        if lost <= BEARABLE * len(known) * (room / LEVELS) ** 2 / 12:
            return float(room)
    return float(HEADROOMS[-1])


def measure(
    draft: Draft, channels: Channels, tensors: Sequence[str], context: CorrectionContext
) -> dict[str, ChannelMoments]:
    """Run the float model, and collect statistics of the channels of ``tensors``.

    It runs on `ENOUGH` batches, evenly spread, or on more where the tensors are small.

    Args:
        draft: the float model and its calibration statistics.
        channels: the labels of its channels.
        tensors: names of the tensors to measure.
        context: the samples to run.

    Returns:
        The statistics by name of the tensor; empty if the model rejects all samples.

    Raises:
        CalibrationError: the model does not load, or rejects a sample.
    """
    shapes = {name: channels.of(name).shape for name in tensors}
    context = context.spread(_batches(draft, context))
    look = partial(_look, shapes, [batch.count for batch in context.fit])
    found = list(context.watch(draft.reference, list(shapes), look))
    return {name: joined([seen[name] for seen in found]) for name in shapes if found}


def _batches(draft: Draft, context: CorrectionContext) -> int:
    """Return on how many batches to measure, by the number of values that calibration saw."""
    seen = sum(tensor.count / max(tensor.samples, 1) for tensor in draft.statistics.values())
    largest = max((batch.count for batch in context.fit), default=1)
    return max(ENOUGH, int(MOST_VALUES / (seen * largest))) if seen else ENOUGH


def joined(parts: Sequence[ChannelMoments]) -> ChannelMoments:
    """Join the statistics of all batches, in order."""
    return ChannelMoments(
        highs=np.concatenate([part.highs for part in parts]),
        lows=np.concatenate([part.lows for part in parts]),
        total=np.sum([part.total for part in parts], axis=0),
        squares=np.sum([part.squares for part in parts], axis=0),
        count=sum(part.count for part in parts),
    )


def _look(
    shapes: Mapping[str, tuple[int, ...]], counts: Sequence[int], number: int, arrays: Arrays
) -> dict[str, ChannelMoments]:
    return {
        name: moments(np.asarray(arrays[name], np.float32), shape, counts[number])
        for name, shape in shapes.items()
    }


def _sums(array: NDArray[np.float32], axes: tuple[int, ...]) -> tuple[Reals, Reals]:
    """Sum the values and their squares over ``axes``; in float32 over the last axes, where it holds the sums.

    NumPy adds in pairs along the last axis, so that float32 is as good there, and twice as fast.
    """
    inner = 0
    while inner < len(axes) and array.ndim - 1 - inner in axes:
        inner += 1
    outer = axes[: len(axes) - inner]
    rows = array.reshape(*array.shape[: array.ndim - inner], -1) if inner else array[..., None]
    with np.errstate(over="ignore"):
        parts = rows.sum(axis=-1), np.square(rows).sum(axis=-1)
    if not all(np.isfinite(part).all() for part in parts):
        exact = rows.astype(np.float64)
        parts = exact.sum(axis=-1), np.square(exact).sum(axis=-1)
    total, squares = (part.sum(axis=outer, dtype=np.float64).reshape(-1) for part in parts)
    return total, squares


def moments(array: NDArray[np.float32], shape: Sequence[int], samples: int = 1) -> ChannelMoments:
    """Compute the statistics of one array.

    Args:
        array: the values.
        shape: shape of the labels of its channels; 1 along axes where the labels do not change, () for a
            single label.
        samples: number of samples in ``array``. Extremes are taken per sample if the first axis has this size
            and no channels.
    """
    axes = tuple(axis for axis in range(array.ndim) if not shape or shape[axis] == 1)
    apart = axes[:1] == (0,) and array.shape[0] == samples
    within = axes[1:] if apart else axes
    rows = samples if apart else 1
    total, squares = _sums(array, axes)
    return ChannelMoments(
        highs=array.max(axis=within, initial=-np.inf).reshape(rows, -1).astype(np.float64),
        lows=array.min(axis=within, initial=np.inf).reshape(rows, -1).astype(np.float64),
        total=total,
        squares=squares,
        count=array.size // total.size,
    )

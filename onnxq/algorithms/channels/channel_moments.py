"""What is measured of the channels of a float model, to choose their factors by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.channels.labels import Channels
from onnxq.algorithms.context import Arrays, CorrectionContext

SILENT = 2.0**-12
"""Channels so much smaller than the largest of their tensor are silent."""

LEVELS = 255
"""Steps of the range that clipping is held against."""

BEARABLE = 1.0
"""What the largest values of unseen samples may lose, as a multiple of the noise of rounding."""

HEADROOMS = np.geomspace(1.0, 1024.0, 101)


@dataclass(frozen=True)
class ChannelMoments:
    """What was seen of each channel of a tensor, in the order of its labels.

    Attributes:
        highs, lows: [samples, C], the largest and the smallest value of each sample.
        total, squares: [C], sums of the values and of their squares.
        count: how many values a channel had.
    """

    highs: NDArray[np.float64]
    lows: NDArray[np.float64]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    count: int

    @property
    def variance(self) -> NDArray[np.float64]:
        """Of each channel."""
        return np.maximum(self.squares / self.count - np.square(self.total / self.count), 0.0)

    def ends(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """The largest and the smallest value to expect of each channel, zero included; and which are silent.

        A silent channel counts as one of the largest: nothing is known of it that would let it grow.
        """
        room = headroom(self.highs, self.lows)
        high, low = np.maximum(self.highs.max(axis=0), 0.0), np.minimum(self.lows.min(axis=0), 0.0)
        silent = np.maximum(high, -low) <= max(high.max(), -low.min()) * SILENT
        high, low = np.minimum(high * room, high.max()), np.maximum(low * room, low.min())
        return np.where(silent, high.max(), high), np.where(silent, low.min(), low), silent


def headroom(highs: NDArray[np.float64], lows: NDArray[np.float64]) -> float:
    """How far beyond what was seen of them the channels must reach, as a factor for all: [n, C] twice.

    A channel that answers to few things was perhaps never seen at its largest, and once it fills the range
    nothing larger fits in. What a new sample would lose by that is what each of the samples would have
    lost had only the others been seen: its largest value beyond their largest. It is held against what
    rounding loses, both as shares of the channels' own sizes.
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
    model: ir.Model, channels: Channels, tensors: Sequence[str], context: CorrectionContext
) -> dict[str, ChannelMoments]:
    """Run the samples once and look at the channels of ``tensors``; nothing if the model takes none of them.

    Raises:
        CalibrationError: the model does not load, or does not take a sample.
    """
    shapes = {name: channels.of(name).shape for name in tensors}
    look = partial(_look, shapes, [sample.count for sample in context.fit])
    batches = list(context.watch(model, list(shapes), look))
    return {name: joined([seen[name] for seen in batches]) for name in shapes if batches}


def joined(parts: Sequence[ChannelMoments]) -> ChannelMoments:
    """Those of all batches, in order."""
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


def moments(array: NDArray[np.float32], shape: Sequence[int], samples: int = 1) -> ChannelMoments:
    """Of an array whose labels have this ``shape``: 1 where they do not change, () for one label for all.

    Samples are told apart where the first axis counts them.
    """
    axes = tuple(axis for axis in range(array.ndim) if not shape or shape[axis] == 1)
    apart = axes[:1] == (0,) and array.shape[0] == samples
    within = axes[1:] if apart else axes
    rows = samples if apart else 1
    total = array.sum(axis=axes, dtype=np.float64).reshape(-1)
    return ChannelMoments(
        highs=array.max(axis=within, initial=-np.inf).reshape(rows, -1).astype(np.float64),
        lows=array.min(axis=within, initial=np.inf).reshape(rows, -1).astype(np.float64),
        total=total,
        squares=np.square(array).sum(axis=axes, dtype=np.float64).reshape(-1),
        count=array.size // total.size,
    )

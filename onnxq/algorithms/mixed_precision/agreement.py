"""How often decisions will be the same, estimated: a few samples cannot count one difference in hundreds.

A decision changes if noise makes up for the gap between the two largest scores. Where gap and noise do not
depend on each other, every gap that was seen may meet every noise that was seen, with either sign:

    P(change) = mean over noises n of P(gap < |n|) / 2

That takes gaps from all samples, those to fit on too, because they belong to the float model; noises only
from samples that are held out, between any two of the `RIVALS` largest scores. Two things are known to spoil
it, and seen to: sure decisions have more noise than close ones in some networks, so noises come from the half
with smaller gaps; and of the smallest gaps there are few, so below `SMOOTHED` their density is taken to be
even, which it nearly is next to zero. What is promised is the estimate less its standard error: a search
that tries many models would otherwise find one that only looks good enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.verify.accuracy import class_axis

Doubles = NDArray[np.float64]

RIVALS = 3

SMOOTHED = 0.2
"""The share of the gaps, the smallest ones, that is taken to be spread evenly."""

KEPT_DECISIONS = 10_000
"""Of one output of one batch; of more, a regular selection tells enough."""

RESOLVED = 10
"""Differences that a model just at the goal would show: from so many on, counting is good enough."""


@dataclass
class Margins:
    """One output.

    Attributes:
        gaps: between the two largest scores of the float model, on samples to fit on.
        held: the largest scores of held-out samples, ``[decisions, rivals]``, the largest one first.
        errors: what quantization adds to those.
    """

    gaps: Doubles
    held: list[Doubles] = field(default_factory=list)
    errors: list[Doubles] = field(default_factory=list)

    def look(self, expected: Any, given: Any) -> None:
        """Take in a held-out batch: an output as it should be, and as it is."""
        pair = _rivals(expected, given)
        if pair is not None and len(pair[0]):
            self.held.append(pair[0])
            self.errors.append(pair[1] - pair[0])

    def agreement(self) -> float | None:
        """The share of equal decisions (0 ... 1) to be expected, less its standard error; None: no scores."""
        if not self.held:
            return None
        held, errors = np.concatenate(self.held), np.concatenate(self.errors)
        seen = _gaps(held)
        close = errors[seen <= np.median(seen)]
        one, other = np.triu_indices(close.shape[1], 1)
        gaps = np.sort(joined([self.gaps, seen]))
        changes = _share_below(gaps, np.abs(close[:, one] - close[:, other])).mean(1) / 2
        by_noise = changes.std(ddof=1) / math.sqrt(len(changes)) if len(changes) > 1 else changes.mean()
        by_gaps = changes.mean() / math.sqrt(_few(gaps))
        return float(max(0.0, 1 - changes.mean() - math.hypot(by_noise, by_gaps)))

    def resolves(self, limit: float) -> bool:
        """Whether counting held-out decisions is good enough to tell if a share of ``limit`` is equal."""
        return sum(map(len, self.held)) * (1 - limit) >= RESOLVED


def float_gaps(outputs: Sequence[Any]) -> list[Doubles]:
    """For each output of the float model, the gaps between its two largest scores, if it has scores."""
    return [np.empty(0) if (pair := _rivals(one, one)) is None else _gaps(pair[0]) for one in outputs]


def joined(parts: Iterable[Doubles]) -> Doubles:
    """All in one."""
    return np.concatenate([np.empty(0), *parts])


def _rivals(expected: Any, given: Any) -> tuple[Doubles, Doubles] | None:
    """The largest scores of each decision in ``expected``, and what ``given`` has in their places.

    Both ``[decisions, rivals]``; None where there are no scores.
    """
    axis = class_axis(expected)
    if axis is None or np.shape(given) != expected.shape:
        return None
    one, other = (np.moveaxis(np.asarray(a, np.float64), axis, -1) for a in (expected, given))
    one, other = (array.reshape(-1, array.shape[-1]) for array in (one, other))
    step = max(1, math.ceil(len(one) / KEPT_DECISIONS))
    one, other = one[::step], other[::step]
    finite = np.isfinite(one).all(-1) & np.isfinite(other).all(-1)
    one, other = one[finite], other[finite]
    best = np.argsort(-one, axis=-1, kind="stable")[:, :RIVALS]
    return np.take_along_axis(one, best, -1), np.take_along_axis(other, best, -1)


def _gaps(rivals: Doubles) -> Doubles:
    return np.asarray(rivals[:, 0] - rivals[:, 1])


def _few(gaps: Doubles) -> int:
    return math.ceil(SMOOTHED * len(gaps))


def _share_below(gaps: Doubles, limits: Doubles) -> Doubles:
    """The share of the sorted ``gaps`` below each of ``limits``; even below the `SMOOTHED` smallest."""
    share = np.searchsorted(gaps, limits, side="left") / len(gaps)
    edge = gaps[_few(gaps) - 1]
    even = limits / edge * _few(gaps) / len(gaps) if edge > 0 else share
    return np.where(limits < edge, even, share)

"""Estimate how often the decisions of two models agree, from few samples.

Counting is not enough: a few samples cannot show one changed decision in hundreds.

A decision changes if the quantization noise exceeds the gap between the two largest scores. If gap and noise
are independent, every observed gap can be combined with every observed noise of either sign:

    P(change) = mean over noises n of P(gap < |n|) / 2

Gaps depend on the float model only, so they come from all samples, including those to fit on. Noises come
from held-out samples only, between any two of the `RIVALS` largest scores. Two deviations are corrected. In
some networks confident decisions have more noise than close ones, so noises come from the half of the
decisions with the smaller gaps. There are few very small gaps, so below the quantile `SMOOTHED` their density
is taken as constant, which is a good approximation near zero.

The result is the estimate minus its standard error. Otherwise a search over many candidates would select one
that reaches the goal by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.verify.outputs.tally import class_axis

Doubles = NDArray[np.float64]

RIVALS = 3
"""The number of largest scores of a decision that are used."""

SMOOTHED = 0.2
"""The share of the gaps, the smallest ones, whose density is taken as constant."""

KEPT_DECISIONS = 10_000
"""The largest number of decisions of one output of one batch; of more, evenly spaced ones are used."""

RESOLVED = 10
"""The expected number of changed decisions, for a model exactly at the goal, from which counting is used."""


@dataclass
class Margins:
    """The gaps and the quantization noise of one output.

    Attributes:
        gaps: the gaps between the two largest scores of the float model, on samples to fit on.
        held: the largest float scores of each batch of held-out samples, ``[decisions, rivals]``, in
            decreasing order.
        errors: the quantization noise of these scores, in the same shape.
    """

    gaps: Doubles
    held: list[Doubles] = field(default_factory=list)
    errors: list[Doubles] = field(default_factory=list)

    def look(self, expected: Any, given: Any) -> None:
        """Add a held-out batch: the output of the float model and the output of the quantized model."""
        pair = _rivals(expected, given)
        if pair is not None and len(pair[0]):
            self.held.append(pair[0])
            self.errors.append(pair[1] - pair[0])

    def agreement(self) -> float | None:
        """Estimate the share of equal decisions (0 ... 1), minus its standard error; None without scores."""
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
        """Whether counting the held-out decisions is precise enough for a limit of ``limit`` (0 ... 1)."""
        return sum(map(len, self.held)) * (1 - limit) >= RESOLVED


def float_gaps(outputs: Sequence[Any]) -> list[Doubles]:
    """Return the gaps between the two largest scores of each output; empty for outputs without scores."""
    return [np.empty(0) if (pair := _rivals(one, one)) is None else _gaps(pair[0]) for one in outputs]


def joined(parts: Iterable[Doubles]) -> Doubles:
    """Concatenate ``parts``."""
    return np.concatenate([np.empty(0), *parts])


def _rivals(expected: Any, given: Any) -> tuple[Doubles, Doubles] | None:
    """Return the largest scores of each decision in ``expected``, and the same classes' scores in ``given``.

    Both have the shape ``[decisions, rivals]``. The result is None for outputs without scores.
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
    """Return the share of the sorted ``gaps`` below each of ``limits``.

    The share grows linearly up to the quantile `SMOOTHED`.
    """
    share = np.searchsorted(gaps, limits, side="left") / len(gaps)
    edge = gaps[_few(gaps) - 1]
    even = limits / edge * _few(gaps) / len(gaps) if edge > 0 else share
    return np.where(limits < edge, even, share)

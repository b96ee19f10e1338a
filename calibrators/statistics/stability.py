"""How much data is enough: how long a range still grew, and whether one sample alone made it so wide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrators.statistics.sample_extremes import SampleExtremes
from calibrators.statistics.tensor import Extreme, TensorStatistics

FEWEST = 5
"""Samples with finite values below which nothing is said: their last quarter is not even one sample."""

GREW = 0.1
"""Growth that counts. Steps of the grid that are 10 % too narrow or too wide are about 1 dB of noise."""

ALONE = 0.25
"""Shrinkage that counts: a quarter of the range, about 2.5 dB for all samples, spent on one of them."""


@dataclass(frozen=True)
class Stability:
    """How the range of a tensor came about. Ranges are taken to hold zero, as the deployed ones do.

    Attributes:
        growth: the share (0 … 1) of the range that came with the last quarter of the samples; None if
            there were too few to tell.
        low, high: what set the ends; None where zero is the end, or several samples reached it.
        setter: the end whose sample, if it were missing, would shrink the range most; None if there is
            none, or it is unknown.
        alone: the share (0 … 1) by which it would shrink; None if unknown, as when there were too few
            samples, or so many that the extremes of each are not kept.
    """

    growth: float | None
    low: Extreme | None
    high: Extreme | None
    setter: Extreme | None = None
    alone: float | None = None


def stability(statistics: TensorStatistics, *, symmetric: bool = False) -> Stability:
    """How the extremes of ``statistics`` came about.

    Where a range is narrower than the extremes, give ``statistics.clipped(*range)``: what lies outside
    makes no difference, so it neither grows the range nor sets it. Of a ``symmetric`` range only the
    end farther from zero counts, since the other one follows from it.
    """
    trail, low, high = (_magnitudes if symmetric else _ends)(statistics)
    if len(trail.seen()[0]) < FEWEST:
        return Stability(None, low, high)
    if trail.block > 1:
        return Stability(_growth(trail), low, high)
    ends = [(_shrinkage(trail, end), end) for end in (low, high) if end is not None]
    alone, setter = max(ends, key=lambda pair: pair[0], default=(0.0, None))
    return Stability(_growth(trail), low, high, setter, alone)


def _ends(statistics: TensorStatistics) -> tuple[SampleExtremes, Extreme | None, Extreme | None]:
    """The extremes of each sample, and who alone set the low and the high end."""
    trail = statistics.trail
    low = _sole(statistics.lowest, trail.lows, trail.lows.min(initial=0))
    return trail, low, _sole(statistics.highest, trail.highs, trail.highs.max(initial=0))


def _magnitudes(statistics: TensorStatistics) -> tuple[SampleExtremes, Extreme | None, Extreme | None]:
    """As `_ends`, with the greatest magnitude of each sample for its high end, and zero for its low one."""
    trail = statistics.trail
    highs = np.maximum(-trail.lows, trail.highs)
    trail = SampleExtremes(np.zeros_like(highs), highs, trail.block)
    greatest = highs.max(initial=0)
    if -statistics.low > statistics.high:
        return trail, _sole(statistics.lowest, highs, greatest), None
    return trail, None, _sole(statistics.highest, highs, greatest)


def _sole(end: Extreme, ends: NDArray[np.float32], outermost: np.float32) -> Extreme | None:
    """``end`` if that of one entry alone is the ``outermost``, and that is not zero."""
    return end if outermost and np.count_nonzero(ends == outermost) == 1 else None


def _growth(trail: SampleExtremes) -> float:
    lows, highs = trail.seen()
    early = len(lows) - len(lows) // 4
    return _missing(_width(lows[:early], highs[:early]), _width(lows, highs))


def _shrinkage(trail: SampleExtremes, end: Extreme) -> float:
    others = np.arange(len(trail.lows)) != end.number
    return _missing(_width(trail.lows[others], trail.highs[others]), _width(trail.lows, trail.highs))


def _width(lows: NDArray[np.float32], highs: NDArray[np.float32]) -> float:
    """Of the range that holds zero and them all; those of samples without finite values are infinite."""
    return float(highs.max(initial=0)) - float(lows.min(initial=0))


def _missing(part: float, whole: float) -> float:
    """The share of ``whole`` that ``part`` lacks."""
    return 1 - part / whole if whole else 0.0


@dataclass(frozen=True)
class RunStability:
    """What the tensors of a run tell together.

    Attributes:
        judged: tensors of which something can be said.
        grown: those whose ranges still grew by more than `GREW`, the most first.
        outliers: sample -> tensors whose range it alone widens by more than `ALONE`, the most first.
    """

    judged: int
    grown: tuple[str, ...]
    outliers: Mapping[str, tuple[str, ...]]

    @property
    def sentences(self) -> tuple[str, ...]:
        """For people: whether there was enough data, and which sample to look at."""
        if not self.judged:
            return (f"cannot be told: at least {FEWEST} samples are needed, and finite values in them",)
        return (self._settled(), *self._outlier())

    def _settled(self) -> str:
        if not self.grown:
            return f"settled, none grew by more than {GREW:.0%} over the last quarter of the samples"
        return (
            f"those of {len(self.grown)} of {_tensors(self.judged)} still grew by more than {GREW:.0%} over "
            "the last quarter of the samples: more samples may help"
        )

    def _outlier(self) -> tuple[str, ...]:
        if not self.outliers:
            return ()
        sample, tensors = next(iter(self.outliers.items()))
        return (
            f"without {sample} alone, those of {_tensors(len(tensors))} would be narrower by more than "
            f"{ALONE:.0%}: look at it",
        )


def run_stability(tensors: Mapping[str, Stability]) -> RunStability:
    """What the stability of each tensor tells of the run."""
    growths = {name: each.growth for name, each in tensors.items() if each.growth is not None}
    grown = sorted((name for name, growth in growths.items() if growth > GREW), key=lambda n: -growths[n])
    outliers: dict[str, list[str]] = defaultdict(list)
    for name, each in tensors.items():
        if each.setter is not None and each.alone is not None and each.alone > ALONE:
            outliers[each.setter.name or f"sample {each.setter.number + 1}"].append(name)
    by_count = sorted(outliers.items(), key=lambda pair: -len(pair[1]))
    return RunStability(len(growths), tuple(grown), {sample: tuple(names) for sample, names in by_count})


def _tensors(count: int) -> str:
    return f"{count} tensor" + ("" if count == 1 else "s")

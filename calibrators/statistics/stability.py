"""Was there enough data: did ranges still grow at the end, and did one sample alone widen them?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrators.statistics.sample_extremes import SampleExtremes
from calibrators.statistics.tensor import Extreme, TensorStatistics

FEWEST = 5
"""Least number of samples with finite values; with fewer, the last quarter is not even one sample."""

GREW = 0.1
"""Share of growth that is reported. A grid step that is 10 % too small or too large costs about 1 dB."""

ALONE = 0.25
"""Share of the range, due to one sample, that is reported; it costs all samples about 2.5 dB."""


@dataclass(frozen=True)
class Stability:
    """How the range of a tensor came about. Ranges are taken to hold zero, as the deployed ones do.

    Attributes:
        growth: share (0 … 1) of the range that the last quarter of the samples added; None if there were
            too few samples to tell.
        low, high: the extremes that set the ends; None if the end is zero, or several samples reached it.
        setter: the end whose sample widens the range most, compared with the range without that sample; None
            if there is none, or it is unknown.
        alone: the share (0 … 1) by which the range would shrink without that sample; None if unknown: there
            were too few samples, or so many that the extremes of each are not kept.
    """

    growth: float | None
    low: Extreme | None
    high: Extreme | None
    setter: Extreme | None = None
    alone: float | None = None


def stability(statistics: TensorStatistics, *, symmetric: bool = False) -> Stability:
    """Evaluate how the extremes of ``statistics`` came about.

    For a range that is narrower than the extremes, pass ``statistics.clipped(*range)``, since values outside
    the range neither widen nor set it. For a ``symmetric`` range only the end farther from zero counts,
    because the other end follows from it.
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
    """Return the extremes of each sample, and the low and the high end if a single sample set it."""
    trail = statistics.trail
    low = _sole(statistics.lowest, trail.lows, trail.lows.min(initial=0))
    return trail, low, _sole(statistics.highest, trail.highs, trail.highs.max(initial=0))


def _magnitudes(statistics: TensorStatistics) -> tuple[SampleExtremes, Extreme | None, Extreme | None]:
    """Do the same as `_ends` with the greatest magnitude of each sample as high end and zero as low end."""
    trail = statistics.trail
    highs = np.maximum(-trail.lows, trail.highs)
    trail = SampleExtremes(np.zeros_like(highs), highs, trail.block)
    greatest = highs.max(initial=0)
    if -statistics.low > statistics.high:
        return trail, _sole(statistics.lowest, highs, greatest), None
    return trail, None, _sole(statistics.highest, highs, greatest)


def _sole(end: Extreme, ends: NDArray[np.float32], outermost: np.float32) -> Extreme | None:
    """Return ``end`` if exactly one entry reaches the ``outermost`` value, and that is not zero."""
    return end if outermost and np.count_nonzero(ends == outermost) == 1 else None


def _growth(trail: SampleExtremes) -> float:
    lows, highs = trail.seen()
    early = len(lows) - len(lows) // 4
    return _missing(_width(lows[:early], highs[:early]), _width(lows, highs))


def _shrinkage(trail: SampleExtremes, end: Extreme) -> float:
    others = np.arange(len(trail.lows)) != end.number
    return _missing(_width(trail.lows[others], trail.highs[others]), _width(trail.lows, trail.highs))


def _width(lows: NDArray[np.float32], highs: NDArray[np.float32]) -> float:
    """The width of the range that holds zero and all entries; entries without finite values are infinite."""
    return float(highs.max(initial=0)) - float(lows.min(initial=0))


def _missing(part: float, whole: float) -> float:
    """The share of ``whole`` that ``part`` lacks."""
    return 1 - part / whole if whole else 0.0


@dataclass(frozen=True)
class RunStability:
    """The stability of the ranges of a whole run.

    Attributes:
        assessed: number of tensors that could be evaluated.
        grown: tensors whose ranges still grew by more than `GREW`, sorted by growth, largest first.
        outliers: sample -> tensors whose range it alone widens by more than `ALONE`; the sample with the
            most tensors first.
    """

    assessed: int
    grown: tuple[str, ...]
    outliers: Mapping[str, tuple[str, ...]]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Sentences for the user: whether there was enough data, and which sample to inspect."""
        if not self.assessed:
            return (f"unknown: at least {FEWEST} samples with finite values are needed",)
        return (self._settled(), *self._outlier())

    def _settled(self) -> str:
        if not self.grown:
            return f"settled, none grew by more than {GREW:.0%} over the last quarter of the samples"
        return (
            f"those of {len(self.grown)} of {_tensors(self.assessed)} still grew by more than {GREW:.0%} "
            "over the last quarter of the samples: more samples may help"
        )

    def _outlier(self) -> tuple[str, ...]:
        if not self.outliers:
            return ()
        sample, tensors = next(iter(self.outliers.items()))
        return (
            f"without {sample} alone, those of {_tensors(len(tensors))} would be narrower by more than "
            f"{ALONE:.0%}: inspect that sample",
        )


def run_stability(tensors: Mapping[str, Stability]) -> RunStability:
    """Summarize the stability of all tensors of a run."""
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

"""What calibration decided for the activations of a plan, and on what grounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from calibrators.statistics import TensorStatistics
from calibrators.statistics.stability import Stability, stability
from onnxq.core.plan import Group, QuantParams, QuantPlan
from onnxq.pipelines.report.chart import cumulative


@dataclass(frozen=True)
class Activation:
    """Tensors that share a range.

    Attributes:
        group: which.
        params: their scale and zero point.
        low, high: the least and greatest number that their integers stand for.
        seen: what was seen of them, cut to what their readers can tell apart; None if nothing was
            observed, as for ranges that are fixed or come from a table.
        clipped: the share (0 … 1) of the values seen that lie more than half a step outside the range.
        stability: how that part of the range came about that was chosen.
    """

    group: Group
    params: QuantParams
    low: float
    high: float
    seen: TensorStatistics | None = None
    clipped: float | None = None
    stability: Stability | None = None


def activations(plan: QuantPlan, statistics: Mapping[str, TensorStatistics] | None) -> Iterator[Activation]:
    """All groups of activations of a plan with parameters, in its order."""
    for group in plan.groups.values():
        if not group.constant:
            yield _activation(group, plan.params[group.name], statistics or {})


def judged(plan: QuantPlan, statistics: Mapping[str, TensorStatistics]) -> dict[str, Stability]:
    """How the range of each group of activations came about that has statistics."""
    known = activations(plan, statistics)
    return {each.group.name: each.stability for each in known if each.stability is not None}


def _activation(group: Group, params: QuantParams, statistics: Mapping[str, TensorStatistics]) -> Activation:
    scale, zero_point = float(params.scale), int(params.zero_point)
    low, high = ((limit - zero_point) * scale for limit in group.spec.limits)
    observed = [statistics[name] for name in group.observed_tensors if name in statistics]
    if not observed:
        return Activation(group, params, low, high)
    seen = reduce(TensorStatistics.join, observed).clipped(*group.bounds)
    clipped = _outside(seen, low - scale / 2, high + scale / 2)
    known = stability(seen.clipped(low, high), symmetric=group.spec.symmetric)
    return Activation(group, params, low, high, seen, clipped, known)


def _outside(seen: TensorStatistics, low: float, high: float) -> float:
    """The share of values outside; within a bin of the histogram they are taken to be spread evenly."""
    if low <= seen.low and seen.high <= high:
        return 0.0
    below, up_to, total = cumulative(seen.histogram, np.array([low, high, np.inf]))
    return float(1 - (up_to - below) / total) if total else 0.0

"""The ranges of the activations of a plan, with the statistics that they are based on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from calibrators.statistics import TensorStatistics
from calibrators.statistics.stability import Stability, stability
from onnxq.core.numerics import grid_of
from onnxq.core.plan import Group, QuantParams, QuantPlan
from onnxq.pipelines.report.chart import cumulative


@dataclass(frozen=True)
class Activation:
    """The range of a group of tensors that share it.

    Attributes:
        group: the group.
        params: its scale and zero point.
        low, high: the least and greatest value that its integers represent.
        seen: the statistics of its tensors, clipped to the bounds of the group; None if nothing was observed,
            because the range is fixed or comes from a table.
        clipped: the share (0 … 1) of the observed values more than half a step outside the range.
        stability: the growth of the chosen range over the samples, and the samples that set its ends.
    """

    group: Group
    params: QuantParams
    low: float
    high: float
    seen: TensorStatistics | None = None
    clipped: float | None = None
    stability: Stability | None = None


def activations(plan: QuantPlan, statistics: Mapping[str, TensorStatistics] | None) -> Iterator[Activation]:
    """Yield all groups of activations of a plan with parameters, in its order."""
    for group in plan.groups.values():
        if not group.constant:
            yield _activation(group, plan.params[group.name], statistics or {})


def stabilities(plan: QuantPlan, statistics: Mapping[str, TensorStatistics]) -> dict[str, Stability]:
    """Get the stability of each group of activations with statistics: group name -> stability."""
    known = activations(plan, statistics)
    return {each.group.name: each.stability for each in known if each.stability is not None}


def _activation(group: Group, params: QuantParams, statistics: Mapping[str, TensorStatistics]) -> Activation:
    scale, zero_point = float(params.scale), int(params.zero_point)
    low, high = ((limit - zero_point) * scale for limit in group.spec.limits)
    observed = [statistics[name] for name in group.observed_tensors if name in statistics]
    if not observed:
        return Activation(group, params, low, high)
    seen = reduce(TensorStatistics.join, observed).clipped(*group.bounds)
    last = np.array([group.spec.limits[1]], np.float64)
    half = scale * grid_of(group.spec).spacing(last).item() / 2
    clipped = _outside(seen, low - half, high + half)
    known = stability(seen.clipped(low, high), symmetric=group.spec.symmetric)
    return Activation(group, params, low, high, seen, clipped, known)


def _outside(seen: TensorStatistics, low: float, high: float) -> float:
    """Compute the share of values outside; values are assumed to be spread evenly within a bin."""
    if low <= seen.low and seen.high <= high:
        return 0.0
    below, up_to, total = cumulative(seen.histogram, np.array([low, high, np.inf]))
    return float(1 - (up_to - below) / total) if total else 0.0

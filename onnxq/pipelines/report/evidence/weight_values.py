"""The values of quantized constants in units of what their integers can represent, and what is clipped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.core.numerics import grid_of, spread
from onnxq.core.plan import Group, QuantParams, QuantPlan
from onnxq.graph.nodes import constant_value

COLUMNS = 64
REACH = 1.25
"""The histogram goes from minus to plus this many times the limit; what lies beyond is in its last column."""


@dataclass(frozen=True)
class WeightValues:
    """The values of the constants of one group.

    Attributes:
        low, high: the least and the greatest value.
        counts: ``[COLUMNS]``: the values, each divided by the greatest that its channel represents.
        clipped: the share (0 … 1) of values more than half a step outside the range.
    """

    low: float
    high: float
    counts: NDArray[np.float64]
    clipped: float


def weight_values(reference: ir.Model, plan: QuantPlan) -> dict[str, WeightValues]:
    """Measure the constants of each group whose values are in the main graph.

    Args:
        reference: the float model that the plan is for.
        plan: the plan, with parameters.
    """
    found = {}
    for name, group in plan.groups.items():
        if not group.constant or name not in plan.params:
            continue
        held = map(reference.graph.initializers.get, group.tensors)
        arrays = [array for value in held if (array := constant_value(value)) is not None and array.size]
        if arrays:
            found[name] = _measured(arrays, group, plan.params[name])
    return found


def _measured(arrays: list[NDArray[np.generic]], group: Group, params: QuantParams) -> WeightValues:
    counts, outside, total = np.zeros(COLUMNS), 0, 0
    lows, highs = [], []
    for array in arrays:
        real = array.astype(np.float32)
        scale, zero = (
            spread(part, group.spec, real.shape).astype(np.float32)
            for part in (params.scale, params.zero_point)
        )
        steps = real / np.where(scale > 0, scale, 1) + zero
        low, high = group.spec.limits
        half = grid_of(group.spec).spacing(np.array([high], np.float64)).item() / 2
        outside += int(np.count_nonzero((steps < low - half) | (steps > high + half)))
        total += real.size
        relative = np.clip((steps - zero) / max(abs(low), high), -REACH, REACH)
        counts += np.histogram(relative, COLUMNS, (-REACH, REACH))[0]
        lows.append(float(real.min()))
        highs.append(float(real.max()))
    return WeightValues(min(lows), max(highs), counts, outside / total)

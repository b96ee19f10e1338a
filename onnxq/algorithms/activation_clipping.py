"""Clipping of activation ranges where that reduces the error at the outputs of the model.

A calibration method chooses a range by the error of the tensor itself. How much of this error reaches the
outputs depends on all nodes downstream. So a few smaller ranges are evaluated for each tensor: only this
tensor is quantized, and the error is measured at the outputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.sensitivity.analysis import sensitivities
from onnxq.core.numerics import dequantize
from onnxq.core.plan import Group, QuantParams

MULTIPLES = (0.9, 0.8, 0.7)
"""Factors of the calibrated scale to try, besides 1. Below 0.7 the clipping error grows fast."""


SAMPLES = 64
"""Number of samples for the evaluation. The clipping error varies between samples far more than the rounding
error, so more samples are needed than for rounding alone."""


def tighten_ranges(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Give each group of activations the scale with the least output noise when it alone is quantized.

    The candidates are the calibrated scale and its `MULTIPLES`. Returns None where no range can be clipped.
    """
    names = [group.name for group in draft.plan.groups.values() if _is_open(draft, group)]
    if not names:
        return None
    least = _noises(draft, names, context)
    params = dict(draft.plan.params)
    for multiple in MULTIPLES:
        tried = {name: _scaled(draft.plan.params[name], multiple) for name in names}
        plan = draft.plan.with_params({**draft.plan.params, **tried})
        for name, noise in _noises(replace(draft, plan=plan), names, context).items():
            if noise < least[name]:
                least[name], params[name] = noise, tried[name]
    return replace(draft, plan=draft.plan.with_params(params))


def _is_open(draft: Draft, group: Group) -> bool:
    """Whether the range is calibrated, and ends inside the bounds of what the producer can compute."""
    if not group.observed_tensors:
        return False
    params, ends = draft.plan.params[group.name], np.asarray(group.spec.limits)
    low, high = dequantize(ends, params, group.spec)
    step = float(params.scale)
    return bool(low > group.bounds[0] + step or high < group.bounds[1] - step)


def _noises(draft: Draft, names: list[str], context: CorrectionContext) -> dict[str, float]:
    return {one.group.name: one.quality.noise for one in sensitivities(draft, context, names, SAMPLES)}


def _scaled(params: QuantParams, multiple: float) -> QuantParams:
    return QuantParams(np.asarray(params.scale * multiple, np.float32), params.zero_point)

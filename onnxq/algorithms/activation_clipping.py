"""Ranges of activations, cut where that lessens the error at the outputs.

A method chooses a range by what it does to the tensor itself. How much of that reaches the outputs depends on
all that lies behind: so a few smaller ranges are tried for each tensor, alone, all the way through the model.
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
"""Of the scale, beside 1. What is clipped grows fast below."""


SAMPLES = 64
"""What is clipped differs from sample to sample far more than what is rounded."""


def tighten_ranges(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Give every group of activations the scale, of a few, with which it alone does least harm."""
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
    """Whether the range was chosen, and ends before what the producer could give at most."""
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

"""The ranges of activations that give the least error at the outputs of the model.

A calibration method chooses a range by the error of the tensor itself. How much of this error reaches the
outputs depends on all nodes downstream: in one network the largest values decide, in the next one they are
noise. So other methods are tried on the whole model. Where one helps, they are tried on each half of it, on
each quarter, and so on, as long as that helps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from calibrators.methods import CALIBRATORS
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.effect import gain
from onnxq.algorithms.weights.bias_correction import correct_biases
from onnxq.calibration.qparams import compute_qparams, from_statistics
from onnxq.core.plan import Group, QuantParams

METHODS = ("mse", "minmax")
"""The methods to try besides the one that the draft has its ranges from."""

BATCHES = 16
"""The number of batches to evaluate on; a correction is validated on held-out samples afterwards."""

MOST_PARTS = 8
"""The largest number of parts that the model is divided into."""

LEAST_GAIN = 1.0
"""By how many dB other ranges must be better: smaller gains on few samples are chance."""

Params = Mapping[str, QuantParams]
"""Parameters by name of the group."""


def choose_ranges(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Give parts of the model the ranges of another calibration method, where that reduces the output noise.

    Args:
        draft: the calibrated draft.
        context: the samples to fit on, the options, and the time there is.

    Returns:
        The draft with other ranges; None if they are not known by statistics, if the user has chosen a
        method, or if no other range is better.

    Raises:
        CalibrationError: a model does not load, or rejects a sample.
    """
    groups = [group for group in draft.plan.groups.values() if _is_open(group, draft)]
    if context.config.method != "auto" or not groups:
        return None
    best = start = _Trial.of(draft, context)
    for parts in _levels(groups):
        before = best
        for part, method in ((part, method) for part in parts for method in METHODS):
            best = best.or_better(_other(draft, part, method))
        if best is before or not context.budget.left > 2 * len(parts) * len(METHODS) * best.seconds:
            break
    return None if best is start else best.draft


def _is_open(group: Group, draft: Draft) -> bool:
    """Whether the range is observed, by the method for all groups."""
    return bool(
        group.observed_tensors
        and group.method is None
        and group.fixed is None
        and all(name in draft.statistics for name in group.observed_tensors)
    )


def _levels(groups: Sequence[Group]) -> Iterator[list[Sequence[Group]]]:
    """Yield all groups as one part, as two parts in graph order, as four, ..."""
    count = 1
    while count <= min(MOST_PARTS, len(groups)):
        ends = [len(groups) * i // count for i in range(count + 1)]
        yield [groups[one:other] for one, other in pairwise(ends)]
        count *= 2


def _other(draft: Draft, part: Sequence[Group], method: str) -> Params:
    """Compute the parameters of the groups in ``part`` by another method."""
    source = from_statistics(draft.statistics, CALIBRATORS[method])
    plan = replace(draft.plan, groups={group.name: group for group in part}, biases=())
    return compute_qparams(draft.reference, plan, source).params


@dataclass(frozen=True)
class _Trial:
    """A draft, its noise on a few batches with corrected biases, and how long that took, in seconds."""

    draft: Draft
    context: CorrectionContext
    noise: float
    seconds: float

    @classmethod
    def of(cls, draft: Draft, context: CorrectionContext) -> _Trial:
        started = time.perf_counter()
        context = context.on_fit(BATCHES)
        return cls(draft, context, _noise(draft, context), time.perf_counter() - started)

    def or_better(self, params: Params) -> _Trial:
        """Return the draft with other parameters if that is better, else this one."""
        if all(params[name] == self.draft.plan.params[name] for name in params):
            return self
        started, plan = time.perf_counter(), self.draft.plan
        other = replace(self.draft, plan=plan.with_params({**plan.params, **params}))
        noise = _noise(other, self.context)
        if not gain(self.noise, noise) > LEAST_GAIN:
            return self
        return _Trial(other, self.context, noise, time.perf_counter() - started)


def _noise(draft: Draft, context: CorrectionContext) -> float:
    return context.error(correct_biases(draft, context) or draft)

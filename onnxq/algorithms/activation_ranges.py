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
from itertools import pairwise, product

from calibrators.methods import CALIBRATORS
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.effect import gain
from onnxq.algorithms.weights.bias_correction import correct_biases
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics
from onnxq.core.plan import Group, QuantParams, QuantPlan

METHODS = ("mse", "minmax", "percentile", "entropy")
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
    others = [_by_method(draft, groups, method) for method in METHODS]
    best = start = _Trial.of(draft, context)
    for parts in _levels([group.name for group in groups]):
        before = best
        for part, other in product(parts, others):
            if context.budget.left > best.seconds:
                best = best.or_better({name: other[name] for name in part})
        next_level = 2 * len(parts) * len(METHODS)  # evaluations
        if best is before or context.budget.left < next_level * best.seconds:
            break
    return None if best is start else best.draft


def _is_open(group: Group, draft: Draft) -> bool:
    """Whether the range is observed, by the method for all groups.

    On floating-point grids the methods differ too little to be worth the time.
    """
    return bool(
        group.observed_tensors
        and not group.spec.is_floating
        and group.method is None
        and group.fixed is None
        and all(name in draft.statistics for name in group.observed_tensors)
    )


def _by_method(draft: Draft, groups: Sequence[Group], method: str) -> Params:
    """Compute the parameters of ``groups`` by another method."""
    source = from_statistics(draft.statistics, CALIBRATORS[method])
    plan = replace(draft.plan, groups={group.name: group for group in groups}, biases=())
    return compute_qparams(draft.reference, plan, source).params


def _levels(names: Sequence[str]) -> Iterator[list[Sequence[str]]]:
    """Yield all groups as one part, as two parts in graph order, as four, ..."""
    count = 1
    while count <= min(MOST_PARTS, len(names)):
        ends = [len(names) * i // count for i in range(count + 1)]
        yield [names[one:other] for one, other in pairwise(ends)]
        count *= 2


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
        started = time.perf_counter()
        other = replace(self.draft, plan=self._with(params))
        noise = _noise(other, self.context)
        if not gain(self.noise, noise) > LEAST_GAIN:
            return self
        return _Trial(other, self.context, noise, time.perf_counter() - started)

    def _with(self, params: Params) -> QuantPlan:
        """Return the plan with other ``params``; weight scales are raised where a bias needs it."""
        draft, known = self.draft, {**self.draft.plan.params, **params}
        source = from_statistics(draft.statistics, calibrator(self.context.config))
        return compute_qparams(draft.reference, draft.plan, source, known)


def _noise(draft: Draft, context: CorrectionContext) -> float:
    return context.error(correct_biases(draft, context) or draft)

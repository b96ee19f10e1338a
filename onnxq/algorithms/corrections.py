"""The corrections by name, in the order in which they are tried; each is validated on held-out samples."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import groupby, permutations

import numpy as np

import calibrators.errors
from onnxq.algorithms.activation_ranges import choose_ranges
from onnxq.algorithms.budget import Budget, TooLongError, clock_of, time_limit
from onnxq.algorithms.channels.center import center
from onnxq.algorithms.channels.equalize import equalize
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.effect import Effect, gain
from onnxq.algorithms.weights.adaround import learn_rounding
from onnxq.algorithms.weights.bias_correction import correct_biases, correct_biases_in_order
from onnxq.algorithms.weights.sequential_gptq import sequential_gptq
from onnxq.algorithms.weights.soft_rounding import check_torch
from onnxq.core.config import QuantConfig
from onnxq.core.errors import OnnxqError
from onnxq.core.floor import Floor
from onnxq.verify.accuracy import Quality

logger = logging.getLogger(__name__)

__all__ = ["CORRECTIONS", "Correction", "CorrectionContext", "Draft", "Effect", "correct"]


Correction = Callable[[Draft, CorrectionContext], Draft | None]
"""Returns a corrected draft, or None where there is nothing to correct."""


FINISH = "bias"
"""Bias correction takes little time and removes most of the shifts of the means that other corrections cause.
So the other corrections are evaluated with it applied after them."""


OWN_BIASES = ("rounding", "adaround", "full-bias")
"""Corrections that may fit biases themselves, by outputs after a Relu or Clip: better than `FINISH`, which
knows only means. They are always evaluated without it too."""


CORRECTIONS: Mapping[str, Correction] = {
    FINISH: correct_biases,
    "center": center,
    "equalize": equalize,
    "ranges": choose_ranges,
    "rounding": sequential_gptq,
    "adaround": learn_rounding,
    "full-bias": correct_biases_in_order,
}
"""The corrections by name, in the order in which they are tried, but for `ANY_ORDER`."""


PASSES: Mapping[str, Callable[[Draft], float]] = {
    "center": lambda draft: 5,
    "equalize": lambda draft: 5,
    "ranges": lambda draft: 3,
    "full-bias": lambda draft: 4,
}
"""About how many passes over the samples to fit on a correction and its evaluation take at most.

A pass in which statistics are gathered counts twice. The other corrections take next to nothing, or know best
themselves.
"""


FEWEST = 8
"""The smallest number of batches that a correction is fitted on to save time."""


ANY_ORDER = ("center", "equalize")
"""Corrections each of which may leave the other nothing to do, and which are tried in every order.

A Relu that has been shifted passes no factors on, and a Mul by factors passes no shifts on.
"""


LEAD = 1.0
"""By how many dB another order must be better than the first.

The orders are compared before the later corrections, which often gain more and may reverse a small lead.
"""


def correct(
    draft: Draft, names: Collection[str], context: CorrectionContext, quality: Quality | None = None
) -> tuple[Draft, tuple[Effect, ...]]:
    """Try the corrections called ``names`` one after the other, and keep those that reduce the noise.

    Each correction is applied on top of those kept so far, so the gains of the kept ones add up to the total
    gain. If "bias" is among ``names``, biases are corrected again after each of the others. Those of
    `ANY_ORDER` are tried in every order, and the best order is kept.

    Args:
        draft: the calibrated draft without corrections.
        names: the corrections to try, keys of `CORRECTIONS`; their order does not matter.
        context: the samples to fit on, the held-out samples to validate on, and the time there is.
        quality: the quality of the draft on the held-out samples, if it is known.

    Returns:
        The draft with the kept corrections, and the effect of each correction that was tried.
    """
    chain = _tried(_Evaluated(draft, context, quality), names, context)
    return chain.best.draft, chain.effects


def _tried(start: _Evaluated, names: Collection[str], context: CorrectionContext) -> _Chain:
    chain = _Chain(start.draft, start)
    for stage in _stages(names):
        trials = _Trials(correct_biases if FINISH in names else _no_correction, context)
        chain = reduce(_better, [reduce(trials.extended, order, chain) for order in permutations(stage)])
    return chain


def _stages(names: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Yield the requested corrections in the order of `CORRECTIONS`, those of `ANY_ORDER` together."""
    requested = [name for name in CORRECTIONS if name in names]
    return (tuple(stage) for _, stage in groupby(requested, lambda name: name in ANY_ORDER or name))


@dataclass(frozen=True)
class _Evaluated:
    """A draft with its quality on the held-out samples and on those that were fitted on; lazily computed."""

    draft: Draft
    context: CorrectionContext
    known: Quality | None = None

    @cached_property
    def quality(self) -> Quality:
        return self.context.evaluate(self.draft) if self.known is None else self.known

    @cached_property
    def fitted(self) -> Quality:
        return self.context.fitted(self.draft)

    @property
    def noise(self) -> float:
        return self.quality.noise


@dataclass(frozen=True)
class _Trial:
    """What a correction made of a draft.

    Attributes:
        seconds: the time that the correction and its evaluation took.
        draft: the corrected draft; None where there was nothing to correct, or the correction failed.
        best: the same draft, with corrected biases if they help.
        failed: whether the correction failed unexpectedly.
        too_long: why there was no time for the correction; empty if there was.
        batches: the number of batches that it was fitted on, if there was no time for all; else 0.
    """

    seconds: float
    draft: Draft | None = None
    best: _Evaluated | None = None
    failed: bool = False
    too_long: str = ""
    batches: int = 0


@dataclass(frozen=True)
class _Chain:
    """The corrections tried so far, each on top of those that were kept.

    Attributes:
        base: the draft that the next correction is applied to, without corrected biases.
        best: the same draft, with corrected biases if they help.
        effects: the effect of each correction.
    """

    base: Draft
    best: _Evaluated
    effects: tuple[Effect, ...] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        return tuple(effect.name for effect in self.effects if effect.kept)


def _better(one: _Chain, other: _Chain) -> _Chain:
    """Return ``other`` if it is better by `LEAD` and by `_compare`, else ``one``."""
    if gain(one.best.noise, other.best.noise) <= LEAD:
        return one
    return other if _compare(one.best, other.best)[0] else one


@dataclass(frozen=True)
class _Trials:
    """Applies and evaluates corrections, and remembers the results: several orders may begin alike.

    Attributes:
        finish: the correction of biases, applied after each of the others.
        context: the samples to fit on, and the held-out samples to validate on.
    """

    finish: Correction
    context: CorrectionContext
    _known: dict[tuple[str, ...], _Trial] = field(default_factory=dict)

    def extended(self, chain: _Chain, name: str) -> _Chain:
        """Return ``chain`` with one more correction, which is kept if it helps."""
        key = (*chain.kept, name)
        if key not in self._known:
            self._known[key] = self._trial(chain, name)
        trial = self._known[key]
        effect = _effect(name, chain.best, trial)
        base, best = chain.base, chain.best
        if trial.draft is not None and trial.best is not None and effect.kept:
            base, best = base if name == FINISH else trial.draft, trial.best
        return _Chain(base, best, (*chain.effects, effect))

    def _trial(self, chain: _Chain, name: str) -> _Trial:
        started, budget = time.perf_counter(), self.context.budget
        try:
            draft, batches = self._fitted(name, chain.base)
            best = None if draft is None else self._evaluated(name, draft, chain.best)
        except TooLongError as error:
            reason = f"{error}, {max(budget.left, 0):.0f} of {budget.limit:.0f} s are left; see --time-limit"
            return _Trial(time.perf_counter() - started, too_long=reason)
        except (OnnxqError, calibrators.errors.CalibrationError, MemoryError):
            raise
        except Exception as error:
            logger.warning("correction %s is left out: it failed (%s: %s)", name, type(error).__name__, error)
            logger.debug("where correction %s failed", name, exc_info=True)
            return _Trial(time.perf_counter() - started, failed=True)
        return _Trial(time.perf_counter() - started, draft, best, batches=batches)

    def _fitted(self, name: str, base: Draft) -> tuple[Draft | None, int]:
        """Apply a correction; return on how many batches it was fitted, or 0 if there was time for all.

        Raises:
            TooLongError: there is no time even for few batches.
        """
        for context in _thinned(self.context):
            count = len(context.fit)
            try:
                if name in PASSES:
                    context.budget.check(PASSES[name](base) * count)
                return CORRECTIONS[name](base, context), 0 if context is self.context else count
            except TooLongError as error:
                shortest = error
        raise shortest

    def _evaluated(self, name: str, draft: Draft, before: _Evaluated) -> _Evaluated:
        """Correct the biases of ``draft`` if that helps, and measure the noise.

        Where ``draft`` is better than ``before`` with its biases corrected, it is not tried without that, to
        save time, unless the correction is one of `OWN_BIASES`.
        """
        finished = None if name == FINISH else self.finish(draft, self.context)
        plain = _Evaluated(draft, self.context)
        if finished is None:
            _ = plain.noise  # evaluated here: it may fail, and its time counts
            return plain
        best = _Evaluated(finished, self.context)
        if name not in OWN_BIASES and _helped(before.quality, best.quality):
            return best
        return plain if _helped(best.quality, plain.quality) else best


def _thinned(context: CorrectionContext) -> Iterator[CorrectionContext]:
    """Yield the context with all batches to fit on, with every second one, with every fourth one, ..."""
    yield context
    fit = context.fit
    while len(fit) >= 2 * FEWEST:
        fit = fit[::2]
        yield replace(context, fit=fit)


def _effect(name: str, before: _Evaluated, trial: _Trial) -> Effect:
    if trial.best is None:
        return Effect(
            name,
            before.noise,
            None,
            trial.seconds,
            kept=False,
            failed=trial.failed,
            too_long=trial.too_long,
        )
    kept, fitted = _compare(before, trial.best)
    return Effect(
        name,
        before.noise,
        trial.best.noise,
        trial.seconds,
        kept=kept,
        fitted_gain=fitted,
        batches=trial.batches,
    )


def _compare(before: _Evaluated, after: _Evaluated) -> tuple[bool, float | None]:
    """Return whether ``after`` is better, and the gain in dB on samples that were fitted on if they decided.

    The quality on samples that were fitted on is biased towards the fit. They count, together with the
    held-out samples, only where the held-out samples alone do not decide. Then the noise of all of them
    decides, however small the change: a correction lowers the noise by design, and few samples hide it.
    """
    helped = _helped(before.quality, after.quality)
    if helped is not None:
        return helped, None
    together = _pooled(after) < _pooled(before)
    return together, gain(before.fitted.noise, after.fitted.noise)


def _pooled(evaluated: _Evaluated) -> float:
    """Return the noise, pooled over the held-out samples and those that were fitted on."""
    both = evaluated.quality, evaluated.fitted
    return sum(quality.noise * quality.samples for quality in both)


def _helped(before: Quality, after: Quality) -> bool | None:
    """Whether the noise fell; None if the change is within one standard error of the sum over all batches."""
    changes = np.array(after.each) - np.array(before.each)
    if len(changes) > 1 and np.isfinite(changes).all():
        error = np.std(changes, ddof=1) * math.sqrt(len(changes))
        if 0 < abs(changes.sum()) <= error:
            return None
    return not (math.isnan(after.noise) or after.noise >= before.noise)


def _no_correction(draft: Draft, context: CorrectionContext) -> Draft | None:
    return None


def check_correctable(config: QuantConfig) -> None:
    """Check that the packages that the requested corrections need are installed.

    Raises:
        ConfigError: a package is missing.
    """
    if "adaround" in config.correct and "none" not in config.correct:
        check_torch()


@dataclass(frozen=True)
class Corrected:
    """A draft with the corrections that help.

    Attributes:
        draft: the draft.
        effects: the effect of each correction that was tried.
        quality: the quality of the draft on the held-out samples; None if it was not measured.
    """

    draft: Draft
    effects: tuple[Effect, ...] = ()
    quality: Quality | None = None


def corrected(draft: Draft, context: CorrectionContext, spent: float) -> Corrected:
    """Apply the requested corrections that help; none without real held-out samples.

    Args:
        draft: the calibrated draft.
        context: the samples and the options, among them the time limit.
        spent: how long calibration took, in seconds.
    """
    names = to_try(context)
    if not names:
        return Corrected(draft)
    clock = clock_of(context.config)
    done = [clock()]
    quality = context.evaluator.evaluate(draft.quantized(), lambda _: done.append(clock()))
    ran = done[1:] if len(done) > 2 else done  # before the first one, a model was loaded
    each = (ran[-1] - ran[0]) / max(len(ran) - 1, 1)
    spent += context.samples.elsewhere * each / 2
    floor = context.config.floor
    useless = bool(floor) and not quality.holds(Floor(floor))
    limit = time_limit(context.config, draft.plan, spent + done[-1] - done[0], useless=useless)
    budget = Budget(limit, each / 2, clock)  # both models ran
    context = replace(context, budget=budget)
    chain = _tried(_Evaluated(draft, context, quality), names, context)
    return Corrected(chain.best.draft, chain.effects, chain.best.quality)


def to_try(context: CorrectionContext) -> tuple[str, ...]:
    """Return the names of the requested corrections; none without real held-out samples."""
    requested = context.config.correct
    return requested if context.can_validate and "none" not in requested else ()

"""The corrections by name, in the order in which they are tried; each is kept if held-out samples gain."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np

from onnxq.algorithms.activation_clipping import tighten_ranges
from onnxq.algorithms.channels.center import center
from onnxq.algorithms.channels.equalize import equalize
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.weights.adaround import learn_rounding
from onnxq.algorithms.weights.bias_correction import correct_biases, correct_biases_in_order
from onnxq.algorithms.weights.sequential_gptq import sequential_gptq
from onnxq.algorithms.weights.soft_rounding import check_torch
from onnxq.core.config import QuantConfig
from onnxq.verify.accuracy import Quality

__all__ = ["CORRECTIONS", "Correction", "CorrectionContext", "Draft", "Effect", "correct"]


Correction = Callable[[Draft, CorrectionContext], Draft | None]
"""Gives a changed draft, or None where there is nothing that it could change."""


FINISH = "bias"
"""Costs next to nothing, and makes up for most of what the others do to the means: they are judged with it on
top of them, and not by shifts that it would take away anyway."""


CORRECTIONS: Mapping[str, Correction] = {
    FINISH: correct_biases,
    "center": center,
    "equalize": equalize,
    "ranges": tighten_ranges,
    "rounding": sequential_gptq,
    "adaround": learn_rounding,
    "full-bias": correct_biases_in_order,
}
"""In the order in which they are tried."""


@dataclass(frozen=True)
class Effect:
    """What one correction gave, on held-out samples.

    Attributes:
        name: the correction's.
        before, after: noise over signal at the outputs; ``after`` is None where there was nothing to do.
        seconds: what it took, its trial included.
        kept: whether it helped.
        fitted_gain: in dB, on the samples that were fitted on; only where they helped to decide, because what
            the held-out ones gained or lost may be chance.
    """

    name: str
    before: float
    after: float | None
    seconds: float
    kept: bool
    fitted_gain: float | None = None

    @property
    def gain(self) -> float:
        """Of the SQNR, in dB; negative if it did harm."""
        return 0.0 if self.after is None else _gain(self.before, self.after)

    @property
    def outcome(self) -> str:
        """What came of it, in words."""
        if self.after is None:
            return "nothing to do"
        if self.fitted_gain is not None:
            kept = "kept" if self.kept else "dropped"
            fitted = f"{self.fitted_gain:+.2f} dB on samples that were fitted on"
            return f"{kept}, SQNR {self.gain:+.2f} dB may be chance; {fitted}"
        if self.kept:
            return f"SQNR {self.gain:+.2f} dB"
        return f"dropped, SQNR would change by {self.gain:+.2f} dB"


def _gain(before: float, after: float) -> float:
    if after == 0 or before == 0:
        return 0.0 if after == before else math.inf * (before - after)
    return 10 * math.log10(before / after)


def correct(
    draft: Draft, names: Collection[str], context: CorrectionContext
) -> tuple[Draft, tuple[Effect, ...]]:
    """Try the corrections called ``names``, one on top of the other, and keep those that help.

    The gains of those that are kept add up to that of all of them together.
    """
    base, best, effects = draft, _Judged(draft, context), []
    finish = correct_biases if FINISH in names else _no_correction
    for name, correction in CORRECTIONS.items():
        if name not in names:
            continue
        started = time.perf_counter()
        tried = correction(base, context)
        found = None if tried is None else _best(_forms(name, tried, finish, context), context)
        effect = _effect(name, best, found, started)
        if tried is not None and found is not None and effect.kept:
            base, best = base if name == FINISH else tried, found
        effects.append(effect)
    return best.draft, tuple(effects)


@dataclass(frozen=True)
class _Judged:
    """A draft, and how close it comes on the held-out samples; if asked, on those that were fitted on too."""

    draft: Draft
    context: CorrectionContext

    @cached_property
    def quality(self) -> Quality:
        return self.context.evaluate(self.draft)

    @cached_property
    def fitted(self) -> Quality:
        return self.context.fitted(self.draft)

    @property
    def noise(self) -> float:
        return self.quality.noise


def _effect(name: str, before: _Judged, after: _Judged | None, started: float) -> Effect:
    kept, fitted = (False, None) if after is None else _decided(before, after)
    return Effect(
        name,
        before.noise,
        None if after is None else after.noise,
        time.perf_counter() - started,
        kept=kept,
        fitted_gain=fitted,
    )


def _decided(before: _Judged, after: _Judged) -> tuple[bool, float | None]:
    """Whether it helped; and what was gained on samples that were fitted on, if they had to decide, too.

    They speak too well of what was fitted on them: held-out ones are asked first, and count with them.
    """
    helped = _helped(before.quality, after.quality)
    if helped is not None:
        return helped, None
    together = _helped(_pooled(before), _pooled(after))
    return together is True, _gain(before.fitted.noise, after.fitted.noise)


@dataclass(frozen=True)
class _Pooled:
    """What a `Quality` says of noise, of samples held out and fitted on."""

    noise: float
    each: tuple[float, ...]


def _pooled(judged: _Judged) -> _Pooled:
    both = judged.quality, judged.fitted
    each = [noise * quality.samples for quality in both for noise in quality.each]
    return _Pooled(sum(quality.noise * quality.samples for quality in both), tuple(each))


def _helped(before: Quality | _Pooled, after: Quality | _Pooled) -> bool | None:
    """None: the noise changed by no more than one standard error of the sum of differences of all batches."""
    changes = np.array(after.each) - np.array(before.each)
    if len(changes) > 1 and np.isfinite(changes).all():
        error = np.std(changes, ddof=1) * math.sqrt(len(changes))
        if 0 < abs(changes.sum()) <= error:
            return None
    return not (math.isnan(after.noise) or after.noise >= before.noise)


def _no_correction(draft: Draft, context: CorrectionContext) -> Draft | None:
    return None


def _forms(name: str, tried: Draft, finish: Correction, context: CorrectionContext) -> Iterator[Draft]:
    """What may become of ``tried``: with biases corrected again, and as it is, if it has its own."""
    finished = None if name == FINISH else finish(tried, context)
    if finished is not None:
        yield finished
    yield tried


def _best(drafts: Iterator[Draft], context: CorrectionContext) -> _Judged:
    """The first of ``drafts``, unless another one is closer by more than chance."""
    judged = (_Judged(draft, context) for draft in drafts)
    return reduce(lambda best, other: other if _decided(best, other)[0] else best, judged)


def check_correctable(config: QuantConfig) -> None:
    """Find out before the work whether what the corrections need is there.

    Raises:
        ConfigError: it is not.
    """
    if "adaround" in config.correct and "none" not in config.correct:
        check_torch()


def corrected(draft: Draft, context: CorrectionContext) -> tuple[Draft, tuple[Effect, ...]]:
    """``draft`` with the requested corrections that help; none without samples to validate them on."""
    names = to_try(context)
    return correct(draft, names, context) if names else (draft, ())


def to_try(context: CorrectionContext) -> tuple[str, ...]:
    """The names of the requested corrections; none without samples to validate them on."""
    requested = context.config.correct
    return requested if context.can_validate and "none" not in requested else ()

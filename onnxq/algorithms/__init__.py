"""What makes a quantized model closer to its original: one algorithm a file, each kept only if it helps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from onnxq.algorithms.adaround import learn_rounding
from onnxq.algorithms.bias_correction import correct_biases
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.equalize import equalize
from onnxq.algorithms.full_bias_correction import correct_biases_in_order
from onnxq.algorithms.rounding import round_weights
from onnxq.algorithms.tighter_ranges import tighten_ranges
from onnxq.algorithms.workbench import Workbench

__all__ = ["CORRECTIONS", "Correction", "Draft", "Verdict", "Workbench", "correct"]

Correction = Callable[[Draft, Workbench], Draft | None]
"""Gives a changed draft, or None where there is nothing that it could change."""

FINISH = "bias"
"""Costs next to nothing, and makes up for most of what the others do to the means: they are judged with it on
top of them, and not by shifts that it would take away anyway."""

CORRECTIONS: Mapping[str, Correction] = {
    FINISH: correct_biases,
    "equalize": equalize,
    "ranges": tighten_ranges,
    "rounding": round_weights,
    "adaround": learn_rounding,
    "full-bias": correct_biases_in_order,
}
"""In the order in which they are tried."""


@dataclass(frozen=True)
class Verdict:
    """What one correction gave, on held-out samples.

    Attributes:
        name: the correction's.
        before, after: noise over signal at the outputs; ``after`` is None where there was nothing to do.
        seconds: what it took, its trial included.
    """

    name: str
    before: float
    after: float | None
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether it helped."""
        return self.after is not None and self.after < self.before

    @property
    def gain(self) -> float:
        """Of the SQNR, in dB; negative if it would have done harm."""
        if self.after is None:
            return 0.0
        if self.after == 0 or self.before == 0:
            return 0.0 if self.after == self.before else math.inf * (self.before - self.after)
        return 10 * math.log10(self.before / self.after)


def correct(draft: Draft, names: Collection[str], bench: Workbench) -> tuple[Draft, tuple[Verdict, ...]]:
    """Try the corrections called ``names``, one on top of the other, and keep those that help.

    The gains of those that are kept add up to that of all of them together.
    """
    base = best = draft
    error, verdicts = bench.error(draft), []
    finish = correct_biases if FINISH in names else _no_correction
    for name, correction in CORRECTIONS.items():
        if name not in names:
            continue
        started = time.perf_counter()
        tried = correction(base, bench)
        found = None if tried is None else _better(_forms(name, tried, finish, bench), error, bench)
        verdict = Verdict(name, error, found.error if found else None, time.perf_counter() - started)
        if tried is not None and found is not None and verdict.kept:
            base, best, error = base if name == FINISH else tried, found.draft, found.error
        verdicts.append(verdict)
    return best, tuple(verdicts)


@dataclass(frozen=True)
class _Judged:
    """A draft, and its noise over signal."""

    draft: Draft
    error: float


def _no_correction(draft: Draft, bench: Workbench) -> Draft | None:
    return None


def _forms(name: str, tried: Draft, finish: Correction, bench: Workbench) -> Iterator[Draft]:
    """What may become of ``tried``: with biases corrected again, and as it is, if it has its own."""
    finished = None if name == FINISH else finish(tried, bench)
    if finished is not None:
        yield finished
    yield tried


def _better(drafts: Iterator[Draft], error: float, bench: Workbench) -> _Judged:
    """The first of ``drafts`` that has less than ``error``, else the one with the least."""
    judged: list[_Judged] = []
    for draft in drafts:
        judged.append(_Judged(draft, bench.error(draft)))
        if judged[-1].error < error:
            return judged[-1]
    return min(judged, key=lambda one: one.error)

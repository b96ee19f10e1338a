"""What makes a quantized model closer to its original: one algorithm a file, each kept only if it helps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
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

CORRECTIONS: Mapping[str, Correction] = {
    "equalize": equalize,
    "ranges": tighten_ranges,
    "rounding": round_weights,
    "adaround": learn_rounding,
    "bias": correct_biases,
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


def correct(draft: Draft, names: Iterable[str], bench: Workbench) -> tuple[Draft, tuple[Verdict, ...]]:
    """Try the corrections called ``names``, one on top of the other, and keep those that help."""
    chosen = set(names)
    error, verdicts = bench.error(draft), []
    for name, correction in CORRECTIONS.items():
        if name not in chosen:
            continue
        started = time.perf_counter()
        tried = correction(draft, bench)
        after = None if tried is None else bench.error(tried)
        verdict = Verdict(name, error, after, time.perf_counter() - started)
        if tried is not None and after is not None and verdict.kept:
            draft, error = tried, after
        verdicts.append(verdict)
    return draft, tuple(verdicts)

"""The effect of a correction, for the report."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Effect:
    """The effect of one correction, measured on held-out samples.

    Attributes:
        name: the name of the correction.
        before: the noise-to-signal ratio (power) at the outputs without it.
        after: the same ratio with it; None where there was nothing to correct, or the correction failed.
        seconds: the time that the correction and its evaluation took.
        kept: whether the correction was kept.
        fitted_gain: the gain in SQNR on the samples that were fitted on, in dB. Set only where the change on
            the held-out samples was within one standard error, so that both kinds of samples decided.
        failed: whether the correction failed unexpectedly, and so was left out.
        too_long: why there was no time for the correction; empty if there was.
        batches: the number of batches that it was fitted on, if there was no time for all; else 0.
        predicted: whether both ratios are estimates of what rounding of weights adds to products.
        divergence: the KL divergence of the next token without it and with it, where that decided.
    """

    name: str
    before: float
    after: float | None
    seconds: float
    kept: bool
    fitted_gain: float | None = None
    failed: bool = False
    too_long: str = ""
    batches: int = 0
    predicted: bool = False
    divergence: tuple[float, float] | None = None

    @property
    def gain(self) -> float:
        """The gain in SQNR, in dB; negative if the SQNR fell."""
        return 0.0 if self.after is None else gain(self.before, self.after)

    @property
    def outcome(self) -> str:
        """The effect in words, for the report."""
        some = f"; fitted on {self.batches} batches only, see --time-limit" if self.batches else ""
        return self._gained + some

    @property
    def _gained(self) -> str:
        if self.after is None:
            reason = "it failed" if self.failed else self.too_long
            return f"left out: {reason}" if reason else "nothing to do"
        if self.predicted:
            return f"error of products {-self.gain:+.1f} dB, as predicted from their weights and inputs"
        if self.divergence is not None:
            changed = "KL {:.4f} -> {:.4f}".format(*self.divergence)
            return changed if self.kept else f"dropped, {changed}"
        if self.fitted_gain is not None:
            kept = "kept" if self.kept else "dropped"
            fitted = f"{self.fitted_gain:+.2f} dB on samples that were fitted on"
            return f"{kept}, SQNR {self.gain:+.2f} dB may be chance; {fitted}"
        if self.kept:
            return f"SQNR {self.gain:+.2f} dB"
        return f"dropped, SQNR would change by {self.gain:+.2f} dB"


def gain(before: float, after: float) -> float:
    """Return by how many dB the SQNR grows from one noise-to-signal ratio to another."""
    if after == 0 or before == 0:
        return 0.0 if after == before else math.inf * (before - after)
    return 10 * math.log10(before / after)

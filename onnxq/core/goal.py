"""Goals for a quantized model: ``sqnr>=25``, ``top1>=0.99x``, ``wer<=0.1``, ``size<=100MB``; one grammar."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnxq.core.errors import ConfigError

Metric = Callable[..., float]
"""A metric of the user's own: a function of outputs and labels, of a session, or of a model's path."""

FORMS = (
    "sqnr>=25 (dB at the worst output), agreement>=0.99 (share of equal decisions, 0 ... 1), "
    "metric>=0.37 (the value of --metric), a built-in metric such as top1>=0.99x (x: times the float model's "
    "value), wer<=0.1, kl<=0.05 (nats); in mode weight-only also perplexity<=1.02x, size<=100MB (or kB, GB)"
)

OWN = "metric"
"""The name of the metric that the option ``metric`` names, in a goal."""

AGAINST_FLOAT: Mapping[str, float] = {"sqnr": math.inf, "agreement": 1.0}
"""The metrics that compare outputs with those of the float model, and the largest value of a goal."""

LARGER_IS_BETTER = ("top1", "top5", "map", "miou", "cosine", "spearman")
"""Built-in metrics that a goal bounds from below; `onnxq.verify.metrics` has them."""

SMALLER_IS_BETTER = ("wer", "cer", "kl", "perplexity")
"""Built-in metrics that a goal bounds from above."""

SIZE = "size"
"""The bytes of the file, which a goal bounds in mode weight-only."""

OF_WEIGHTS = (*AGAINST_FLOAT, "kl", "perplexity", SIZE)
"""The metrics of goals in mode weight-only."""

_BYTES: Mapping[str, float] = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
"""The units of a size."""


@dataclass(frozen=True)
class Goal:
    """A metric and the value that it must reach.

    Attributes:
        metric: ``sqnr``, ``agreement``, ``metric`` (the one that the options name), the name of a built-in
            metric, or a function; see `onnxq.verify.metrics.user_function` for its parameters.
        at_least: the least value that reaches the goal; None: ``at_most`` is given instead.
        at_most: the largest value that reaches the goal, for metrics of which smaller is better.
        relative: whether the limit is to be multiplied by the float model's value.
    """

    metric: str | Metric
    at_least: float | None = None
    at_most: float | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        """Check that there is one limit.

        Raises:
            ConfigError: there is none, or there are two.
        """
        if (self.at_least is None) == (self.at_most is None):
            raise ConfigError(f"goal {self.name}: expected one limit, at_least or at_most")

    @property
    def name(self) -> str:
        """The name of the metric."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", OWN)

    @property
    def limit(self) -> float:
        """The value that must be reached."""
        return self.at_least if self.at_least is not None else float(self.at_most or 0.0)

    @property
    def is_against_float(self) -> bool:
        """Whether the metric compares outputs with those of the float model, so that no labels are needed."""
        return self.metric in AGAINST_FLOAT

    def score(self, value: float) -> float:
        """Return ``value`` with the sign that makes larger scores better."""
        return value if self.at_least is not None else -value

    def holds(self, value: float) -> bool:
        """Whether ``value`` reaches the goal."""
        return self.score(value) >= self.score(self.limit)

    def absolute(self, float_value: float) -> Goal:
        """Return the goal with its limit as a value of the metric.

        Args:
            float_value: the value of the float model, on the samples that the goal is measured on.
        """
        if not self.relative:
            return self
        if self.at_least is not None:
            return replace(self, at_least=self.at_least * float_value, relative=False)
        return replace(self, at_most=self.limit * float_value, relative=False)

    def __str__(self) -> str:
        sign = "<=" if self.at_least is None else ">="
        if self.metric == SIZE:
            return f"{self.name}{sign}{self.limit / 1e6:g}MB"
        return f"{self.name}{sign}{self.limit:g}{'x' * self.relative}"


def parse_goal(text: str) -> Goal:
    """Read a goal from text such as ``sqnr>=25``, ``wer<=1.02x`` or ``size<=100MB``; blanks do not matter.

    Raises:
        ConfigError: the text has another form; the message lists the valid ones.
    """
    match = re.fullmatch(r"([a-z]+[0-9]*)(:\S+?)?([<>])=([-+0-9.eE]+)(x|[kMG]?B)?", "".join(text.split()))
    name, argument, sign, number, unit = match.groups("") if match else ("",) * 5
    relative, smaller = unit == "x", (*SMALLER_IS_BETTER, SIZE)
    limit = _number(number) * _BYTES.get(unit, 1.0)
    known = name in AGAINST_FLOAT or name in (OWN, *LARGER_IS_BETTER, *smaller)
    has_unit = unit in _BYTES if name == SIZE else unit in ("", "x")
    if not known or not has_unit or not _is_allowed(name, limit, relative) or (argument and name == OWN):
        raise ConfigError(f"goal: expected {FORMS}, got {text!r}")
    if name != OWN and (sign == "<") != (name in smaller):
        better, right = ("smaller", "<=") if sign == ">" else ("larger", ">=")
        raise ConfigError(f"goal: expected {FORMS}, got {text!r}: of {name}, {better} is better: use {right}")
    limits: dict[str, Any] = {"at_most" if sign == "<" else "at_least": limit}
    return Goal(name + argument, relative=relative, **limits)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_allowed(name: str, limit: float, relative: bool) -> bool:
    """Whether a goal of the metric may have this limit; a metric of the user's own may be negative."""
    if not math.isfinite(limit):
        return False
    if name in AGAINST_FLOAT:
        return not relative and 0 < limit <= AGAINST_FLOAT[name]
    return limit > 0 or (name == OWN and not relative)

"""Goals for a quantized model: ``sqnr>=25``, ``agreement>=0.99``, or a user-defined metric; or limits.

Limits, ``kl<=0.05``, ``perplexity<=1.02x`` and ``size<=100MB``, are for weights of few bits beside float
activations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxq.core.errors import ConfigError

Metric = Callable[[Path], float]
"""Path of a model -> its quality; larger is better."""

LIMIT_FORMS = (
    "kl<=0.05 (nats, next token), perplexity<=1.02x (of float's; or a number), size<=100MB (also kB, GB)"
)

FORMS = "sqnr>=25 (dB at the worst output), agreement>=0.99 (share of equal decisions, 0 ... 1)"

_LIMITS: Mapping[str, float] = {"sqnr": math.inf, "agreement": 1.0}
"""The built-in metrics, and the largest value that a goal may require."""


@dataclass(frozen=True)
class Goal:
    """A metric and the value that it must reach.

    Attributes:
        metric: ``sqnr``, ``agreement``, or a function that is called with the path of each model tried.
        at_least: the least value of the metric that reaches the goal.
    """

    metric: str | Metric
    at_least: float

    @property
    def name(self) -> str:
        """The name of the metric."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "metric")

    def __str__(self) -> str:
        return f"{self.name}>={self.at_least:g}"


@dataclass(frozen=True)
class Limit:
    """A metric and the value that it must not exceed.

    Attributes:
        metric: ``kl``, ``perplexity``, or ``size`` in bytes.
        at_most: the limit.
        relative: it is a multiple of the float model's value.
    """

    metric: str
    at_most: float
    relative: bool = False

    def __str__(self) -> str:
        if self.metric == "size":
            return f"size<={self.at_most / 1e6:g}MB"
        return f"{self.metric}<={self.at_most:g}{'x' * self.relative}"


_UNITS: Mapping[str, Mapping[str, float]] = {
    "kl": {"": 1.0},
    "perplexity": {"": 1.0, "x": 1.0},
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
}
"""Metric -> the units of its limit."""


def parse_any_goal(text: str) -> Goal | Limit:
    """Read a goal, or a limit such as ``kl<=0.05``; blanks do not matter.

    Raises:
        ConfigError: the text has another form; the message lists the valid ones.
    """
    if ">=" in text:
        return parse_goal(text)
    match = re.fullmatch(r"([a-z]+)<=([0-9.eE+-]+)([A-Za-z]*)", "".join(text.split()))
    metric, number, unit = match.groups() if match else ("", "", "")
    try:
        most = float(number) * _UNITS[metric][unit]
    except (ValueError, KeyError):
        most = math.nan
    if not 0 < most < math.inf:
        raise ConfigError(f"goal: expected {FORMS}, or in mode weight-only {LIMIT_FORMS}, got {text!r}")
    return Limit(metric, most, relative=unit == "x")


def parse_goal(text: str) -> Goal:
    """Read a goal from text such as ``sqnr>=25``; blanks do not matter.

    Raises:
        ConfigError: the text has another form; the message lists the valid ones.
    """
    match = re.fullmatch(r"\s*([a-z]+)\s*>=\s*(\S+)\s*", text)
    name, number = match.groups() if match else ("", "")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if name not in _LIMITS or not 0 < limit <= _LIMITS[name] or math.isinf(limit):
        raise ConfigError(f"goal: expected {FORMS}, got {text!r}")
    return Goal(name, limit)

"""Accuracy goals for a quantized model: ``sqnr>=25``, ``agreement>=0.99``, or a user-defined metric."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxq.core.errors import ConfigError

Metric = Callable[[Path], float]
"""Path of a model -> its quality; larger is better."""

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

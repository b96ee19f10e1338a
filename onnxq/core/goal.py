"""What a quantized model must reach: ``sqnr>=25``, ``agreement>=0.99``, or a measure of one's own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxq.core.errors import ConfigError

Metric = Callable[[Path], float]
"""A model's file -> how good it is; more is better."""

FORMS = "sqnr>=25 (dB at the worst output), agreement>=0.99 (share of equal decisions, 0 ... 1)"

_LIMITS: Mapping[str, float] = {"sqnr": math.inf, "agreement": 1.0}
"""The measures by name, and the most that may be asked of them."""


@dataclass(frozen=True)
class Goal:
    """Attributes:
    metric: ``sqnr``, ``agreement``, or a function that gets the path of each model that is tried.
    at_least: what it must give.
    """

    metric: str | Metric
    at_least: float

    @property
    def name(self) -> str:
        """The measure's name."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "metric")

    def __str__(self) -> str:
        return f"{self.name}>={self.at_least:g}"


def parse_goal(text: str) -> Goal:
    """``sqnr>=25`` -> a goal; blanks do not matter.

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

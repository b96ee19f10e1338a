"""The time that corrections may take together, and what a correction will take, estimated before it starts.

Estimates count work (passes over the samples, multiply-adds) with coarse speeds, and the default limit is far
above what most models need. So the same corrections are tried in every run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from calibrators.collect import processors
from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan, QuantSpec

LEAST = 10.0
"""Seconds; the smallest default limit."""

LONG = 600.0
"""Seconds; the default limit where corrections are worth minutes.

Weights of few bits are of little use before they are corrected, and adaround is only tried on request.
"""

RESCUE = 5
"""How many times as long corrections may take where the model is of little use without them."""

FEW_BITS = 5
"""Weights of at most this many bits are weights of few bits."""

SPEED = 2e10
"""Multiply-adds per second and thread of matrix products in single precision; most processors do more."""


BUSY = 2
"""Processors that corrections keep busy at least, where there are so many."""


class TooLongError(Exception):
    """A correction would take longer than there is time left.

    Attributes:
        seconds: what it would take.
    """

    def __init__(self, seconds: float) -> None:
        """Keep ``seconds``."""
        super().__init__(f"would take about {seconds:.0f} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Budget:
    """The time for all corrections together; it starts to run when this is made.

    Attributes:
        limit: the time in seconds.
        batch_seconds: how long a model takes for a batch.
        clock: returns the time in seconds.
        started: when the time began to run.
    """

    limit: float = math.inf
    batch_seconds: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    started: float = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        object.__setattr__(self, "started", self.clock())

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.limit - (self.clock() - self.started)

    def check(self, batches: float, work: float = 0.0, threads: int = 1) -> None:
        """Check that there is time for some work.

        Args:
            batches: how many batches a model runs.
            work: multiply-adds besides.
            threads: the number of threads for these.

        Raises:
            TooLongError: there is not.
        """
        seconds = batches * self.batch_seconds + work / (SPEED * threads)
        if seconds > self.left:
            raise TooLongError(seconds)


def clock_of(config: QuantConfig) -> Callable[[], float]:
    """Return the clock for the time limit, in seconds.

    If the user gave no limit, other processes on the machine shall not decide which corrections are tried. So
    the clock follows the processor time of this process, where that is less.
    """
    if config.time_limit is not None:
        return time.perf_counter
    wall, own = time.perf_counter(), time.process_time()
    busy = min(BUSY, config.threads or processors())
    return lambda: min(time.perf_counter() - wall, (time.process_time() - own) / busy)


def time_limit(config: QuantConfig, plan: QuantPlan, spent: float, *, useless: bool = False) -> float:
    """Return how long corrections may take together, in seconds.

    Args:
        config: the options, which may give the limit.
        plan: the plan of the model.
        spent: how long calibration and the first evaluation took, in seconds.
        useless: whether the model is of little use without corrections.
    """
    if config.time_limit is not None:
        return config.time_limit
    few = any(group.constant and _has_few_bits(group.spec) for group in plan.groups.values())
    if few or "adaround" in config.correct:
        return LONG
    return max(LEAST, spent) * (RESCUE if useless else 1)


def _has_few_bits(spec: QuantSpec) -> bool:
    """Whether numbers are so coarse that their rounding matters most, as with a mantissa of few bits."""
    return spec.is_floating or spec.limits[1] - spec.limits[0] < 2**FEW_BITS

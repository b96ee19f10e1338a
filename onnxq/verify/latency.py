"""Models timed in turns, and which of them is significantly faster.

How much faster a quantized model runs than its float original.

Which of several models is the fastest, as far as can be told on a machine that does other things too.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.data.samples import Sample
from calibrators.session import open_session

Model = ir.Model | str | os.PathLike[str]


@dataclass(frozen=True)
class Speed:
    """Median seconds a run of each model, and the median of their ratio pair by pair."""

    float_seconds: float
    int8_seconds: float
    ratio: float

    @classmethod
    def of(cls, times: NDArray[np.float64]) -> Speed:
        """From ``[turns, (float, int8)]`` in seconds."""
        before, after = np.median(times, axis=0)
        return cls(float(before), float(after), float(np.median(times[:, 0] / times[:, 1])))


def race(
    float_model: Model,
    int8_model: Model,
    sample: Sample,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 1,
    seconds: float = 2.0,
) -> Speed:
    """Time both models in turns on one sample, so that what else the machine does hits both alike."""
    models = (float_model, int8_model)
    sessions = [open_session(model, providers=providers, threads=threads, exact=False) for model in models]
    return Speed.of(time_interleaved(sessions, sample, seconds=seconds))


def time_interleaved(
    sessions: Sequence[ort.InferenceSession],
    sample: Sample,
    *,
    seconds: float,
    least: int = 5,
    most: int | None = None,
) -> NDArray[np.float64]:
    """Seconds that each run of each session takes, ``[turns, sessions]``: a run of each, and again.

    Args:
        sessions: what to run.
        sample: what to feed.
        seconds: how long to go on.
        least: turns that are taken even if it takes longer; one more goes before, to warm up, and one more
            if a turn is short.
        most: turns after which it is enough.
    """
    warm = _turn(sessions, sample)
    if sum(warm) < seconds:
        _turn(sessions, sample)
    times: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < end and len(times) != most):
        times.append(_turn(sessions, sample))
    return np.array(times)


def _turn(sessions: Sequence[ort.InferenceSession], sample: Sample) -> list[float]:
    marks = [time.perf_counter()]
    for session in sessions:
        session.run(None, dict(sample.feeds))
        marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


Times = NDArray[np.float64]
"""``[turns, models]``, in seconds."""


Rounds = Sequence[Times]
"""Times of several races of the same models, each with new sessions: some sessions are faster than others of
the same model all the time, as their memory happens to lie."""


def significantly_faster(heats: Rounds, one: int, other: int) -> bool:
    """Whether model ``one`` needs less time than ``other``: in all likelihood, and in every heat."""
    return lowest_gain(heats, one, other) > 1


def lowest_gain(heats: Rounds, one: int, other: int) -> float:
    """How many times as fast as ``other`` model ``one`` is at least, in the heat that speaks least for it."""
    return min(_lowest(times[:, other] / times[:, one]) for times in heats)


def _lowest(ratios: Times) -> float:
    """What their true median is at least, with 97.5 % confidence.

    It hardly ever lies below the k-th smallest of n, where k is n / 2 - 0.98 sqrt(n): that few of n throws of
    a coin hardly ever show heads.
    """
    rank = math.floor(len(ratios) / 2 - 0.98 * math.sqrt(len(ratios)))
    return float(np.sort(ratios)[max(rank, 0)])


def gain(heats: Rounds, one: int, other: int) -> float:
    """How many times as fast as ``other`` model ``one`` is: the median over turns."""
    times = np.concatenate(heats)
    return float(np.median(times[:, other] / times[:, one]))


def fastest(heats: Rounds, models: Sequence[int]) -> int:
    """Of ``models``, the one with the least median."""
    return min(models, key=lambda model: float(np.median(np.concatenate(heats)[:, model])))


def winner(heats: Rounds, models: Sequence[int]) -> int:
    """The first of ``models`` that no later one clearly beats, one after the other."""
    best = models[0]
    for model in models[1:]:
        if significantly_faster(heats, model, best):
            best = model
    return best

"""Time models in turns, and decide which of them is significantly faster.

The comparisons hold on machines that do other work too: models run in turns, and a model counts as faster
only with high confidence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.data.samples import Sample
from calibrators.session import Model, checked_feeds, open_session

NEGLIGIBLE_SECONDS = 1e-4
"""If a run takes less, most of it is the overhead of the call."""


@dataclass(frozen=True)
class Speed:
    """The run times of a float model and its quantized form.

    Attributes:
        float_seconds: median seconds per run of the float model.
        int8_seconds: seconds per run of the quantized model beside that: ``float_seconds / ratio``.
        ratio: the median over turns of float time / int8 time. Medians of each model alone need not have this
            ratio, because other work on the machine may slow some of the turns.
    """

    float_seconds: float
    int8_seconds: float
    ratio: float

    @classmethod
    def of(cls, times: NDArray[np.float64]) -> Speed:
        """Summarize ``times``: [turns, (float, int8)], seconds."""
        before = float(np.median(times[:, 0]))
        ratio = float(np.median(times[:, 0] / times[:, 1]))
        return cls(before, before / ratio, ratio)


def race(
    models: tuple[Model, Model],
    sample: Sample,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 1,
    seconds: float = 2.0,
) -> Speed:
    """Time both models in turns on one sample, so other work on the machine slows both alike.

    Args:
        models: the float model and the quantized one, each a model or the path of one.
        sample: the sample to run.
        providers: execution providers, the preferred one first.
        threads: threads within a node.
        seconds: the time to spend.
    """
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
    """Time sessions in turns: one run of each session per turn.

    Args:
        sessions: the sessions to run.
        sample: the sample to feed.
        seconds: the time to spend after warm-up.
        least: the least number of turns, even if they take longer. One more turn runs first to warm up, and
            a second one if a turn is short.
        most: the largest number of turns; None: no limit.

    Returns:
        Times [turns, sessions], in seconds.
    """
    each = [(session, checked_feeds(session, sample.feeds)) for session in sessions]
    warm = _turn(each)
    if sum(warm) < seconds:
        _turn(each)
    times: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < end and len(times) != most):
        times.append(_turn(each))
    return np.array(times)


def _turn(each: Sequence[tuple[ort.InferenceSession, dict[str, Any]]]) -> list[float]:
    marks = [time.perf_counter()]
    for session, feeds in each:
        session.run(None, feeds)
        marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


Times = NDArray[np.float64]
"""``[turns, models]``, in seconds."""


Rounds = Sequence[Times]
"""Times of several rounds with the same models. Each round has new sessions, because a session may be faster
than another one of the same model throughout, depending on its memory layout."""


def significantly_faster(rounds: Rounds, one: int, other: int) -> bool:
    """Whether model ``one`` needs less time than ``other`` with 97.5 % confidence in every round.

    Args:
        rounds: the times of all rounds.
        one: index of a model.
        other: index of another model.
    """
    return lowest_gain(rounds, one, other) > 1


def lowest_gain(rounds: Rounds, one: int, other: int) -> float:
    """The lowest speed-up of model ``one`` over ``other``: the confidence bound of its worst round.

    Args:
        rounds: the times of all rounds.
        one: index of a model.
        other: index of another model.
    """
    return min(_lowest(times[:, other] / times[:, one]) for times in rounds)


def _lowest(ratios: Times) -> float:
    """The lower bound of the true median of ``ratios``, with 97.5 % confidence.

    The bound is the k-th smallest of n ratios with k = n / 2 - 0.98 sqrt(n): the number of ratios below the
    true median is binomial, as heads in n throws of a coin, and hardly ever smaller than that.
    """
    rank = math.floor(len(ratios) / 2 - 0.98 * math.sqrt(len(ratios)))
    return float(np.sort(ratios)[max(rank, 0)])


def gain(rounds: Rounds, one: int, other: int) -> float:
    """The speed-up of model ``one`` over ``other``: the median over all turns.

    Args:
        rounds: the times of all rounds.
        one: index of a model.
        other: index of another model.
    """
    times = np.concatenate(rounds)
    return float(np.median(times[:, other] / times[:, one]))


def fastest(rounds: Rounds, models: Sequence[int]) -> int:
    """The model among ``models`` with the least median time."""
    return min(models, key=lambda model: float(np.median(np.concatenate(rounds)[:, model])))


def winner(rounds: Rounds, models: Sequence[int]) -> int:
    """Go through ``models`` in order, switching to each that is significantly faster than the best so far."""
    best = models[0]
    for model in models[1:]:
        if significantly_faster(rounds, model, best):
            best = model
    return best

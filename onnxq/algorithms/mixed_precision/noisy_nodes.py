"""``--floor``: change the few nodes that make most of the noise where a model is of little use.

The nodes are ordered by the noise that they make alone (`sensitivities`, `rungs`). If the target has wider
activations, more and more nodes get these. If that is not enough, more and more are kept in float. Often one
or two make all the noise: a spectrogram, a logarithm of small energies, a first layer that reads inputs of
unlike size.

Below the floor, as many nodes change as it needs. Above it, but below `GOOD_SQNR`, more do if they gain much
and cost little speed, or some speed where the model becomes good by them. Speed is timed where the target
runs on this machine.

Where no model with integers reaches the SQNR of the floor, or none is found in time, the float model is the
result: a network that is nothing but a spectrogram, for example.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from calibrators.errors import CalibrationError
from calibrators.session import open_session
from onnxq.algorithms.autotune.apply import measurable, timing_sample
from onnxq.algorithms.budget import clock_of
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.mixed_precision.priorities import Rung, rungs
from onnxq.algorithms.mixed_precision.replan import Replanner
from onnxq.algorithms.mixed_precision.steps import FLOAT, Steps, keep_float, steps_to
from onnxq.algorithms.sensitivity.analysis import sensitivities
from onnxq.core.floor import GOOD_SQNR, Floor
from onnxq.verify.accuracy import Quality
from onnxq.verify.latency import gain, time_interleaved

logger = logging.getLogger(__name__)

STAGE = "searching for the nodes that make most of the noise"

RANKED_SAMPLES = 4
"""The number of samples to rank nodes on, or one if these take too long. Nodes differ by powers of ten where
a model is useless."""

LEAST_SECONDS = 10.0
"""The least time for the search; otherwise it may take as long as the work before it, or ``--time-limit``."""

RANKED_SHARE = 0.5
"""Share of the time for ranking; the rest is for the attempts."""

LARGE_GAIN = 3.0
"""By how many dB nodes in float must be better, unless the floor needs them: it halves the noise."""

KEPT_SPEED, GOOD_SPEED = 0.9, 0.5
"""The least speed with nodes in float that the floor does not need, as a share of the speed before; and the
least where the model becomes good by that: an error of a hundredth of the power is worth half the speed."""

FASTER = 1.1
"""The least speed of a model that becomes good, as a multiple of that of float."""

TENFOLD = 10.0
"""dB; where a model becomes good by a gain of this size, being faster than float is enough."""

MARGIN = 1.0
"""By how many dB more than `GOOD_SQNR` the search aims at, because the samples are few."""

FEW, FEW_SHARE = 2, 0.1
"""How many such nodes there may be where the speed is not timed, and which share of all nodes."""

TIMED_SECONDS, TIMED_TURNS = 0.5, (5, 30)
"""How long two models are timed, and the least and the largest number of turns."""


@dataclass(frozen=True)
class Rescue:
    """What was done where the accuracy was below the floor, or not far above it.

    Attributes:
        floor: the floor.
        before: SQNR of the worst output in dB, without this.
        after: the same with the changed nodes.
        floats: the names of the nodes that are kept in float -> the reasons.
        wide: the names of the nodes that got wider activations -> the type of these.
        held: whether the floor holds now.
        finished: whether the time was enough to try all nodes.
        refused: the quality of the best model with integers, if all nodes are kept in float because of it.
    """

    floor: Floor
    before: float
    after: float
    floats: Mapping[str, str]
    wide: Mapping[str, str]
    held: bool
    finished: bool
    refused: Quality | None = None


def hold(
    draft: Draft,
    floor: Floor | None,
    context: CorrectionContext,
    spent: float,
    quality: Quality | None = None,
) -> tuple[Draft, Rescue | None]:
    """Widen nodes, then keep them in float, until the floor holds, or nothing helps, or the time is over.

    Args:
        draft: the corrected draft.
        floor: the floor; None: nothing is done.
        context: samples and options.
        spent: the time that the work before it took, in seconds.
        quality: the quality of the draft on the held-out samples, if it is known.

    Returns:
        The draft, and what was done; None if the floor held from the start, or cannot be measured.

    Raises:
        CalibrationError: a model does not load, or rejects every sample.
    """
    if floor is None or not draft.plan.points or not context.can_validate:
        return draft, None
    if draft.plan.is_compact:  # few bits make noise, but whoever asks for them wants a small file
        floor = replace(floor, agreement=0.0)
    first = _Tried((), Steps(), draft, quality or context.evaluate(draft))
    if not first.quality.samples or _is_good(first, floor, margin=0.0):
        return draft, None
    clock = clock_of(context.config)  # a busy machine does not make the result worse
    seconds = max(spent, LEAST_SECONDS, context.config.time_limit or 0.0)
    deadline = clock() + seconds

    def is_late() -> bool:
        return clock() > deadline

    best, make = first, Replanner(draft, context)
    for rung in _ranked(draft, context, clock, RANKED_SHARE * seconds):
        if not _is_good(best, floor):
            start = replace(best, nodes=())
            best = _best(start, _attempts(start.steps, rung, make, is_late), floor, context)
    refused = None
    finished = not is_late()
    if best.sqnr < floor.sqnr:
        best, refused = _in_float(best, floor, make)
    held = best.quality.holds(floor)
    if best.draft is draft and held:
        return draft, None
    wide = best.draft.plan.widened_from(draft.plan)
    reasons = _reasons(first, best, floor, finished=finished)
    return best.draft, Rescue(floor, first.sqnr, best.sqnr, reasons, wide, held, finished, refused)


@dataclass(frozen=True)
class _Tried:
    """A draft and its quality on the held-out samples.

    Attributes:
        nodes: the nodes that were changed on the present rung.
        steps: all steps that lead to the draft.
        draft: the draft.
        quality: its quality.
    """

    nodes: tuple[str, ...]
    steps: Steps
    draft: Draft
    quality: Quality

    @property
    def sqnr(self) -> float:
        return self.quality.sqnr


def _ranked(
    draft: Draft, context: CorrectionContext, clock: Callable[[], float], seconds: float
) -> list[Rung]:
    """Rank the nodes by the noise that they make alone, in about so much time.

    The time that one sample takes tells whether there is enough for more.
    """
    plain, start = context.without_metric(), clock()
    noises = dict.fromkeys(draft.plan.groups, 0.0)
    for samples in (1, RANKED_SAMPLES):
        if samples == 1 or (clock() - start) * (1 + samples) <= seconds:
            ranking = sensitivities(draft, plain, samples=samples, is_late=lambda: clock() - start > seconds)
            noises |= {one.group.name: one.quality.noise for one in ranking}
    return rungs(draft.reference, draft.plan, noises)


def _attempts(start: Steps, rung: Rung, make: Replanner, is_late: Callable[[], bool]) -> Iterator[_Tried]:
    """Yield drafts with more and more nodes on ``rung``, until all are tried or it is late.

    Args:
        start: the steps of the rungs below.
        rung: the next rung.
        make: makes the drafts.
        is_late: whether the time is over.
    """
    nodes = tuple(name for one in rung.candidates for name in one.nodes)
    every = () if rung.form == FLOAT else (len(nodes),)  # a model all in float is no result
    for number, count in enumerate((*_counts(len(nodes)), *every)):
        make.context.progress(STAGE, number)
        steps = start | steps_to(nodes[:count], rung.form)
        changed = make(steps)
        if is_late() or not changed.plan.points:
            return
        yield _Tried(nodes[:count], steps, changed, make.context.evaluate(changed))


def _in_float(best: _Tried, floor: Floor, make: Replanner) -> tuple[_Tried, Quality | None]:
    """Return the float model if it holds the floor, and the quality that was refused for it.

    Else ``best``, also with weights of few bits: they are wanted for the space that they save.
    """
    if best.draft.plan.is_compact:
        return best, None
    steps = best.steps | keep_float(best.draft.plan.integer_nodes)
    draft = make(steps)
    whole = _Tried((), steps, draft, make.context.evaluate(draft))
    if draft.plan.points or not whole.quality.holds(floor):
        return best, None
    return whole, best.quality


def _counts(total: int) -> Iterator[int]:
    """Yield 1, 2, 3, 4, 6, 8, 12, 16 ... below the total."""
    count = 1
    while count < total:
        yield count
        count += max(1, 2 ** (count.bit_length() - 2))


def _is_good(one: _Tried, floor: Floor, margin: float = MARGIN) -> bool:
    """Whether no more nodes need a wider format."""
    good = one.draft.plan.is_compact or not one.sqnr < GOOD_SQNR + margin
    return good and one.quality.holds(floor)


def _best(first: _Tried, attempts: Iterable[_Tried], floor: Floor, context: CorrectionContext) -> _Tried:
    """Return the attempt with the fewest changed nodes that holds the floor, or a later one worth it."""
    best, enough = first, first
    for one in attempts:
        if not best.quality.holds(floor):
            if one.quality.holds(floor) or one.sqnr >= best.sqnr + LARGE_GAIN:
                best = enough = one
        elif _is_worth_it(one, best, floor) and _is_affordable(one, enough, floor, context):
            best = one
        if _is_good(best, floor):
            break
    return best


def _is_worth_it(one: _Tried, best: _Tried, floor: Floor) -> bool:
    return one.sqnr >= best.sqnr + LARGE_GAIN or _is_good(one, floor)


def _is_affordable(one: _Tried, enough: _Tried, floor: Floor, context: CorrectionContext) -> bool:
    """Whether ``one`` is fast enough beside ``enough``; untimed: whether few more nodes differ."""
    speeds = _speeds(one, enough, context)
    if speeds is None:
        few = max(FEW, FEW_SHARE * len(enough.draft.plan.integer_nodes))
        return len(one.nodes) - len(enough.nodes) <= few
    kept, faster = speeds
    if kept >= KEPT_SPEED:
        return True
    worth = kept >= GOOD_SPEED or one.sqnr >= enough.sqnr + TENFOLD
    return _is_good(one, floor) and worth and faster >= FASTER


def _speeds(one: _Tried, enough: _Tried, context: CorrectionContext) -> tuple[float, float] | None:
    """Time ``one``: its speed, of that of ``enough`` and of that of float; None if nothing is timed."""
    config = context.config
    if config.autotune == "off" or not measurable(config):
        return None
    models = [context.evaluator.float_model, *(each.draft.quantized() for each in (enough, one))]
    try:
        sessions = [open_session(model, threads=config.threads or 1, exact=False) for model in models]
        sample = timing_sample(sessions[0], one.draft.reference, context)
    except CalibrationError as error:
        logger.info("not timed: %s", error)
        return None
    least, most = TIMED_TURNS
    times = time_interleaved(sessions, sample, seconds=TIMED_SECONDS, least=least, most=most)
    return gain([times], 2, 1), gain([times], 2, 0)


def _reasons(first: _Tried, best: _Tried, floor: Floor, *, finished: bool) -> Mapping[str, str]:
    """Map the nodes that became float to the reason."""
    left = best.draft.plan.integer_nodes
    none = "reaches" if finished else "was found in time that reaches"
    reason = (
        "it makes much of the noise: with such nodes in integers the SQNR is "
        f"{first.sqnr:.1f} dB, without {best.sqnr:.1f} dB"
        if left
        else f"no model with integers {none} {floor.sqnr:g} dB"
    )
    return {name: reason for name in first.draft.plan.integer_nodes if name not in left}

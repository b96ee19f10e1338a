"""The search for the wider weights and float nodes that a goal needs.

Which nodes need wider weights, and which must stay float, for a goal to hold: found with few trials.

All that may be done lies in stages: weights of more bits first, which cost only bytes, and float last. They
are climbed until the goal holds. Then, stage by stage from the last one back, its steps stand in the order of
what they are worth: how many of them it takes is found by doubling their number, then by halving the
interval; and those that turn out to be superfluous are taken back, if that saves anything to speak of.

A corrected draft -> one that reaches the goal, if there is one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from calibrators.data.samples import Sample
from calibrators.fingerprint import checksum, fingerprint
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.corrections import to_try
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.mixed_precision.evaluator import GoalEvaluator
from onnxq.algorithms.mixed_precision.priorities import SearchStage, stages, taken
from onnxq.algorithms.mixed_precision.replan import CLOSED_FORMS, Replanner
from onnxq.algorithms.mixed_precision.steps import Steps, widest_precision
from onnxq.algorithms.mixed_precision.trials import SearchLog, TrialResult
from onnxq.algorithms.sensitivity.analysis import sensitivities
from onnxq.calibration.sample_split import Data
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, ModelError
from onnxq.core.goal import Goal, parse_goal

STAGE = "searching what must be wider or float"


@dataclass(frozen=True)
class Search:
    """What came of it.

    Attributes:
        goal: what was to be reached, and was.
        chosen: the model that was taken.
        attempts: all that were tried, the cheapest first.
        interrupted: whether less might have done.
    """

    goal: Goal
    chosen: TrialResult
    attempts: tuple[TrialResult, ...]
    interrupted: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the result is not the best there is, if so."""
        if not self.interrupted:
            return ()
        return (
            f"SEARCH INTERRUPTED: {self.goal} holds, but fewer float nodes or wide weights might have done.",
        )

    @property
    def curve(self) -> tuple[TrialResult, ...]:
        """Those attempts that no other one beats in both respects, cost and the goal's value."""
        best, kept = -float("inf"), []
        for attempt in sorted(self.attempts, key=lambda a: (a.cost, -a.value)):
            if attempt.value > best:
                best = attempt.value
                kept.append(attempt)
        return tuple(kept)


def search(draft: Draft, goal: Goal, context: CorrectionContext) -> tuple[Draft, Search]:
    """``draft`` with as few nodes wider, and kept float, as the search finds enough for ``goal``.

    An interrupt ends the search: if a model was found by then that reaches the goal, it is taken.

    Args:
        draft: corrected already; what stays as it is keeps its corrections.
        goal: what must hold on the held-out samples.
        context: samples and options; the options name the file that remembers attempts.

    Raises:
        ModelError: the goal is reached by no model that has a node in integers; the message tells the best.
        CalibrationError: there are no samples to measure on.
        ConfigError: the goal cannot be measured on such a model, or the file is of another search.
    """
    requested = to_try(context)
    make = Replanner(draft, context, tuple(name for name in CLOSED_FORMS if name in requested))
    memory = SearchLog.open(_key(draft, goal, context), context.config.search_log)
    searcher = _Searcher(make, GoalEvaluator(goal, context, draft.reference), memory)
    interrupted = False
    try:
        searcher.run()
    except KeyboardInterrupt:
        if not searcher.found:
            raise
        interrupted = True
    assert searcher.best is not None
    chosen = searcher.timed(searcher.best)
    attempts = sorted(memory.attempts.values(), key=lambda one: (one.cost, one.floats, sorted(one.widened)))
    return make(searcher.best), Search(goal, chosen, tuple(attempts), interrupted)


@dataclass
class _Searcher:
    """Attributes:
    make: makes drafts after some steps.
    gauge: measures them.
    memory: of what was measured.
    best: the fewest steps found that are enough.
    """

    make: Replanner
    gauge: GoalEvaluator
    memory: SearchLog
    best: Steps | None = None

    @property
    def found(self) -> bool:
        """Whether some model with a node in integers reaches the goal."""
        return self.best is not None and self._in_integers(self.best)

    def run(self) -> None:
        """Until `best` cannot be made smaller.

        Raises:
            ModelError: only the float model is good enough.
        """
        steps = Steps()
        if self.enough(steps, timed=True):
            return
        climbed: list[SearchStage] = []
        for stage in self._stages():
            climbed.insert(0, stage)
            steps |= taken(stage)
            if self.enough(steps, timed=True):
                break
        for stage in climbed:
            self._descend(stage)
        if not self.found:
            raise self._unreachable()

    def enough(self, steps: Steps, *, timed: bool = False) -> bool:
        """Whether the goal holds after ``steps``; if so, they are the best so far.

        The float model passes: what it lacks, nothing could give.
        """
        reached = not self._in_integers(steps) or self._attempt(steps).value >= self.gauge.goal.at_least
        if reached:
            self.best = steps
        if timed and self._in_integers(steps):
            self.timed(steps)
        return reached

    def timed(self, steps: Steps) -> TrialResult:
        """The attempt after ``steps``, its speed included."""
        attempt = self._attempt(steps)
        if attempt.speed is None:
            attempt = replace(attempt, speed=self.gauge.speed(self.make(steps).quantized()))
            self.memory.add(attempt)
        return attempt

    def _in_integers(self, steps: Steps) -> bool:
        return bool(self.make.plan(steps).points)

    def _attempt(self, steps: Steps) -> TrialResult:
        nodes = self.make.plan(steps).integer_nodes
        floats = sorted(self.make.draft.plan.integer_nodes.keys() - nodes.keys())
        widened = {name: form.name.lower() for name, form in widest_precision(steps).items() if name in nodes}
        key = frozenset(floats), frozenset(widened.items())
        if key not in self.memory.attempts:
            self.memory.add(self.gauge.evaluate(self.make(steps).quantized(), floats, widened))
            self.make.context.progress(STAGE, len(self.memory.attempts))
        return self.memory.attempts[key]

    def _stages(self) -> list[SearchStage]:
        """All there is to do, the cheap things first."""
        draft = self.make.draft
        if not self.memory.noises:
            ranking = sensitivities(draft, self.make.context)
            self.memory.noises = {one.group.name: one.quality.noise for one in ranking}
            self.memory.save()
        return stages(draft.reference, draft.plan, self.memory.noises)

    def _descend(self, stage: SearchStage) -> None:
        """Take back all steps of ``stage`` that are not needed."""
        assert self.best is not None
        others = self.best - taken(stage)
        count = self._count([others | taken(stage[:count]) for count in range(len(stage) + 1)])
        for move in reversed(stage[:count]):
            for steps in move.back:
                self.enough(self.best - steps)

    def _count(self, prefixes: Sequence[Steps]) -> int:
        """Which of ``prefixes`` is the first that is enough; the last one is."""
        bad, good = -1, 0
        while not self.enough(prefixes[good], timed=True):
            bad, good = good, min(max(2 * good, 1), len(prefixes) - 1)
        while good - bad > 1:
            middle = (bad + good) // 2
            if self.enough(prefixes[middle], timed=True):
                good = middle
            else:
                bad = middle
        return good

    def _unreachable(self) -> ModelError:
        best = max(self.memory.attempts.values(), key=lambda attempt: attempt.value)
        goal, nodes = self.gauge.goal, self.make.draft.plan.integer_nodes
        wider = f", and {len(best.widened)} with wider weights" if best.widened else ""
        return ModelError(
            f"the goal {goal} is reached by no model with a node in integers: the best has {goal.name} "
            f"{best.value:.4g} with {len(best.floats)} of {len(nodes)} nodes in float{wider}"
        )


def _key(draft: Draft, goal: Goal, context: CorrectionContext) -> str:
    """Tells apart searches whose attempts mean different things."""
    context.evaluator.evaluate(draft.reference)  # only then it is known which samples the model takes
    sums = [_checksum(samples) for samples in (context.evaluator.samples, context.fit)]
    return f"{fingerprint(draft.quantized())} {goal} {sums[0]:08x} {sums[1]:08x}"


def _checksum(samples: Iterable[Sample]) -> int:
    """CRC-32 of what is fed."""
    total = 0
    for sample in samples:
        for name, array in sorted(sample.feeds.items()):
            total = checksum(array, zlib.crc32(name.encode(), total))
    return total


def chosen_goal(goal: Goal | str | None, data: Data | None, config: QuantConfig) -> Goal | None:
    """``goal``, or else that of ``config``.

    Raises:
        ConfigError: it is malformed, or there are no samples to measure it on.
    """
    goal = config.goal if goal is None else goal
    if isinstance(goal, str):
        goal = parse_goal(goal)
    if goal is not None and data is None:
        raise ConfigError(f"the goal {goal} can only be measured on real samples: give data (--data)")
    return goal


def reach(draft: Draft, goal: Goal | None, context: CorrectionContext) -> tuple[Draft, Search | None]:
    """``draft`` with what must be wider or float for ``goal``, and how that was found; see `search`.

    There is nothing to search where no goal is given, or where nothing is in integers.
    """
    if goal is None or not draft.plan.points:
        return draft, None
    return search(draft, goal, context)

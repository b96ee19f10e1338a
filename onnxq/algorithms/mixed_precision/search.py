"""Search for the wider formats and float nodes that a goal needs, with few measurements.

The possible changes are ordered in stages: first weights of more bits, which cost only bytes, then
activations of more bits, where the target has them, and last nodes in float. The search applies whole stages
until the goal is reached. Then it goes through these stages from the last one to the first one. The changes
of a stage are in decreasing order of their benefit. The number of changes that the goal needs is found by
doubling, then by bisection. Finally each of these changes is undone if the goal is still reached without it,
unless that would save too little, or add too many conversions between activations of two widths.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from calibrators.data.samples import Sample
from calibrators.fingerprint import checksum, fingerprint
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.corrections import to_try
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.mixed_precision.evaluator import GoalEvaluator, judged
from onnxq.algorithms.mixed_precision.priorities import SearchStage, stages, taken
from onnxq.algorithms.mixed_precision.replan import CLOSED_FORMS, Replanner
from onnxq.algorithms.mixed_precision.steps import Steps, widest_precision
from onnxq.algorithms.mixed_precision.trials import Changes, SearchLog, TrialResult
from onnxq.algorithms.sensitivity.analysis import sensitivities
from onnxq.calibration.sample_split import Data
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, Interrupted, ModelError
from onnxq.core.goal import Goal, parse_goal
from onnxq.verify.metrics.user_function import source_of

STAGE = "searching for nodes to widen or to keep in float"


@dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes:
        goal: the goal, which was reached.
        chosen: the model that was chosen.
        attempts: all models that were measured, the cheapest first.
        interrupted: whether the search was interrupted, so that a cheaper model may exist.
        doubts: why the samples may not tell whether the goal is reached.
    """

    goal: Goal
    chosen: TrialResult
    attempts: tuple[TrialResult, ...]
    interrupted: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings about few samples, and about an interrupted search."""
        if not self.interrupted:
            return self.doubts
        return (
            *self.doubts,
            f"SEARCH INTERRUPTED: the goal {self.goal} is reached, but fewer nodes in float or with "
            "more bits might be enough.",
        )

    @property
    def curve(self) -> tuple[TrialResult, ...]:
        """The attempts on the Pareto front of cost and the goal's value, the cheapest first."""
        best, kept, score = -float("inf"), [], self.goal.score
        for attempt in sorted(self.attempts, key=lambda a: (a.cost, -score(a.value))):
            if score(attempt.value) > best:
                best = score(attempt.value)
                kept.append(attempt)
        return tuple(kept)


def search(draft: Draft, goal: Goal, context: CorrectionContext) -> tuple[Draft, Search]:
    """Search for the smallest set of wider weights and float nodes that reaches a goal.

    If the search is interrupted (KeyboardInterrupt), it returns the best model so far that reaches the goal.

    Args:
        draft: the corrected draft; unchanged layers keep their corrections.
        goal: the goal, measured on the held-out samples.
        context: samples and options; the options name the file that stores the attempts.

    Returns:
        The draft that reaches the goal, and the result of the search.

    Raises:
        ModelError: no model with a node in integers reaches the goal; the message describes the best one.
        CalibrationError: there are no samples to measure on.
        ConfigError: the goal cannot be measured on such a model, or the file belongs to another search.
    """
    requested = to_try(context)
    context = context.for_goal(goal)
    make = Replanner(draft, context, tuple(name for name in CLOSED_FORMS if name in requested))
    memory = SearchLog.open(_key(draft, goal, context), context.config.search_log)
    wanted = goal
    goal, doubts = judged(goal, context)
    searcher = _Searcher(make, GoalEvaluator(goal, context, draft.reference), memory)
    interrupted = False
    try:
        searcher.run()
    except KeyboardInterrupt as interrupt:
        if not searcher.found:
            raise
        interrupted = True
        if isinstance(interrupt, Interrupted):
            interrupt.heeded = True
    assert searcher.best is not None
    chosen = searcher.timed(searcher.best)
    attempts = sorted(memory.attempts.values(), key=_order)
    return make(searcher.best), Search(wanted, chosen, tuple(attempts), interrupted, doubts)


def _order(one: TrialResult) -> tuple[object, ...]:
    return one.cost, one.floats, sorted(one.widened), sorted(one.wide_activations)


@dataclass
class _Searcher:
    """The state of a search.

    Attributes:
        make: makes the draft after given steps.
        evaluator: measures models.
        memory: the log of all attempts.
        best: the last steps that reached the goal; None if there are none so far.
    """

    make: Replanner
    evaluator: GoalEvaluator
    memory: SearchLog
    best: Steps | None = None

    @property
    def found(self) -> bool:
        """Whether some model with a node in integers reaches the goal."""
        return self.best is not None and self._in_integers(self.best)

    def run(self) -> None:
        """Search until `best` cannot be reduced.

        Raises:
            ModelError: only the float model reaches the goal.
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
        """Whether the goal is reached after ``steps``; if so, they become `best`.

        The float model always counts as reaching the goal, because no other model can be more accurate.
        """
        reached = not self._in_integers(steps) or self.evaluator.goal.holds(self._attempt(steps).value)
        if reached:
            self.best = steps
        if timed and self._in_integers(steps):
            self.timed(steps)
        return reached

    def timed(self, steps: Steps) -> TrialResult:
        """Return the attempt after ``steps`` with its speed."""
        attempt = self._attempt(steps)
        if attempt.speed is None:
            attempt = replace(attempt, speed=self.evaluator.speed(self.make(steps).quantized()))
            self.memory.add(attempt)
        return attempt

    def _in_integers(self, steps: Steps) -> bool:
        return bool(self.make.plan(steps).points)

    def _attempt(self, steps: Steps) -> TrialResult:
        changes = self._changes(steps)
        if changes.key not in self.memory.attempts:
            self.memory.add(self.evaluator.evaluate(self.make(steps).quantized(), changes))
            self.make.context.progress(STAGE, len(self.memory.attempts))
        return self.memory.attempts[changes.key]

    def _changes(self, steps: Steps) -> Changes:
        """Return what ``steps`` change, with what follows from it."""
        before, plan = self.make.draft.plan, self.make.plan(steps)
        nodes, forms = plan.integer_nodes, widest_precision(steps)
        weights = {name: parts["weight"] for name, parts in forms.items() if "weight" in parts}
        return Changes(
            floats=tuple(sorted(before.integer_nodes.keys() - nodes.keys())),
            widened={name: form.name.lower() for name, form in weights.items() if name in nodes},
            wide_activations=plan.widened_from(before),
        )

    def _stages(self) -> list[SearchStage]:
        """Return all stages, the cheap ones first."""
        draft = self.make.draft
        if not self.memory.noises:
            ranking = sensitivities(draft, self.make.context.without_metric())
            self.memory.noises = {one.group.name: one.quality.noise for one in ranking}
            self.memory.save()
        return stages(draft.reference, draft.plan, self.memory.noises)

    def _descend(self, stage: SearchStage) -> None:
        """Undo all steps of ``stage`` that the goal does not need.

        Nodes keep wide activations where narrow ones would add more conversions than nodes: these cost what
        narrow activations save. Such nodes are looked at again when others have been undone.
        """
        assert self.best is not None
        others = self.best - taken(stage)
        count = self._count([others | taken(stage[:count]) for count in range(len(stage) + 1)])
        pending = [steps for move in reversed(stage[:count]) for steps in move.back]
        while pending:
            before, kept = self.best, list[Steps]()
            for steps in pending:
                if self._costs_conversions(steps):
                    kept.append(steps)
                else:
                    self.enough(self.best - steps)
            pending = kept if self.best != before else []

    def _costs_conversions(self, steps: Steps) -> bool:
        """Whether undoing ``steps``, which widen activations, adds more conversions than it saves nodes."""
        assert self.best is not None
        if not all(step.part == "activation" for step in steps):
            return False
        more = self.make.plan(self.best - steps).conversions - self.make.plan(self.best).conversions
        return more > len(steps & self.best)

    def _count(self, prefixes: Sequence[Steps]) -> int:
        """Return the index of the first of ``prefixes`` that reaches the goal; the last one is known to."""
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
        best = max(
            self.memory.attempts.values(), key=lambda attempt: self.evaluator.goal.score(attempt.value)
        )
        goal, nodes = self.evaluator.goal, self.make.draft.plan.integer_nodes
        wider = f", and {len(best.widened)} with wider weights" if best.widened else ""
        wider += f", and {len(best.wide_activations)} with wider activations" if best.wide_activations else ""
        return ModelError(
            f"no model with a node in integers reaches the goal {goal}: the best has {goal.name} "
            f"{best.value:.4g} with {len(best.floats)} of {len(nodes)} nodes in float{wider}"
        )


def _key(draft: Draft, goal: Goal, context: CorrectionContext) -> str:
    """Return a key of everything that the attempts of a search depend on."""
    context.evaluator.evaluate(draft.reference)  # finds out which samples the model accepts
    sums = [_checksum(samples) for samples in (context.evaluator.samples, context.fit)]
    key = f"{fingerprint(draft.quantized())} {goal} {sums[0]:08x} {sums[1]:08x}"
    return (
        key if goal.is_against_float else f"{key} {_task(context, context.config.metric or goal.metric):08x}"
    )


def _task(context: CorrectionContext, metric: Any) -> int:
    """Compute a checksum of the metric and of the labels."""
    labels = [label for sample in context.evaluator.samples for label in sample.labels]
    return zlib.crc32(repr((source_of(metric), context.config.pseudo_labels, labels)).encode())


def _checksum(samples: Iterable[Sample]) -> int:
    """Compute the CRC-32 of the inputs of all samples."""
    total = 0
    for sample in samples:
        for name, array in sorted(sample.feeds.items()):
            total = checksum(array, zlib.crc32(name.encode(), total))
    return total


def chosen_goal(goal: Goal | str | None, data: Data | None, config: QuantConfig) -> Goal | None:
    """Return the goal of a quantization; None if there is none.

    Args:
        goal: the goal or its text; None: that of ``config``.
        data: the samples of the user; None if there are none.
        config: the options.

    Raises:
        ConfigError: the goal is malformed, or there are no samples to measure it on.
    """
    goal = config.goal if goal is None else goal
    if isinstance(goal, str):
        goal = parse_goal(goal)
    if goal is not None and data is None:
        raise ConfigError(f"the goal {goal} can only be measured on real samples: give data (--data)")
    return goal


def reach(draft: Draft, goal: Goal | None, context: CorrectionContext) -> tuple[Draft, Search | None]:
    """Search for a draft that reaches the goal, if there is one; see `search`.

    Args:
        draft: the corrected draft.
        goal: the goal; None: no search.
        context: samples and options.

    Returns:
        The draft and the result of the search; ``draft`` itself and None if there is no goal or nothing is
        quantized.
    """
    if goal is None or not draft.plan.points:
        return draft, None
    return search(draft, goal, context)

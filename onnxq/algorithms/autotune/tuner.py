"""Find the nodes that are faster in float on this machine, including the costs of Q/DQ: `tune`.

1. The float model and the model with all planned nodes in integers are profiled in turns (`profile`). The
   times of kernels are traced back to fused groups of nodes (`kernel_trace`, `fusion_groups`).
2. A minimum cut (`partition`) gives the groups that should be in integers. The model of this cut is profiled
   too. Its times improve the next cut, until the cut does not change any more.
3. All these models race in turns against the float model. The fastest one is taken. If it is not
   faster than float, nothing is quantized.

`is_fast` is the short look that decides whether the search is worth its time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from calibrators.data.samples import Sample
from calibrators.session import Model, open_session
from onnxq.algorithms.autotune.derived_plan import derive_plan
from onnxq.algorithms.autotune.fusion_groups import FusionGroup, cut_up
from onnxq.algorithms.autotune.kernel_trace import trace
from onnxq.algorithms.autotune.partition import Costs, cheapest
from onnxq.algorithms.autotune.profile import profiles
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan
from onnxq.core.progress import Progress
from onnxq.graph.qdq.insert_qdq import insert_qdq
from onnxq.verify.latency import (
    NEGLIGIBLE_SECONDS,
    Rounds,
    fastest,
    gain,
    lowest_gain,
    time_interleaved,
    winner,
)

ROUNDS = 4
"""The largest number of cuts; mostly the third one is the same as the second one."""

PROFILE_SECONDS, RACE_SECONDS, LOOK_SECONDS = 1.0, 3.0, 0.4
"""The time to profile two models, of the whole race, and of a look, in seconds; slow models take longer."""

LEAST_TURNS = 3
"""The smallest number of turns in each round of the race, even if they take longer."""

RACE_ROUNDS = 3
"""The number of rounds of the race, each with new sessions."""

CLEARLY_FAST = 1.2
"""The speed-up over float from which on a search is not worth its time: integers pay almost everywhere."""

CLOSE = 0.95
"""The share of the speed of float, and of the fastest model, that must be reached in each round.

Rounds of the same models differ by as much on a machine that does other work too. Of models that are as fast,
the smallest is best.
"""

RACE_TURNS = 1000
"""The largest number of turns of the race; more would not give relevant differences between tiny models."""

STAGE = "timing float and integer nodes"

_FLOAT_MODELS = (0, 1)
"""The indices of the float models in the race: as given, and cleaned. The faster one is the baseline."""

Nodes = frozenset[str]


@dataclass(frozen=True)
class Effort:
    """How long to search, and when integers are preferred.

    Attributes:
        sure: whether integers must be faster than float, and more float nodes faster than fewer, with 97.5 %
            confidence in each round of the race. Otherwise the medians decide, and integers may be as fast.
        at_least: the least speed-up over float; 2 % are larger than differences by chance.
        seconds: the time that the search may take; infinite: as long as it needs.
    """

    sure: bool
    at_least: float
    seconds: float = math.inf

    def share(self, part: float, most: float) -> float:
        """Return a part of the time, but not more than ``most``; in seconds."""
        return min(self.seconds * part, most)


EFFORTS: Mapping[str, Effort] = {
    "full": Effort(sure=True, at_least=1.02),
    "auto": Effort(sure=False, at_least=0.98),
}
"""`QuantConfig.autotune` -> the effort.

Whoever asks for speed wants more of it. Everybody else also gains from the smaller file, so they get integers
unless these are slower.
"""


@dataclass(frozen=True)
class Candidate:
    """A model that was timed.

    Attributes:
        floats: the names of the planned nodes that are float in it.
        gain: its speed-up over the faster one of the two float models, as given and cleaned.
        in_worst_round: the same, in the round where it is least.
        at_least: the lower bound of this speed-up, with 97.5 % confidence in each round of the race.
    """

    floats: Nodes
    gain: float
    in_worst_round: float
    at_least: float


@dataclass(frozen=True)
class Tuning:
    """The result of autotuning.

    Attributes:
        floats: the names of the nodes to keep in float -> the reasons.
        contestants: the models that were timed; the first one has all planned nodes in integers.
        chosen: the chosen model; None: no model is as fast as it must be, so nothing is quantized.
        threads: the number of threads for timing; 0: all.
    """

    floats: Mapping[str, str]
    contestants: tuple[Candidate, ...]
    chosen: Candidate | None
    threads: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warning that nothing is quantized, if so."""
        if self.chosen is not None:
            return ()
        best = max(self.contestants, key=lambda one: one.gain)
        return (
            "INT8 IS NOT SIGNIFICANTLY FASTER than float on this machine: of the models with integers that "
            f"were timed, the fastest one is {best.gain:.2f} times as fast as float. The output is the "
            "cleaned float model, with nothing quantized. MatMul, Gemm and LSTM may gain by --mode dynamic, "
            "other machines by their own --target; --autotune off writes the int8 model all the same.",
        )


def is_fast(draft: Draft, sample: Sample, context: CorrectionContext) -> bool:
    """Whether the draft is clearly faster than both float models, or all take so little that none matters.

    Args:
        draft: the draft with all planned nodes in integers, with parameters.
        sample: the batch that models are timed on; only its shapes matter.
        context: provides the float model as given, and the options for running models.

    Raises:
        CalibrationError: ONNX Runtime refuses a model.
    """
    config = context.config
    models = [context.evaluator.float_model, draft.reference, draft.quantized()]
    rounds = _race(models, sample, config, _thread_counts(config), LOOK_SECONDS)
    base = fastest(rounds, _FLOAT_MODELS)
    if float(np.median(np.concatenate(rounds)[:, base])) < NEGLIGIBLE_SECONDS:
        return True
    return min(gain([times], len(_FLOAT_MODELS), base) for times in rounds) >= CLEARLY_FAST


def tune(draft: Draft, sample: Sample, context: CorrectionContext, effort: Effort) -> Tuning:
    """Find the planned nodes that should be float for speed on this machine.

    A model with integers is chosen only if it is fast enough compared with both float models: the one as
    given and the cleaned one, which is the output if nothing is quantized.

    Args:
        draft: the draft with all planned nodes in integers, with parameters.
        sample: the batch that models are timed on; only its shapes matter.
        context: provides the float model as given, and the options for running models.
        effort: how long to search, and how fast the model must be.

    Raises:
        CalibrationError: ONNX Runtime refuses a model.
    """
    plan, config = draft.plan, context.config
    tuner = _Tuner(draft.reference, plan, sample, config, context.progress, effort)
    tuner.search()
    rounds = tuner.race(context.evaluator.float_model)
    base = fastest(rounds, _FLOAT_MODELS)
    contestants = {
        i: _candidate(floats, rounds, i, base)
        for i, floats in enumerate(tuner.drafts, start=len(_FLOAT_MODELS))
    }
    chosen = _chosen(contestants, rounds, effort)
    floats = chosen.floats if chosen else Nodes(plan.integer_nodes)
    return Tuning(dict(tuner.reasons(floats, chosen)), tuple(contestants.values()), chosen, config.threads)


def _candidate(floats: Nodes, rounds: Rounds, index: int, base: int) -> Candidate:
    worst = min(gain([times], index, base) for times in rounds)
    return Candidate(floats, gain(rounds, index, base), worst, lowest_gain(rounds, index, base))


def _chosen(contestants: Mapping[int, Candidate], rounds: Rounds, effort: Effort) -> Candidate | None:
    """Choose the fastest contestant; of those that are about as fast, the one with the most integers."""
    order = sorted(contestants, key=lambda i: len(contestants[i].floats))
    if effort.sure:
        best = contestants[winner(rounds, order)]
        return best if best.at_least > effort.at_least else None
    most = max(one.in_worst_round for one in contestants.values())
    least = CLOSE * max(most, 1.0)
    fast = (one for i in order if (one := contestants[i]).gain >= effort.at_least)
    return next((one for one in fast if one.in_worst_round >= least), None)


@dataclass
class _Tuner:
    """The models that were tried, and the costs measured on them.

    Attributes:
        model: the cleaned float model.
        plan: the plan with all planned nodes in integers.
        sample: the batch that models are timed on.
        config: the options for running models.
        progress: told how far the work is.
        effort: how long the search may take.
        drafts: nodes kept in float -> plan; the first one has no such nodes.
    """

    model: ir.Model
    plan: QuantPlan
    sample: Sample
    config: QuantConfig
    progress: Progress
    effort: Effort
    drafts: dict[Nodes, QuantPlan] = field(default_factory=dict)
    _costs: Costs | None = None
    _started: float = field(default_factory=time.perf_counter)

    def search(self) -> None:
        """Profile models and cut again, until the cut gives a model that was already tried."""
        floats = Nodes()
        for number in range(ROUNDS + 1):
            if number and self._is_late(number):
                return
            self.progress(STAGE, number, ROUNDS + 2)
            plan = derive_plan(self.model, self.plan, self.config, floats)
            if floats in self.drafts or not plan.integer_nodes:
                return
            self.drafts[floats] = plan
            floats = Nodes(self.plan.integer_nodes) - _planned(cheapest(self._learn(plan)))

    def race(self, original: Model) -> Rounds:
        """Time the original, the cleaned model and all drafts in turns."""
        self.progress(STAGE, ROUNDS + 1, ROUNDS + 2)
        models = [original, self.model, *(insert_qdq(self.model, plan) for plan in self.drafts.values())]
        counts = [_thread_counts(self.config)[i % 2] for i in range(RACE_ROUNDS)]
        return _race(models, self.sample, self.config, counts, self.effort.share(1 / 3, RACE_SECONDS))

    def _is_late(self, done: int) -> bool:
        """Whether another profile would leave too little time for the race, judging by the ``done`` ones."""
        spent = time.perf_counter() - self._started
        return spent * (done + 1) / done > self.effort.share(2 / 3, math.inf)

    def reasons(self, floats: Collection[str], chosen: Candidate | None) -> Iterator[tuple[str, str]]:
        """Yield the name of each of ``floats`` and the reason why it is float, in graph order."""
        assert self._costs is not None
        for name in filter(floats.__contains__, self.plan.integer_nodes):
            unit = self._costs.parts.of_node[name]
            yield name, _reason(self._costs.seconds(unit, True), self._costs.seconds(unit, False), chosen)

    def _learn(self, plan: QuantPlan) -> Costs:
        """Profile the model of ``plan`` and return the updated costs."""
        model = insert_qdq(self.model, plan)
        in_float, other = profiles(
            [self.model, model],
            self.sample,
            providers=self.config.providers,
            threads=_thread_counts(self.config)[0],
            seconds=self.effort.share(1 / 10, PROFILE_SECONDS),
        )
        traced = trace(other, model.graph, self.model.graph)
        if self._costs is None:
            reference = trace(in_float, self.model.graph, self.model.graph)
            self._costs = Costs(cut_up(self.model.graph, plan, reference, traced), in_float.seconds)
            self._costs.learn(reference, (), in_float.seconds)
        self._costs.learn(traced, plan.integer_nodes, in_float.seconds)
        return self._costs


def _thread_counts(config: QuantConfig) -> tuple[int, int]:
    """Return the numbers of threads to time with: if the user gives none, one thread and all (0).

    One thread shows all the work that a model makes. Threads may hide it, or be worth little to small nodes.
    """
    return (config.threads, config.threads) if config.threads else (1, 0)


def _race(
    models: Sequence[Model], sample: Sample, config: QuantConfig, threads: Sequence[int], seconds: float
) -> Rounds:
    """Time models in turns, in one round with new sessions for each of ``threads``."""
    rounds = []
    for count in threads:
        sessions = [
            open_session(model, providers=config.providers, threads=count, exact=False) for model in models
        ]
        share, most = seconds / len(threads), RACE_TURNS // len(threads)
        rounds.append(time_interleaved(sessions, sample, seconds=share, least=LEAST_TURNS, most=most))
    return rounds


def _planned(units: Collection[FusionGroup]) -> Nodes:
    return Nodes(name for unit in units for name in unit.planned)


def _reason(integers: float, floats: float, chosen: Candidate | None) -> str:
    """Describe why a fused group is float, from its times in integers and in float, in seconds."""
    times = f"{integers * 1e3:.3f} ms instead of {floats * 1e3:.3f} ms"
    if integers > floats:
        return f"slower in integers on this machine: {times}"
    if chosen is None:
        return f"not significantly faster in integers on this machine with Q/DQ; without Q/DQ: {times}"
    return f"faster in integers on this machine without Q/DQ: {times}, but not with the Q/DQ that it needs"

"""Find the nodes that are faster in float on this machine, including the costs of Q/DQ: `tune`.

1. The float model and the model with all planned nodes in integers are profiled in turns (`profile`). The
   times of kernels are traced back to fused groups of nodes (`kernel_trace`, `fusion_groups`).
2. A minimum cut (`partition`) gives the groups that should be in integers. The model of this cut is profiled
   too. Its times improve the next cut, until the cut does not change any more.
3. All these models race in turns against the float model. The fastest one is taken. If it is not
   significantly faster than float, nothing is quantized.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

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
from onnxq.verify.latency import Rounds, fastest, gain, lowest_gain, time_interleaved, winner

ROUNDS = 4
"""The largest number of cuts; mostly the third one is the same as the second one."""

PROFILE_SECONDS, RACE_SECONDS = 1.0, 3.0
"""The time to profile two models, and the time of the whole race, in seconds; slow models take longer."""

LEAST_TURNS = 3
"""The smallest number of turns in each round of the race, even if they take longer."""

RACE_ROUNDS = 3
"""The number of rounds of the race, each with new sessions."""

MARGIN = 1.02
"""The least speed-up over float; it is larger than differences by chance."""

RACE_TURNS = 1000
"""The largest number of turns of the race; more would not give relevant differences between tiny models."""

STAGE = "timing float and integer nodes"

_FLOAT_MODELS = (0, 1)
"""The indices of the float models in the race: as given, and cleaned. The faster one is the baseline."""

Nodes = frozenset[str]


@dataclass(frozen=True)
class Candidate:
    """A model that was timed.

    Attributes:
        floats: the names of the planned nodes that are float in it.
        gain: its speed-up over the faster one of the two float models, as given and cleaned.
        at_least: the lower bound of this speed-up, with 97.5 % confidence in each round of the race.
    """

    floats: Nodes
    gain: float
    at_least: float


@dataclass(frozen=True)
class Tuning:
    """The result of autotuning.

    Attributes:
        floats: the names of the nodes to keep in float -> the reasons.
        contestants: the models that were timed; the first one has all planned nodes in integers.
        chosen: the chosen model; None: no model is significantly faster than float, so nothing is quantized.
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
            "cleaned float model, with nothing quantized.",
        )


def tune(draft: Draft, sample: Sample, context: CorrectionContext) -> Tuning:
    """Find the planned nodes that should be float for speed on this machine.

    A model with integers is chosen only if it is significantly faster than both float models: the one as
    given and the cleaned one, which is the output if nothing is quantized.

    Args:
        draft: the draft with all planned nodes in integers, with parameters.
        sample: the batch that models are timed on; only its shapes matter.
        context: provides the float model as given, and the options for running models.

    Raises:
        CalibrationError: ONNX Runtime refuses a model.
    """
    plan, config = draft.plan, context.config
    tuner = _Tuner(draft.reference, plan, sample, config, context.progress)
    tuner.search()
    rounds = tuner.race(context.evaluator.float_model)
    base = fastest(rounds, _FLOAT_MODELS)
    drafts = dict(enumerate(tuner.drafts, start=len(_FLOAT_MODELS)))
    contestants = {
        i: Candidate(floats, gain(rounds, i, base), lowest_gain(rounds, i, base))
        for i, floats in drafts.items()
    }
    best = contestants[winner(rounds, sorted(drafts, key=lambda i: len(drafts[i])))]
    chosen = best if best.at_least > MARGIN else None
    floats = best.floats if chosen else Nodes(plan.integer_nodes)
    return Tuning(dict(tuner.reasons(floats, chosen)), tuple(contestants.values()), chosen, config.threads)


@dataclass
class _Tuner:
    """The models that were tried, and the costs measured on them.

    Attributes:
        model: the cleaned float model.
        plan: the plan with all planned nodes in integers.
        sample: the batch that models are timed on.
        config: the options for running models.
        progress: told how far the work is.
        drafts: nodes kept in float -> plan; the first one has no such nodes.
    """

    model: ir.Model
    plan: QuantPlan
    sample: Sample
    config: QuantConfig
    progress: Progress
    drafts: dict[Nodes, QuantPlan] = field(default_factory=dict)
    _costs: Costs | None = None

    def search(self) -> None:
        """Profile models and cut again, until the cut gives a model that was already tried."""
        floats = Nodes()
        for number in range(ROUNDS + 1):
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
        rounds = []
        for _ in range(RACE_ROUNDS):
            sessions = [
                open_session(model, providers=self.config.providers, threads=self.config.threads, exact=False)
                for model in models
            ]
            rounds.append(
                time_interleaved(
                    sessions,
                    self.sample,
                    seconds=RACE_SECONDS / RACE_ROUNDS,
                    least=LEAST_TURNS,
                    most=RACE_TURNS // RACE_ROUNDS,
                )
            )
        return rounds

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
            threads=self.config.threads,
            seconds=PROFILE_SECONDS,
        )
        traced = trace(other, model.graph, self.model.graph)
        if self._costs is None:
            reference = trace(in_float, self.model.graph, self.model.graph)
            self._costs = Costs(cut_up(self.model.graph, plan, reference, traced), in_float.seconds)
            self._costs.learn(reference, (), in_float.seconds)
        self._costs.learn(traced, plan.integer_nodes, in_float.seconds)
        return self._costs


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

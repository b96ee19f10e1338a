"""What is faster in float on this machine stays float, Q/DQ included: `tune`.

1. The float model and the one with everything in integers are profiled, in turns (`profile`), and the times
   of kernels traced back to fused groups of nodes (`traced`, `units`).
2. The cheapest cut (`costs`, `cut`) tells which groups should be in integers. Such a model is profiled too;
   what is learned from it makes the next cut better, until nothing changes.
3. All models race against the float model, in turns (`contest`). The fastest is taken; if it is not clearly
   faster than float, nothing is quantized.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from calibrators.data.samples import Sample
from calibrators.session import open_session
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
from onnxq.graph.insert_qdq import insert_qdq
from onnxq.verify.latency import Model, Rounds, fastest, gain, lowest_gain, time_interleaved, winner

ROUNDS = 4
"""Cuts that are made at most; mostly the third changes nothing any more."""

PROFILE_SECONDS, RACE_SECONDS = 1.0, 3.0
"""How long two models are profiled, and all of them race. Slow models take longer: a few turns each."""

LEAST_TURNS = 3
"""In each heat, however long they take."""

HEATS = 3
"""So often the race is run, each time with new sessions."""

MARGIN = 1.02
"""What must be gained, times as fast: what chance still gives is less."""

RACE_TURNS = 1000
"""Turns after which the race is over. Times of tiny models differ by chance much longer than they matter."""

STAGE = "timing float and integers"

_FLOAT_MODELS = (0, 1)
"""Their places in the race: as the user has it, and cleaned. The faster one is to be beaten."""

Nodes = frozenset[str]


@dataclass(frozen=True)
class Candidate:
    """A model that was timed.

    Attributes:
        floats: the planned nodes that are float in it.
        gain: how many times as fast as the float model, as the user has it or cleaned: the faster one.
        at_least: the same, with 97.5 % confidence in each heat.
    """

    floats: Nodes
    gain: float
    at_least: float


@dataclass(frozen=True)
class Tuning:
    """What came of it.

    Attributes:
        floats: the nodes that stay float, each with the reason.
        contestants: the models that were timed, the first one with everything in integers.
        chosen: the one that was taken; None: it is the float model, as none is clearly faster.
        threads: threads that they were timed with; 0: all.
    """

    floats: Mapping[str, str]
    contestants: tuple[Candidate, ...]
    chosen: Candidate | None
    threads: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the result is not what a user expects, if so."""
        if self.chosen is not None:
            return ()
        best = max(self.contestants, key=lambda one: one.gain)
        return (
            "INT8 DOES NOT PAY for this model on this machine: of the models with integers that were tried, "
            f"the fastest is {best.gain:.2f} times as fast as float, which is no clear gain. The output is "
            "the float model, with nothing quantized.",
        )


def tune(draft: Draft, sample: Sample, context: CorrectionContext) -> Tuning:
    """Find out which planned nodes are to stay float for the sake of speed, on this machine and ``sample``.

    Args:
        draft: with parameters. Its reference becomes the output where integers are no faster: it must be
            beaten, and so must the float model as the user has it.
        sample: the batch that models are timed on; its sizes count.
        context: knows the float model as the user has it; its options say how to run models.

    Raises:
        CalibrationError: ONNX Runtime refuses a model.
    """
    plan, config = draft.plan, context.config
    tuner = _Tuner(draft.reference, plan, sample, config, context.progress)
    tuner.search()
    heats = tuner.race(context.evaluator.float_model)
    base = fastest(heats, _FLOAT_MODELS)
    drafts = dict(enumerate(tuner.drafts, start=len(_FLOAT_MODELS)))
    contestants = {
        i: Candidate(floats, gain(heats, i, base), lowest_gain(heats, i, base))
        for i, floats in drafts.items()
    }
    best = contestants[winner(heats, sorted(drafts, key=lambda i: len(drafts[i])))]
    chosen = best if best.at_least > MARGIN else None
    floats = best.floats if chosen else Nodes(plan.integer_nodes)
    return Tuning(dict(tuner.reasons(floats, chosen)), tuple(contestants.values()), chosen, config.threads)


@dataclass
class _Tuner:
    """Models with ever better choices of what is float, and what is learned from them.

    Attributes:
        drafts: nodes kept float -> plan, the first one with none.
    """

    model: ir.Model
    plan: QuantPlan
    sample: Sample
    config: QuantConfig
    progress: Progress
    drafts: dict[Nodes, QuantPlan] = field(default_factory=dict)
    _costs: Costs | None = None

    def search(self) -> None:
        """Until the cheapest cut is one that was tried."""
        floats = Nodes()
        for number in range(ROUNDS + 1):
            self.progress(STAGE, number, ROUNDS + 2)
            plan = derive_plan(self.model, self.plan, self.config, floats)
            if floats in self.drafts or not plan.integer_nodes:
                return
            self.drafts[floats] = plan
            floats = Nodes(self.plan.integer_nodes) - _planned(cheapest(self._learn(plan)))

    def race(self, original: Model) -> Rounds:
        """Of the original, the cleaned model, and all drafts."""
        self.progress(STAGE, ROUNDS + 1, ROUNDS + 2)
        models = [original, self.model, *(insert_qdq(self.model, plan) for plan in self.drafts.values())]
        heats = []
        for _ in range(HEATS):
            sessions = [
                open_session(model, providers=self.config.providers, threads=self.config.threads, exact=False)
                for model in models
            ]
            heats.append(
                time_interleaved(
                    sessions,
                    self.sample,
                    seconds=RACE_SECONDS / HEATS,
                    least=LEAST_TURNS,
                    most=RACE_TURNS // HEATS,
                )
            )
        return heats

    def reasons(self, floats: Collection[str], chosen: Candidate | None) -> Iterator[tuple[str, str]]:
        """Why each of ``floats`` is float, in the order of the graph."""
        assert self._costs is not None
        for name in filter(floats.__contains__, self.plan.integer_nodes):
            unit = self._costs.parts.of_node[name]
            yield name, _reason(self._costs.seconds(unit, True), self._costs.seconds(unit, False), chosen)

    def _learn(self, plan: QuantPlan) -> Costs:
        """The costs, with what the model of ``plan`` tells."""
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
    """In words; both are the times of a fused group, in seconds."""
    times = f"{integers * 1e3:.3f} ms instead of {floats * 1e3:.3f} ms"
    if integers > floats:
        return f"slower in integers on this machine: {times}"
    if chosen is None:
        return f"with Q/DQ around it, no faster in integers on this machine; without: {times}"
    return (
        f"faster in integers on this machine, {times}, but not with the Q/DQ that its neighbours would need"
    )

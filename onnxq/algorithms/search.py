"""Which nodes must stay float for a goal to hold: few of them, found with few trials.

The candidates stand in the order of what they are worth. How many of them it takes is found by doubling
their number, then by halving the interval; then those that turn out to be superfluous go back to integers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from calibrators.checksum import checksum
from calibrators.fingerprint import fingerprint
from calibrators.samples import Sample
from onnxq.algorithms.attempts import Attempt, Memory
from onnxq.algorithms.candidates import candidates
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.gauge import Gauge
from onnxq.algorithms.keep_float import KeepFloat
from onnxq.algorithms.sensitivity import sensitivities
from onnxq.algorithms.workbench import Workbench
from onnxq.config import QuantConfig
from onnxq.errors import ModelError
from onnxq.goal import Goal

STAGE = "searching what must stay float"

Nodes = frozenset[str]


@dataclass(frozen=True)
class Search:
    """What came of it.

    Attributes:
        goal: what was to be reached, and was.
        chosen: the model that was taken.
        attempts: all that were tried, the one with the fewest float nodes first.
        interrupted: whether fewer float nodes might have done.
    """

    goal: Goal
    chosen: Attempt
    attempts: tuple[Attempt, ...]
    interrupted: bool = False

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the result is not the best there is, if so."""
        if not self.interrupted:
            return ()
        return (f"SEARCH INTERRUPTED: {self.goal} holds, but fewer float nodes might have done.",)

    @property
    def curve(self) -> tuple[Attempt, ...]:
        """Those attempts that no other one beats in both respects, float nodes and the goal's value."""
        best, kept = -float("inf"), []
        for attempt in sorted(self.attempts, key=lambda a: (len(a.floats), -a.value)):
            if attempt.value > best:
                best = attempt.value
                kept.append(attempt)
        return tuple(kept)


def search(draft: Draft, goal: Goal, bench: Workbench, config: QuantConfig) -> tuple[Draft, Search]:
    """``draft`` with as few more nodes kept float as the search finds enough for ``goal``.

    An interrupt ends the search: if a model was found by then that reaches the goal, it is taken.

    Args:
        draft: corrected already; what stays in integers keeps its corrections.
        goal: what must hold on the held-out samples.
        bench: the samples.
        config: how ``draft`` was planned; names the file that remembers attempts.

    Raises:
        ModelError: the goal is reached by no model that has a node in integers; the message tells the best.
        CalibrationError: there are no samples to measure on.
        ConfigError: the goal cannot be measured on such a model, or the file is of another search.
    """
    make = KeepFloat(draft, bench, config)
    memory = Memory.open(_key(draft, goal, bench), config.search_log)
    searcher = _Searcher(make, Gauge(goal, bench, draft.exact), memory)
    interrupted = False
    try:
        searcher.run()
    except KeyboardInterrupt:
        if searcher.best is None:
            raise
        interrupted = True
    assert searcher.best is not None
    chosen = searcher.timed(searcher.best)
    attempts = sorted(memory.attempts.values(), key=lambda attempt: (len(attempt.floats), attempt.floats))
    return make(searcher.best), Search(goal, chosen, tuple(attempts), interrupted)


@dataclass
class _Searcher:
    """Attributes:
    make: makes drafts with nodes kept float.
    gauge: measures them.
    memory: of what was measured.
    best: the fewest nodes found that are enough.
    """

    make: KeepFloat
    gauge: Gauge
    memory: Memory
    best: Nodes | None = None

    def run(self) -> None:
        """Until `best` cannot be made smaller.

        Raises:
            ModelError: only the float model is good enough.
        """
        if self.enough(frozenset(), timed=True):
            return
        order = self._order()
        count = self._count([Nodes().union(*order[: n + 1]) for n in range(len(order))])
        for nodes in reversed(order[:count]):
            self._put_back(sorted(nodes))
        if self.best is None or not self.make.plan(self.best).points:
            raise self._unreachable()

    def enough(self, nodes: Nodes, *, timed: bool = False) -> bool:
        """Whether the goal holds when ``nodes`` are float; if so, they are the best so far.

        The float model passes: what it lacks, nothing could give.
        """
        if not self.make.plan(nodes).points:
            return True
        reached = self._attempt(nodes).value >= self.gauge.goal.at_least
        if reached:
            self.best = nodes
        if timed:
            self.timed(nodes)
        return reached

    def timed(self, nodes: Nodes) -> Attempt:
        """The attempt with ``nodes`` float, its speed included."""
        attempt = self._attempt(nodes)
        if attempt.speed is None:
            attempt = replace(attempt, speed=self.gauge.speed(self.make(nodes).quantized()))
            self.memory.add(attempt)
        return attempt

    def _attempt(self, nodes: Nodes) -> Attempt:
        floats = Nodes(self.make.draft.plan.nodes).difference(self.make.plan(nodes).nodes)
        if floats not in self.memory.attempts:
            model = self.make(nodes).quantized()
            self.memory.add(self.gauge.measure(model, sorted(floats)))
            self.make.bench.progress(STAGE, len(self.memory.attempts))
        return self.memory.attempts[floats]

    def _order(self) -> list[Nodes]:
        """The candidates, those that are worth most first."""
        draft = self.make.draft
        if not self.memory.noises:
            ranking = sensitivities(draft, self.make.bench)
            self.memory.noises = {one.group.name: one.quality.noise for one in ranking}
            self.memory.save()
        return [Nodes(c.nodes) for c in candidates(draft.exact, draft.plan, self.memory.noises)]

    def _count(self, prefixes: Sequence[Nodes]) -> int:
        """How many candidates are enough."""
        bad, good = 0, 1
        while not self.enough(prefixes[good - 1], timed=True):
            bad, good = good, min(2 * good, len(prefixes))
        while good - bad > 1:
            middle = (bad + good) // 2
            if self.enough(prefixes[middle - 1], timed=True):
                good = middle
            else:
                bad = middle
        return good

    def _put_back(self, nodes: Sequence[str]) -> None:
        """Let those of ``nodes`` be integers again without which the goal holds too."""
        if self.enough(self._floats - Nodes(nodes)) or len(nodes) == 1:
            return
        for name in nodes:
            self.enough(self._floats - {name})

    @property
    def _floats(self) -> Nodes:
        """The fewest float nodes found so far: all of them, if with fewer the goal never held."""
        return Nodes(self.make.draft.plan.nodes) if self.best is None else self.best

    def _unreachable(self) -> ModelError:
        best = max(self.memory.attempts.values(), key=lambda attempt: attempt.value)
        goal = self.gauge.goal
        return ModelError(
            f"the goal {goal} is reached by no model with a node in integers: the best has {goal.name} "
            f"{best.value:.4g} with {len(best.floats)} of {len(self.make.draft.plan.nodes)} nodes in float"
        )


def _key(draft: Draft, goal: Goal, bench: Workbench) -> str:
    """Tells apart searches whose attempts mean different things."""
    bench.judge.quality(draft.exact)  # only then it is known which samples the model takes
    sums = [_checksum(samples) for samples in (bench.judge.samples, bench.fit)]
    return f"{fingerprint(draft.quantized())} {goal} {sums[0]:08x} {sums[1]:08x}"


def _checksum(samples: Iterable[Sample]) -> int:
    """CRC-32 of what is fed."""
    total = 0
    for sample in samples:
        for name, array in sorted(sample.feeds.items()):
            total = checksum(array, zlib.crc32(name.encode(), total))
    return total

"""Search for the smallest model that reaches a goal, or for the best one of a size.

Each trial writes and measures a model of a `BitAllocation`, which predicts how the cost falls from one model
to another: the next trial is where the goal should just hold, between the nearest models that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrators.data.samples import Sample, input_specs
from calibrators.data.synthetic import token_sample
from onnxq.algorithms.layers.im2col import Floats
from onnxq.core.errors import ConfigError, ModelError
from onnxq.core.goal import SIZE, Goal
from onnxq.graph.files import size_on_disk
from onnxq.pipelines.weight_only.choice.bit_allocation import FLOAT, BitAllocation, allocate_bits, with_bits
from onnxq.pipelines.weight_only.choice.draft_writers import DraftWriter, beside, move
from onnxq.pipelines.weight_only.choice.group_costs import groups_of, measured_costs
from onnxq.pipelines.weight_only.choice.input_squares import LENGTH
from onnxq.pipelines.weight_only.products import Product
from onnxq.pipelines.weight_only.streaming import WeightWork
from onnxq.verify.accuracy import Quality

TRIALS = 6
"""The most models that are written."""

TOLERANCE = 0.01
"""How much larger than the smallest model that reaches the goal the chosen one may be, of what steps add."""

MEASURED = 1
"""The number of batches that the cost of groups is measured on: there are many groups."""

SMALLER = 2
"""The width that groups may get where a size asks for less than the requested one."""


@dataclass(frozen=True)
class Trial:
    """A model that was written.

    Attributes:
        taken: the steps of the allocation that were taken.
        size: bytes of the file.
        quality: its accuracy; None if only the size counted.
        bits: the number of matrices of each width; 0 is float.
    """

    taken: int
    size: int
    quality: Quality | None
    bits: dict[int, int]


@dataclass(frozen=True)
class Mix:
    """How a goal was reached with weights of several widths.

    Attributes:
        goal: the goal.
        chosen: the model that was chosen.
        trials: all models that were measured, the smallest first.
        work: what was done for the chosen model.
    """

    goal: Goal
    chosen: Trial
    trials: tuple[Trial, ...]
    work: WeightWork

    def rows(self) -> Iterator[str]:
        """Yield how the goal was reached, for the closing table."""
        trials = f"{len(self.trials)} model" + ("" if len(self.trials) == 1 else "s")
        yield f"{self.goal} holds with {_told(self.chosen)}; {trials} measured"
        for trial in self.trials:
            mark = " (chosen)" if trial is self.chosen else ""
            yield f"{trial.size / 1e6:.1f} MB: {_told(trial)}, {_measured(trial.quality)}{mark}"


def _told(trial: Trial) -> str:
    parts = (f"{count} in {f'{bits} bits' if bits else 'float'}" for bits, count in trial.bits.items())
    return f"matrices: {', '.join(parts)}"


def _measured(quality: Quality | None) -> str:
    if quality is None:
        return "not measured"
    return f"SQNR {quality.sqnr:.2f} dB" if quality.next_token is None else quality.next_token.describe()


def reach(goal: Goal, writer: DraftWriter, draft: Path) -> Mix:
    """Replace ``draft``, which has the requested weights, by a model that reaches ``goal``, if it does not.

    Args:
        goal: the goal.
        writer: writes models, and compares them.
        draft: the file.

    Raises:
        ConfigError: there are no samples to measure on, or no output that the goal is about.
        ModelError: no allocation of bits reaches the goal.
    """
    return _Search(goal, writer, draft).run()


class _Search:
    def __init__(self, goal: Goal, writer: DraftWriter, draft: Path) -> None:
        self._goal, self._prepare, self._writer, self._draft = goal, writer.prepare, writer, draft
        self._trials = dict[int, Trial]()

    def run(self) -> Mix:
        if self._goal.metric == SIZE:
            return self._largest(self._goal.limit)
        first = self._judged(self._draft)
        work = self._prepare()
        if allowed(self._goal, first) >= 1:
            return self._mix(Trial(0, size_on_disk(self._draft), first, _counts(work, {})), work)
        allocation = self._allocated(work, [work.scheme.dtype.bitwidth])
        self._trials[0] = Trial(0, size_on_disk(self._draft), first, _counts(work, allocation.bits(0)))
        self._between(allocation)
        held = [each for each in self._trials.values() if self._holds(each)]
        if not held:
            raise ModelError(f"no weights of more bits reach the goal {self._goal}")
        chosen = min(held, key=lambda each: each.taken)
        return self._mix(chosen, with_bits(self._prepare(), allocation.bits(chosen.taken)))

    def _between(self, allocation: BitAllocation) -> None:
        low, high, last = 0, len(allocation.steps) + 1, self._trials[0]
        while len(self._trials) <= TRIALS and size_gap(allocation, low, high) > TOLERANCE:
            assert last.quality is not None
            wanted = allocation.costs[last.taken] * allowed(self._goal, last.quality)
            place = next(
                (t for t, cost in enumerate(allocation.costs) if cost <= wanted), len(allocation.steps)
            )
            place = min(max(place, low + 1), high - 1)
            with beside(self._draft) as other:
                last = self._tried(allocation, place, other)
                if self._holds(last):
                    high = place
                    move(other, self._draft)
                else:
                    low = place

    def _tried(self, allocation: BitAllocation, taken: int, file: Path) -> Trial:
        work, bits = self._prepare(), allocation.bits(taken)
        counts = _counts(work, bits)
        self._writer.write(with_bits(work, bits), file)
        self._trials[taken] = Trial(taken, size_on_disk(file), self._judged(file), counts)
        return self._trials[taken]

    def _holds(self, trial: Trial) -> bool:
        return trial.quality is not None and allowed(self._goal, trial.quality) >= 1

    def _judged(self, file: Path) -> Quality:
        if self._writer.judge.context is None or self._writer.judge.samples.synthetic:
            raise ConfigError(f"goal {self._goal} is measured on held-out samples: give samples with --data")
        return self._writer.judge.quality(file)

    def _allocated(self, work: WeightWork, lowest: Sequence[int]) -> BitAllocation:
        groups = groups_of(work.products)
        judge, progress = self._writer.judge, self._writer.progress
        if judge.context is not None:
            judge.context.evaluator.release()

        def rounded(product: Product) -> Floats:
            found = self._writer.alone.round(product, work.scheme.grid(product.operand.dtype))
            return found.reals(product.sizes[1])

        costs = measured_costs(work.model, groups, rounded, self._samples(), progress)
        higher = [bits for bits in (8,) if bits > lowest[-1] and work.scheme.with_bits(bits) is not None]
        return allocate_bits(groups, costs, work.scheme, [*lowest, *higher, FLOAT])

    def _samples(self) -> Sequence[Sample]:
        """Return samples to measure costs on: given ones, or random token ids."""
        context, model = self._writer.judge.context, self._writer.judge.reference
        if context is not None and context.fit:
            return context.fit[:MEASURED]
        made = token_sample(model, input_specs(model), LENGTH, (0, 0))
        if made is None:
            raise ConfigError(f"goal {self._goal} needs samples to measure on: give samples with --data")
        return [made]

    def _largest(self, limit: float) -> Mix:
        """Choose the model with the most steps that is not larger than ``limit``."""
        work, size = self._prepare(), size_on_disk(self._draft)
        requested = work.scheme.dtype.bitwidth
        lower = [SMALLER] if size > limit and requested > SMALLER and work.scheme.with_bits(SMALLER) else []
        allocation = self._allocated(work, [*lower, requested])
        if lower:
            smallest = with_bits(self._prepare(), allocation.bits(0))
            self._writer.write(smallest, self._draft)
            size = size_on_disk(self._draft)
        before = len(allocation.sizes)
        while True:
            room = limit - size
            taken = max((t for t, more in enumerate(allocation.sizes[:before]) if more <= room), default=-1)
            if taken < 0:
                raise ModelError(
                    f"the smallest model has {size / 1e6:.1f} MB: {self._goal} cannot be reached"
                )
            bits = allocation.bits(taken)
            work = self._prepare()
            counts = _counts(work, bits)
            work = with_bits(work, bits)
            self._writer.write(work, self._draft)
            written = size_on_disk(self._draft)
            if written <= limit:
                context = self._writer.judge.context
                quality = None if context is None else self._writer.judge.quality(self._draft)
                return self._mix(Trial(taken, written, quality, counts), work)
            size += written - int(limit)  # places of tensors in the file take some bytes too
            before = taken

    def _mix(self, chosen: Trial, work: WeightWork) -> Mix:
        trials = {**self._trials, chosen.taken: chosen}
        return Mix(self._goal, chosen, tuple(trials[taken] for taken in sorted(trials)), work)


def size_gap(allocation: BitAllocation, low: int, high: int) -> float:
    """Return by how much two models differ in size, of what all steps add; 0 if none is between them."""
    if high - low <= 1:
        return 0.0
    last = len(allocation.sizes) - 1
    return (allocation.sizes[min(high, last)] - allocation.sizes[low]) / max(allocation.sizes[-1], 1) or 1.0


def allowed(goal: Goal, quality: Quality) -> float:
    """Return how many times the cost of a model may be what it is; 1 and more: it reaches the goal.

    Costs are powers of errors. The KL divergence and the excess of perplexity over the float model's are of
    second order in errors too; the share of other decisions is of first order.

    Raises:
        ConfigError: no output of the model tells.
    """
    if goal.metric == "agreement":
        return _ratio(1 - goal.limit, 1 - _known(quality.agreement, goal)) ** 2
    if goal.metric == "sqnr":
        return float(10 ** ((_known(quality.sqnr, goal) - goal.limit) / 10))
    token = quality.next_token
    if goal.metric == "kl":
        return _ratio(goal.limit, _known(None if token is None else token.kl, goal))
    perplexity = _known(None if token is None else token.perplexity, goal)
    exact = _known(None if token is None else token.float_perplexity, goal)
    most = goal.absolute(exact).limit
    if perplexity <= most:
        return 1.0
    return max(_ratio(most - exact, perplexity - exact), 0.0)


def _ratio(most: float, value: float) -> float:
    return math.inf if value <= 0 else most / value


def _known(value: float | None, goal: Goal) -> float:
    if value is None or math.isnan(value):
        raise ConfigError(
            f"goal {goal} cannot be measured: no output of the model tells. kl and perplexity need logits "
            "over the ids that an input holds, sqnr an output of float numbers"
        )
    return value


def _counts(work: WeightWork, bits: dict[str, int]) -> dict[int, int]:
    """Count the matrices of each width."""
    found = [bits.get(str(each.node.name), work.scheme.dtype.bitwidth) for each in work.products]
    return {width: found.count(width) for width in sorted(set(found))}

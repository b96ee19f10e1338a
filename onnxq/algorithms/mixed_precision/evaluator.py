"""Measure how close a model is to the goal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir

from onnxq.algorithms.autotune.apply import runs_here
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.mixed_precision.agreement import Doubles, Margins, float_gaps, joined
from onnxq.algorithms.mixed_precision.trials import Changes, TrialResult
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.core.goal import Goal
from onnxq.graph.nodes import name_of
from onnxq.verify.accuracy import Quality
from onnxq.verify.latency import race

RACE_SECONDS = 0.3
"""The time to spend on a measurement of speed."""


@dataclass(frozen=True)
class GoalEvaluator:
    """Measures models on the held-out samples.

    Attributes:
        goal: the metric and its limit.
        context: the samples and the options.
        exact: the float model.
    """

    goal: Goal
    context: CorrectionContext
    exact: ir.Model

    def evaluate(self, model: ir.Model, changes: Changes) -> TrialResult:
        """Measure the quality and the size of a model.

        Args:
            model: the quantized model.
            changes: what differs in it from the model that the search began with.

        Raises:
            CalibrationError: there are no samples to measure on.
            ConfigError: the goal cannot be measured on such a model.
        """
        margins = [Margins(gaps) for gaps in self._gaps]
        evaluator = self.context.evaluator if self.goal.is_against_float else self.context.judge
        kinds = evaluator.kinds.values()

        def look(expected: Sequence[Any], given: Sequence[Any]) -> None:
            # There are no margins if the goal does not need them.
            for margin, kind, one, other in zip(margins, kinds, expected, given, strict=False):
                if kind.rows is None:
                    margin.look(one, other)

        quality = evaluator.evaluate(model, look=look)
        if not quality.samples:
            raise CalibrationError(
                f"the goal {self.goal} needs samples to be measured on: give data (--data)"
            )
        return TrialResult(
            floats=changes.floats,
            widened=changes.widened,
            wide_activations=changes.wide_activations,
            value=self._value(quality, margins),
            sqnr=quality.sqnr,
            agreement=quality.agreement,
            size=_bytes(model),
        )

    def speed(self, model: ir.Model) -> float | None:
        """Measure the speed-up of ``model`` over the float model; None for targets that do not run here."""
        if not runs_here(self.context.config):
            return None
        config, sample = self.context.config, self.context.evaluator.samples[0]
        models, threads = (self.exact, model), config.threads or 1
        return race(models, sample, providers=config.providers, threads=threads, seconds=RACE_SECONDS).ratio

    def _value(self, quality: Quality, margins: Sequence[Margins]) -> float:
        if quality.metric is not None:
            return quality.metric.value
        value = _VALUES[self.goal.name](quality, margins, self.goal.limit)
        if value is None or value != value:
            raise ConfigError(
                f"the goal {self.goal} does not suit the model: its outputs have no {self.goal.name}"
            )
        return value

    @cached_property
    def _gaps(self) -> Sequence[Doubles]:
        """The gaps of each float output on the samples to fit on; empty if the goal does not need them."""
        if self.goal.metric != "agreement":
            return ()
        names = [name_of(value) for value in self.exact.graph.outputs]
        found = self.context.watch(
            self.exact, names, lambda _, arrays: float_gaps([arrays[n] for n in names])
        )
        return [joined(parts) for parts in zip(*found, strict=True)]


def _sqnr(quality: Quality, _: Sequence[Margins], __: float) -> float | None:
    return quality.sqnr


def _agreement(quality: Quality, margins: Sequence[Margins], limit: float) -> float | None:
    """Return the agreement of the worst output.

    It is counted if there are enough decisions, or no scores; otherwise it is estimated.
    """
    values = [
        counted if margin.resolves(limit) or (estimated := margin.agreement()) is None else estimated
        for output, margin in zip(quality.outputs.values(), margins, strict=True)
        if (counted := output.agreement) is not None
    ]
    return min(values, default=None)


_VALUES: Mapping[str, Callable[[Quality, Sequence[Margins], float], float | None]] = {
    "sqnr": _sqnr,
    "agreement": _agreement,
}


def _bytes(model: ir.Model) -> int:
    """Return the number of bytes of the model's constants."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def judged(goal: Goal, context: CorrectionContext) -> tuple[Goal, tuple[str, ...]]:
    """Return the goal with its limit as a value of the metric, and the doubts about measuring it.

    A goal that is relative to the float model's value gets that value on the held-out samples.

    Raises:
        CalibrationError: there are no samples to measure on, or labels are missing.
        ConfigError: the float model itself does not reach the goal.
    """
    if goal.is_against_float:
        return goal, ()
    found = context.judge.evaluate(context.judge.float_model).metric
    if found is None:
        raise CalibrationError(f"the goal {goal} needs samples to be measured on: give data (--data)")
    goal, wanted = goal.absolute(found.float_value), goal
    if not goal.holds(found.float_value):
        raise ConfigError(
            f"the float model itself does not reach the goal {wanted}: its {found.name} is "
            f"{found.float_value:.4g} on {found.samples or 'its own'} samples"
        )
    allowed, error = abs(found.float_value - goal.limit), found.standard_error
    if error <= allowed:
        return goal, ()
    few = "" if found.decisions == found.samples else f" ({found.decisions} of them with something to find)"
    return goal, (
        f"TOO FEW SAMPLES FOR THE GOAL {wanted}: {found.name} is measured on {found.samples} "
        f"{context.samples.eval_source}{few}, with a standard error of {error:.3f}, more than the loss of "
        f"{allowed:.3f} that the goal allows. Give more samples.",
    )

"""Measure how close a model is to the goal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.algorithms.autotune.apply import runs_here
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.mixed_precision.agreement import Doubles, Margins, float_gaps, joined
from onnxq.algorithms.mixed_precision.trials import Changes, TrialResult
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.core.goal import Goal, Metric
from onnxq.graph.files import write
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
        kinds = self.context.evaluator.kinds.values()

        def look(expected: Sequence[Any], given: Sequence[Any]) -> None:
            # There are no margins if the goal does not need them.
            for margin, kind, one, other in zip(margins, kinds, expected, given, strict=False):
                if kind.rows is None:
                    margin.look(one, other)

        quality = self.context.evaluator.evaluate(model, look=look)
        if not quality.samples:
            raise CalibrationError(
                f"the goal {self.goal} needs samples to be measured on: give data (--data)"
            )
        return TrialResult(
            floats=changes.floats,
            widened=changes.widened,
            wide_activations=changes.wide_activations,
            value=self._value(model, quality, margins),
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

    def _value(self, model: ir.Model, quality: Quality, margins: Sequence[Margins]) -> float:
        if not isinstance(self.goal.metric, str):
            return _own(self.goal.metric, model)
        value = _VALUES[self.goal.metric](quality, margins, self.goal.at_least)
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


def _own(metric: Metric, model: ir.Model) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(model, path)
        return float(metric(path))

"""Measure a metric along with the accuracy: it sees the outputs of both models, sample by sample."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from calibrators.data.samples import Sample
from calibrators.errors import shorten
from calibrators.session import Model
from onnxq.core.errors import CalibrationError, ConfigError, OnnxqError
from onnxq.verify.metrics.task_metric import MetricResult, Seen, TaskMetric

PACKAGE = str(Path(__file__).parent)
"""The folder of this package: an error in a function of the user's is told with the user's own line."""


@dataclass
class MetricJudge:
    """Measures a metric on one set of samples; the value of the float model is computed once.

    Attributes:
        metric: the metric.
        names: the names of the outputs of the float model.
        pseudo: whether the float model's own results are the labels.
    """

    metric: TaskMetric
    names: Sequence[str]
    pseudo: bool = False
    _float_value: float | None = None

    def __post_init__(self) -> None:
        """Check that the metric can make labels, if it has to.

        Raises:
            ConfigError: it cannot.
        """
        if self.pseudo and self.metric.label_of is None:
            raise ConfigError(
                f"the metric {self.metric.name} cannot take labels from the float model (labels float): give "
                "labels"
            )

    def again(self) -> MetricJudge:
        """Return a judge for other samples."""
        return replace(self, _float_value=None)

    def begin(self) -> Records:
        """Begin with another model."""
        return Records(self)

    def float_value(self, compute: Callable[[], float]) -> float:
        """The value of the float model; ``compute`` is called the first time."""
        if self._float_value is None:
            self._float_value = compute()
        return self._float_value


@dataclass
class Records:
    """What the metric keeps of the samples, for one model."""

    judge: MetricJudge
    _exact: list[Any] = field(default_factory=list)
    _given: list[Any] = field(default_factory=list)
    _unlabelled: list[str] = field(default_factory=list)
    _count: int = 0

    def add(self, batch: Sample, expected: Sequence[Any], given: Sequence[Any]) -> None:
        """Add a batch, with the outputs of the float model and those of the other one.

        Raises:
            ConfigError: the metric fails, or outputs of a batch cannot be told apart.
        """
        metric = self.judge.metric
        if metric.whole is not None:
            return
        for seen in _each(batch, self.judge.names, expected, given):
            exact = replace(seen, outputs=seen.expected)
            if self.judge.pseudo and metric.label_of is not None:
                label = _called(metric, metric.label_of, exact)
                seen, exact = replace(seen, label=label), replace(exact, label=label)
            self._count += 1
            if metric.needs_labels and seen.label is None:
                self._unlabelled.append(seen.name)
                continue
            if self.judge._float_value is None:
                self._exact.append(_called(metric, metric.look, exact))
            self._given.append(_called(metric, metric.look, seen))

    def result(self, models: Sequence[tuple[Model, ort.InferenceSession]]) -> MetricResult:
        """Compute the values of both models.

        Args:
            models: the float model and the other one, each with a session; metrics of outputs need none.

        Raises:
            CalibrationError: labels are missing.
            ConfigError: the metric fails, or gives no finite number.
        """
        metric, whole = self.judge.metric, self.judge.metric.whole
        if whole is not None:
            if not models:
                raise ConfigError(
                    f"metric {metric.name} takes a whole model, but here only outputs change: give a "
                    "function of (outputs, labels)"
                )
            exact = self.judge.float_value(lambda: _number(metric, whole, *models[0]))
            return self._result(_number(metric, whole, *models[1]), exact)
        if self._unlabelled:
            raise CalibrationError(
                f"metric {metric.name}: {len(self._unlabelled)} of {self._count} samples have no label: "
                f"{shorten(self._unlabelled)}. Give --labels: the name of an array in the .npz data, or a "
                ".npy, .npz, .csv or COCO .json file"
            )
        if not self._given:
            raise CalibrationError(f"metric {metric.name}: there are no samples to measure it on: give data")
        exact = self.judge.float_value(lambda: _number(metric, metric.total, self._exact))
        return self._result(_number(metric, metric.total, self._given), exact)

    def _result(self, value: float, float_value: float) -> MetricResult:
        metric = self.judge.metric
        return MetricResult(
            metric.name,
            value,
            float_value,
            self._count,
            metric.smaller,
            metric.is_share,
            self.judge.pseudo,
            metric.decisions(self._given),
        )


def _each(
    batch: Sample, names: Sequence[str], expected: Sequence[Any], given: Sequence[Any]
) -> Sequence[Seen]:
    """Return the samples of a batch, each with its own outputs, which keep a batch axis of size 1."""
    rows = next((len(a) for a in batch.feeds.values() if a.ndim), 1) if batch.joinable else 1
    if rows == 1:
        label = batch.labels[0] if batch.labels else None
        outputs, exact = (dict(zip(names, arrays, strict=True)) for arrays in (given, expected))
        return [Seen(batch.name, batch.feeds, outputs, exact, label)]
    for name, array in zip(names, expected, strict=True):
        if not isinstance(array, np.ndarray) or array.shape[:1] != (rows,):
            raise ConfigError(
                f"a metric needs the outputs of each sample, but output '{name}' of a batch of {rows} has no "
                f"axis of {rows}: export the model with a batch of 1 or of any size"
            )
    labels = batch.labels or (None,) * batch.count
    return [
        Seen(
            batch.name_of(i),
            {name: a[i : i + 1] if a.shape[:1] == (rows,) else a for name, a in batch.feeds.items()},
            {name: a[i : i + 1] for name, a in zip(names, given, strict=True)},
            {name: a[i : i + 1] for name, a in zip(names, expected, strict=True)},
            labels[i],
        )
        for i in range(batch.count)
    ]


def _called(metric: TaskMetric, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the metric; an error in it is told with file and line.

    Raises:
        ConfigError: it raises an error.
    """
    try:
        return function(*arguments)
    except OnnxqError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        others = (PACKAGE, "site-packages", "<")
        own = [frame for frame in frames if not any(other in frame.filename for other in others)]
        place = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
        raise ConfigError(f"metric {metric.name} failed: {place}{type(error).__name__}: {error}") from error


def _number(metric: TaskMetric, function: Callable[..., Any], *arguments: Any) -> float:
    found = _called(metric, function, *arguments)
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metric {metric.name} gave {found!r}: expected a number") from error
    if not math.isfinite(value):
        raise ConfigError(f"metric {metric.name} gave {value}: expected a finite number")
    return value

"""What a metric of a task is, and the result of measuring one."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.session import Model
from onnxq.core.errors import ConfigError

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
Outputs: TypeAlias = Mapping[str, Any]
"""Output name -> array; or a sequence or a map, where the model gives one."""


@dataclass(frozen=True)
class Seen:
    """What a metric sees of one sample.

    Attributes:
        name: the origin of the sample.
        feeds: input name -> array, with a batch axis of size 1 where the model has one.
        outputs: output name -> array, as the model gives them for this sample alone.
        expected: the outputs of the float model, under the same names.
        label: the label; None if there is none.
    """

    name: str
    feeds: Arrays
    outputs: Outputs
    expected: Outputs
    label: Any


@dataclass(frozen=True)
class TaskMetric:
    """A metric: what to keep of each sample, and how a value is made of it.

    Attributes:
        name: its name, for messages.
        look: returns what the metric keeps of a sample.
        total: computes the value from what `look` returned for all samples.
        smaller: whether smaller values are better; `onnxq.core.goal` says it of built-in metrics. None: a
            goal tells.
        needs_labels: whether every sample must have a label.
        is_share: whether a value of 0 … 1 is a share of the samples, at least roughly.
        label_of: the label that the outputs of a model would be right for; None: the metric cannot tell.
        decisions: returns how many independent things were judged; by default the number of samples.
        whole: computes the value from a model and a session of it, in place of `look` and `total`.
    """

    name: str
    look: Callable[[Seen], Any]
    total: Callable[[Sequence[Any]], float]
    smaller: bool | None = None
    needs_labels: bool = True
    is_share: bool = False
    label_of: Callable[[Seen], Any] | None = None
    decisions: Callable[[Sequence[Any]], int] = len
    whole: Callable[[Model, ort.InferenceSession], float] | None = None


@dataclass(frozen=True)
class MetricResult:
    """The value of a metric for a quantized model and for the float model, on the same samples.

    Attributes:
        name: the name of the metric.
        value: the value of the quantized model.
        float_value: the value of the float model.
        samples: the number of samples; 0 if the metric brings its own.
        smaller: whether smaller values are better; None: unknown.
        is_share: whether a value of 0 … 1 is a share of the samples, at least roughly.
        pseudo: whether the float model's own results were the labels.
        decisions: how many independent things were judged, for `standard_error`.
    """

    name: str
    value: float
    float_value: float
    samples: int
    smaller: bool | None = None
    is_share: bool = False
    pseudo: bool = False
    decisions: int = 0

    @property
    def loss(self) -> float:
        """By how much the quantized model is worse; negative if it is better."""
        difference = self.float_value - self.value
        return -difference if self.smaller else difference

    def __str__(self) -> str:
        against = "; labels: the float model's own results (pseudo labels)" if self.pseudo else ""
        difference = f"{self.value - self.float_value:+.4g}"
        return f"{self.name} {self.value:.4g}, float {self.float_value:.4g}: {difference}{against}"

    @property
    def standard_error(self) -> float:
        """The standard error of the float model's value, as that of a share; 0 if it is no share.

        That of Agresti and Coull (1998), "Approximate is better than 'exact' for interval estimation of
        binomial proportions": two successes and two failures are added, so that it is not 0 for a share of 1.
        """
        if not self.is_share or not self.decisions or not 0 <= self.float_value <= 1:
            return 0.0
        count = self.decisions + 4
        share = (self.float_value * self.decisions + 2) / count
        return math.sqrt(share * (1 - share) / count)


def packaged(module: str, metric: str) -> Any:
    """Import a library that only some metrics need.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"the metric {metric} needs the package {package}: pip install 'onnxq[metrics]'"
        ) from error


def scores_of(seen: Seen, metric: str) -> Array:
    """Return the first output with scores: floating-point numbers, several on some axis.

    Raises:
        ConfigError: the model has no such output.
    """
    for array in seen.outputs.values():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size > 1:
            return array
    raise ConfigError(
        f"the metric {metric} does not suit the model: it has no output with scores, only "
        f"{', '.join(seen.outputs)}. Give a function of your own: --metric FILE.py:FUNCTION"
    )

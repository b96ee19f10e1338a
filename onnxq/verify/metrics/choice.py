"""Find the metric that options name: a built-in one, a function in a file, or a function in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.goal import LARGER_IS_BETTER, OWN, SMALLER_IS_BETTER, Goal
from onnxq.verify.metrics.decisions import top
from onnxq.verify.metrics.detections import mean_precision
from onnxq.verify.metrics.embeddings import cosine, spearman
from onnxq.verify.metrics.likelihood import kl, perplexity
from onnxq.verify.metrics.segmentation import miou
from onnxq.verify.metrics.task_metric import TaskMetric
from onnxq.verify.metrics.transcripts import error_rate
from onnxq.verify.metrics.user_function import PLACE, load_function, user_metric
from onnxq.verify.outputs.next_token import find_vocabulary

_BUILT_IN: Mapping[str, Callable[[str, ir.Model], TaskMetric]] = {
    "top1": lambda _, __: top(1),
    "top5": lambda _, __: top(5),
    "map": lambda adapter, _: mean_precision(adapter),
    "miou": lambda _, __: miou(),
    "wer": lambda file, model: error_rate("wer", file, model.metadata_props),
    "cer": lambda file, model: error_rate("cer", file, model.metadata_props),
    "cosine": lambda _, __: cosine(),
    "spearman": lambda _, __: spearman(),
    "kl": lambda _, __: kl(),
    "perplexity": lambda _, model: perplexity(find_vocabulary(model)),
}
"""Name -> what makes the metric of the text after a colon, and of the model."""

_WITH_ARGUMENT = ("map", "wer", "cer")


def find_metric(metric: Any, model: ir.Model) -> TaskMetric | None:
    """Return the metric of `QuantConfig.metric`; None if there is none.

    Args:
        metric: the option.
        model: the float model, whose metadata may hold an alphabet, and whose inputs may hold token ids.

    Raises:
        ConfigError: there is no such metric, or what it needs is not there.
    """
    if metric is None:
        return None
    if callable(metric):
        return user_metric(metric)
    if PLACE.fullmatch(metric):
        return user_metric(load_function(metric))
    name, _, argument = metric.partition(":")
    if name not in _BUILT_IN or (argument and name not in _WITH_ARGUMENT):
        raise ConfigError(
            f"metric {metric!r}: expected FILE.py:FUNCTION or one of {', '.join(_BUILT_IN)} "
            "(map:yolo, map:detr, map:boxes; wer:FILE and cer:FILE with an alphabet)"
        )
    return replace(_BUILT_IN[name](argument, model), smaller=name in SMALLER_IS_BETTER)


def settled(goal: Goal | None, config: QuantConfig) -> tuple[Goal | None, QuantConfig]:
    """Bring goal and option ``metric`` together: a goal may name the metric, the option may name the goal's.

    Returns:
        The goal, and the options with its metric.

    Raises:
        ConfigError: they name different metrics, or none.
    """
    if goal is None or goal.is_against_float:
        return goal, config
    given = config.metric
    if goal.metric == OWN:
        if given is None:
            raise ConfigError(
                f"goal {goal}: name the metric with --metric FILE.py:FUNCTION or a built-in name"
            )
        _check_side(goal, given)
        return goal, config
    if given is None:
        return goal, config.changed(metric=goal.metric)
    same = given == goal.metric or (isinstance(given, str) and given.partition(":")[0] == goal.metric)
    if not same and goal.name != getattr(given, "__name__", str(given).rpartition(":")[2]):
        raise ConfigError(f"goal {goal} and metric {given} name different metrics: use one")
    return goal, config


def _check_side(goal: Goal, metric: Any) -> None:
    """Check that ``metric`` is bounded from the side where it is bad.

    Raises:
        ConfigError: it is not.
    """
    name = metric.partition(":")[0] if isinstance(metric, str) else ""
    wrong = SMALLER_IS_BETTER if goal.at_least is not None else LARGER_IS_BETTER
    if name in wrong:
        right = "<=" if goal.at_least is not None else ">="
        raise ConfigError(
            f"goal {goal}: of {name}, {'smaller' if right == '<=' else 'larger'} is better: {right}"
        )

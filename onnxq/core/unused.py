"""Options that have no effect where they are given: a flow that has no use for them refuses, or warns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError

logger = logging.getLogger(__name__)

_SEARCH = ("goal", "search_log", "floor", "autotune")
_CORRECTIONS = ("correct", "time_limit")
_TABLES = ("table", "table_format")
_SAMPLES = ("preprocess", "samples", "batch_size", "skip_bad_samples", "every_element")
_RANGES = ("method", "percentile", "weight_method")

CALIBRATE = (*_SEARCH, *_TABLES, "report")
"""Options that do not apply where statistics are all that is written."""

OWN_LOOP = ("mode", "preprocess", "batch_size")
"""Options that do not apply where the user's own loop gives the batches."""

REQUANTIZE = ("mode", *_SEARCH, *_CORRECTIONS, *_TABLES, "from_table", "save_statistics")
"""Options that do not apply to a model that keeps its scales."""

CONVERT = (
    *(
        "mode",
        *_SEARCH,
        *_CORRECTIONS,
        *_TABLES,
        *_RANGES,
        "from_table",
        "save_statistics",
        "report",
        "strict",
    ),
    *("target", "activation", "weight", "block_size", "format", "per_tensor", "override", "include"),
    *("quantize_outputs",),
)
"""Options that do not apply where nothing is quantized."""

TRAINING = ("mode", *_SEARCH, *_CORRECTIONS, *_TABLES, "from_table", "report")
"""Options that do not apply to quantization-aware training."""

PT2E = (*TRAINING, *_SAMPLES, *_RANGES, "data", "save_statistics")
"""Options that do not apply where torchao's observers choose the ranges."""


def given(config: QuantConfig, names: Sequence[str]) -> list[str]:
    """List the options among ``names`` that ask for something; ``correct="none"`` does not."""
    fields = QuantConfig.model_fields
    asked = [name for name in names if getattr(config, name) != fields[name].default]
    return [name for name in asked if not (name == "correct" and "none" in config.correct)]


def refuse(config: QuantConfig, names: Sequence[str], where: str) -> None:
    """Refuse options that do not apply.

    Args:
        config: the options.
        names: those that do not apply.
        where: what they do not apply to, and what to do instead: "X takes no {}: do Y".

    Raises:
        ConfigError: some of them are given.
    """
    if found := given(config, names):
        raise ConfigError(where.replace("{}", ", ".join(found)))


def without(config: QuantConfig, names: Sequence[str]) -> QuantConfig:
    """Set the options ``names``, which a file of options for several commands may hold, to their defaults."""
    return config.model_copy(update={name: QuantConfig.model_fields[name].default for name in names})


@dataclass(frozen=True)
class Wanted:
    """What a quantization was asked for.

    Attributes:
        config: the options.
        has_data: whether there are real samples.
        has_goal: whether there is a goal, which may be none of the options.
    """

    config: QuantConfig
    has_data: bool
    has_goal: bool = False


def _uses_percentile(request: Wanted) -> bool:
    methods = {request.config.method, *(override.method for override in request.config.overrides)}
    return "percentile" in methods


_NEEDS: Mapping[tuple[str, ...], tuple[Callable[[Wanted], bool], str]] = {
    ("percentile",): (_uses_percentile, "it is for method percentile"),
    ("time_limit",): (
        lambda r: r.has_data and "none" not in r.config.correct,
        "it is for corrections, and none is tried",
    ),
    ("floor",): (
        lambda r: r.has_data and not r.has_goal,
        "it is measured on held-out samples, and a goal takes its place",
    ),
    ("labels",): (lambda r: r.config.metric is not None, "there is no metric (--metric)"),
    ("metric",): (lambda r: r.has_data, "it is measured on real samples only: give data"),
    ("search_log",): (lambda r: r.has_goal, "there is no goal"),
    ("preprocess", "skip_bad_samples"): (lambda r: r.has_data, "there is no data"),
    ("per_tensor", "weight_method"): (
        lambda r: r.config.weight != "float16",
        "float16 weights have no scales",
    ),
    ("correct",): (lambda r: r.has_data, "corrections are tried on held-out samples only: give data"),
    ("samples", "batch_size", "every_element"): (
        lambda r: r.config.from_table is None,
        "a table gives the ranges, so no samples are read",
    ),
}
"""Options -> whether something uses them, and why nothing does."""


def tell_unused(request: Wanted) -> None:
    """Warn about options that have no effect in this quantization."""
    for text in _unused(request):
        logger.warning("%s", text)


def _unused(request: Wanted) -> Iterator[str]:
    for names, (is_used, reason) in _NEEDS.items():
        if not is_used(request):
            for name in given(request.config, names):
                yield f"option {name} is not used: {reason}"

"""Which options a mode takes: one table, checked when options are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from onnxq.core.goal import FORMS, OF_WEIGHTS, SIZE, parse_goal

STATIC_ONLY = (
    *("method", "percentile", "every_element", "time_limit", "goal", "search_log", "floor", "autotune"),
    *("from_table", "table", "table_format", "save_statistics", "activation"),
    *("quantize_outputs", "override", "float_type", "io_types"),
)
"""Options that need ranges from calibration."""


@dataclass(frozen=True)
class ModeRule:
    """What a mode takes.

    Attributes:
        does: what the mode does, for the message that refuses an option.
        refused: options that have no meaning in it.
        weights: the types that ``weight`` may be, if it is given.
        corrections: the names that ``correct`` may have, beside its default.
    """

    does: str
    refused: tuple[str, ...]
    weights: tuple[str, ...]
    corrections: tuple[str, ...]


MODES: Mapping[str, ModeRule] = {
    "dynamic": ModeRule(
        "finds ranges at run time",
        (*STATIC_ONLY, "block_size"),
        ("int8", "float16"),
        ("equalize", "none"),
    ),
    "weight-only": ModeRule(
        "quantizes no activations",
        (*(name for name in STATIC_ONLY if name != "goal"), "per_tensor", "weight_method"),
        ("uint2", "int4", "uint4", "int8", "uint8"),
        ("none", "equalize", "rounding"),
    ),
}
"""The modes beside static, which takes all options but a few values."""


def check_mode(options: Any, defaults: Mapping[str, Any]) -> None:
    """Check that the options suit their mode.

    Args:
        options: a `QuantConfig`.
        defaults: option -> its default.

    Raises:
        ValueError: an option has no meaning in the mode, or a value that it does not take.
    """
    changed = {name for name, default in defaults.items() if getattr(options, name) != default}
    if "format" in changed and options.mode != "weight-only":
        raise ValueError("the form of weights in blocks (format) is for mode weight-only: leave it out")
    if options.goal is not None:
        _check_goal(options)
    if options.mode in MODES:
        _check(options, MODES[options.mode], changed)
    elif options.weight == "float16":
        raise ValueError("float16 weights (weight) are for mode dynamic: use that, or an integer type")


def _check_goal(options: Any) -> None:
    name = parse_goal(options.goal).name
    able = name in OF_WEIGHTS if options.mode == "weight-only" else name != SIZE
    if not able:
        raise ValueError(f"goal: mode {options.mode} takes no {name}; expected {FORMS}")


def _check(options: Any, rule: ModeRule, changed: Collection[str]) -> None:
    mode = f"mode {options.mode}"
    if options.weight not in (None, *rule.weights):
        valid = " or ".join(rule.weights)
        raise ValueError(f"{mode} takes {valid} weights (weight), got {options.weight}")
    if given := [name for name in rule.refused if name in changed]:
        raise ValueError(
            f"{mode} {rule.does}; options for mode static only: {', '.join(given)}. "
            "Leave them out, or use mode static"
        )
    tried = set(options.correct) if "correct" in changed else set()
    if others := tried - set(rule.corrections):
        valid = " or ".join(rule.corrections)
        raise ValueError(f"{mode} takes {valid} (correct), got {', '.join(sorted(others))}")

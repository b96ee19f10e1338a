"""Options that differ for some nodes: ``head/*: method=entropy, weight=int4, per_tensor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxq.core.errors import ConfigError

FORM = "'PATTERN: option=value, ...' with the options method, activation, weight, weight_method, per_tensor"

_FLAG = "per_tensor"
_TRUTH = {"": True, "true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True)
class Override:
    """Options for the nodes that match a pattern; None means: as for all other nodes.

    Attributes:
        pattern: pattern of node names or operators, as in ``exclude``.
        method: calibration method for the tensors that the nodes read.
        activation: type of the activations that they read and give.
        weight: type of their weights.
        weight_method: method that chooses their weight scales.
        per_tensor: whether their weights have one scale per tensor.
    """

    pattern: str
    method: str | None = None
    activation: str | None = None
    weight: str | None = None
    weight_method: str | None = None
    per_tensor: bool | None = None


def parse_override(text: str, choices: Mapping[str, Sequence[str]]) -> Override:
    """Read one override; ``choices`` holds the valid values of each option.

    Raises:
        ConfigError: the text has another form; the message lists the valid options or values.
    """
    pattern, colon, rest = text.rpartition(":")
    pairs = [part.partition("=") for part in rest.split(",")]
    options = {name.strip().replace("-", "_"): value.strip() for name, _, value in pairs}
    if not colon or not pattern.strip() or not set(options) <= {*choices, _FLAG}:
        raise ConfigError(f"override: expected {FORM}, got {text!r}")
    per_tensor = options.pop(_FLAG, None)
    if per_tensor is not None and per_tensor.lower() not in _TRUTH:
        raise ConfigError(f"override {text!r}: {_FLAG}: expected true or false, got {per_tensor!r}")
    for name, value in options.items():
        if value not in choices[name]:
            raise ConfigError(
                f"override {text!r}: {name}: expected {', '.join(choices[name])}, got {value!r}"
            )
    flag = None if per_tensor is None else _TRUTH[per_tensor.lower()]
    return Override(pattern.strip(), per_tensor=flag, **options)


def written(pattern: str, options: Mapping[str, Any]) -> str:
    """Write an override as text that `parse_override` reads."""
    return f"{pattern}: {', '.join(f'{name}={value}' for name, value in options.items())}"

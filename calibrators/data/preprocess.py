"""Image preprocessing options, and how to read them from text: ``imagenet,mean=127,std=128``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from calibrators.errors import CalibrationError

Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocess:
    """Decode, resize, crop the centre, then ``(pixel - mean) / std`` on the 0 to 255 scale.

    Attributes:
        resize: shorter side after resizing, in pixels; None: just large enough for the crop.
        crop: height and width in pixels; None: the size of the model's input, else the whole image.
        mean: one value per channel, in the order of ``color``.
        std: one value per channel, in the order of ``color``.
        layout: ``nchw`` or ``nhwc``; None: chosen by the shape of the input.
        color: ``rgb`` or ``bgr``.
        given: the keys that the user set; these are not adapted to the model.
    """

    resize: int | None = None
    crop: tuple[int, int] | None = None
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    layout: str | None = None
    color: str = "rgb"
    given: frozenset[str] = frozenset()


PRESETS: Mapping[str, Preprocess] = MappingProxyType(
    {
        "imagenet": Preprocess(256, (224, 224), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        "unit": Preprocess(std=(255.0, 255.0, 255.0)),
        "signed": Preprocess(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)),
        "raw": Preprocess(),
    }
)
"""Torchvision's statistics of ImageNet, and the plain ranges [0, 1], [-1, 1] and [0, 255]."""

DEFAULT = "imagenet"


def parse_preprocess(text: str) -> Preprocess:
    """Read ``preset``, ``key=value,…`` or ``preset,key=value,…``; keys alone change the preset `DEFAULT`.

    The keys are those of `Preprocess`: ``resize=256``, ``crop=224`` or ``crop=HEIGHTxWIDTH``,
    ``mean=127`` or ``mean=R/G/B``, ``std``, ``layout=nchw|nhwc``, ``color=rgb|bgr``.

    Raises:
        CalibrationError: a preset or key is unknown, or a value is invalid; the message lists the valid ones.
    """
    first, *rest = [part.strip() for part in text.split(",")]
    preset, settings = (DEFAULT, [first, *rest]) if "=" in first else (first, rest)
    if preset not in PRESETS:
        raise CalibrationError(
            f"preprocess '{text}': no preset '{preset}'. Presets: {', '.join(PRESETS)}; "
            f"keys: {', '.join(_READERS)}, as in 'imagenet' or 'resize=256,crop=224,mean=127,std=128'"
        )
    values = dict(_setting(part, text) for part in settings)
    return _with(PRESETS[preset], values)


def _with(preset: Preprocess, values: Mapping[str, Any]) -> Preprocess:
    """Apply the given values to a preset; its mean and std are reversed for BGR, given ones are not."""
    if values.get("color") == "bgr":
        preset = replace(preset, mean=preset.mean[::-1], std=preset.std[::-1])
    return replace(preset, **values, given=frozenset(values))


def _setting(part: str, text: str) -> tuple[str, Any]:
    key, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals or key not in _READERS:
        raise CalibrationError(
            f"preprocess '{text}': '{part}' is not understood. Expected key=value with one of the keys "
            f"{', '.join(_READERS)}" + (", and a preset only in front" if part in PRESETS else "")
        )
    read, expected = _READERS[key]
    try:
        return key, read(value)
    except ValueError as e:
        raise CalibrationError(f"preprocess '{text}': {key}={value}: expected {expected}") from e


def _size(text: str) -> int:
    if (size := int(text)) < 1:
        raise ValueError(text)
    return size


def _sides(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return _size(height), _size(width or height)


def _channels(text: str) -> Channels:
    values = [float(part) for part in text.split("/")]
    if len(values) == 1:
        values *= 3
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise ValueError(text)
    return values[0], values[1], values[2]


def _divisors(text: str) -> Channels:
    values = _channels(text)
    if min(values) <= 0:
        raise ValueError(text)
    return values


def _one_of(*names: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        return names[names.index(text.lower())]

    return read


_READERS: Mapping[str, tuple[Callable[[str], Any], str]] = MappingProxyType(
    {
        "resize": (_size, "a whole number of pixels"),
        "crop": (_sides, "a whole number of pixels, or HEIGHTxWIDTH"),
        "mean": (_channels, "one number or three joined by '/', on the 0 to 255 scale"),
        "std": (_divisors, "one positive number or three joined by '/', on the 0 to 255 scale"),
        "layout": (_one_of("nchw", "nhwc"), "nchw or nhwc"),
        "color": (_one_of("rgb", "bgr"), "rgb or bgr"),
    }
)

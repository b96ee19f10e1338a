"""A file that may be a calibration table, and numbers as tables spell them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.core.errors import CalibrationError


@dataclass(frozen=True)
class Document:
    """The content of a file; what kind it is, the formats find out."""

    path: Path
    data: bytes

    @staticmethod
    def load(path: Path) -> Document:
        """Read a file.

        Raises:
            CalibrationError: it cannot be read.
        """
        try:
            return Document(path, path.read_bytes())
        except OSError as error:
            raise CalibrationError(f"{path}: the table cannot be read: {error.strerror}") from error

    @cached_property
    def text(self) -> str | None:
        """The content as text, None if it is not UTF-8 or holds NUL bytes."""
        try:
            return None if b"\0" in self.data else self.data.decode()
        except UnicodeDecodeError:
            return None

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not empty; names may hold what Python takes for ends of lines elsewhere."""
        lines = (self.text or "").replace("\r\n", "\n").split("\n")
        return [line for line in lines if line]

    @cached_property
    def tree(self) -> Mapping[str, Any]:
        """The object that the content is in JSON; empty if it is none."""
        try:
            tree = json.loads(self.text or "")
        except (ValueError, RecursionError):
            return {}
        return tree if isinstance(tree, dict) else {}


def mapping(tree: object) -> dict[str, Any]:
    """``tree`` if it is a JSON object, else TypeError."""
    if not isinstance(tree, dict):
        raise TypeError(f"expected an object, got {type(tree).__name__}")
    return tree


def number(value: object) -> float:
    """A JSON number, else TypeError; what Python would take for one besides is damage."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def numbers(value: object) -> NDArray[np.float64]:
    """A JSON number as ``()``, a list of them as ``[C]``."""
    if isinstance(value, list):
        return np.array([number(each) for each in value], np.float64)
    return np.array(number(value), np.float64)


def shortest(values: ArrayLike) -> Any:
    """The shortest decimals that mean these float32 numbers, as a number or a list."""
    narrow = np.asarray(values, np.float32)
    texts = [np.format_float_scientific(each, unique=True) for each in narrow.reshape(-1)]
    return float(texts[0]) if narrow.ndim == 0 else [float(text) for text in texts]


def scales(value: object) -> NDArray[np.float32]:
    """The float32 numbers that `shortest` spelled, ``()`` or ``[C]``."""
    with np.errstate(over="ignore", under="ignore"):  # it is not finite then, and refused as such
        return numbers(value).astype(np.float32)

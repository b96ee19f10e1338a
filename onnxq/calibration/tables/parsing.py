"""Read files that may be calibration tables, and the numbers in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrators.atomic import NOT_PLAIN, is_special
from onnxq.core.errors import CalibrationError


@dataclass(frozen=True)
class Document:
    """The content of a file whose format is not known yet."""

    path: Path
    data: bytes

    @staticmethod
    def load(path: Path) -> Document:
        """Read a file.

        Raises:
            CalibrationError: the file cannot be read.
        """
        if is_special(path):
            raise CalibrationError(f"{path}: the table cannot be read: it {NOT_PLAIN}: give a plain file")
        try:
            return Document(path, path.read_bytes())
        except OSError as error:
            raise CalibrationError(f"{path}: the table cannot be read: {error.strerror}") from error

    @cached_property
    def text(self) -> str | None:
        """The content as text; None if it is not UTF-8 or holds NUL bytes."""
        try:
            return None if b"\0" in self.data else self.data.decode()
        except UnicodeDecodeError:
            return None

    @cached_property
    def lines(self) -> list[str]:
        """The non-empty lines. Only LF and CRLF end a line: names may hold Python's other line ends."""
        lines = (self.text or "").replace("\r\n", "\n").split("\n")
        return [line for line in lines if line]

    @cached_property
    def tree(self) -> Mapping[str, Any]:
        """The content as a JSON object; empty if it is none."""
        try:
            tree = json.loads(self.text or "")
        except (ValueError, RecursionError):
            return {}
        return tree if isinstance(tree, dict) else {}


def mapping(tree: object) -> dict[str, Any]:
    """Return ``tree`` if it is a JSON object.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(tree, dict):
        raise TypeError(f"expected an object, got {type(tree).__name__}")
    return tree


def number(value: object) -> float:
    """Convert a JSON number.

    Raises:
        TypeError: it is none. Booleans and texts, which Python would convert too, are damage.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def numbers(value: object) -> NDArray[np.float64]:
    """Convert a JSON number to an array of shape ``()``, or a list of them to ``[C]``."""
    if isinstance(value, list):
        return np.array([number(each) for each in value], np.float64)
    return np.array(number(value), np.float64)


def shortest(values: ArrayLike) -> Any:
    """Convert float32 numbers to those with the shortest decimals that round to them, one or a list."""
    narrow = np.asarray(values, np.float32)
    texts = [np.format_float_scientific(each, unique=True) for each in narrow.reshape(-1)]
    return float(texts[0]) if narrow.ndim == 0 else [float(text) for text in texts]


def scales(value: object) -> NDArray[np.float32]:
    """Convert numbers from `shortest` back to float32, ``()`` or ``[C]``."""
    with np.errstate(over="ignore", under="ignore"):  # a number that is then not finite is refused later
        return numbers(value).astype(np.float32)

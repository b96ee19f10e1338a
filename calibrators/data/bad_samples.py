"""Load samples one by one, so that a bad one fails by itself and the others can still be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeAlias, TypeVar

from calibrators.errors import CalibrationError

T = TypeVar("T")

OnBad: TypeAlias = Callable[[CalibrationError, int], None]
"""Told why something cannot be used, and how many samples that costs."""


def refuse(error: CalibrationError) -> NoReturn:
    """Raise ``error``, and say what else could be done."""
    raise CalibrationError(f"{error} (or skip bad samples: --skip-bad-samples)") from error


def usable(loads: Iterable[Callable[[], T]], on_bad: OnBad | None) -> Iterator[T]:
    """What ``loads`` give, without those that raise `CalibrationError`: ``on_bad`` is told of them.

    What goes wrong while ``loads`` itself is iterated is no bad sample, and is not caught.

    Raises:
        CalibrationError: the first bad one's, if nobody is to be told; or none could be used.
    """
    first: CalibrationError | None = None
    found = False
    for load in loads:
        try:
            loaded = load()
        except CalibrationError as error:
            if on_bad is None:
                refuse(error)
            on_bad(error, 1)
            first = first or error
        else:
            found = True
            yield loaded
    if first is not None and not found:
        raise CalibrationError(f"not one sample can be used. The first one: {first}") from first

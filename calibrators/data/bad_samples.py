"""Load samples one by one, so that a bad one fails alone and the others can still be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeAlias, TypeVar

from calibrators.errors import CalibrationError

T = TypeVar("T")

OnBad: TypeAlias = Callable[[CalibrationError, int], None]
"""Called with the reason why data cannot be used, and the number of samples lost."""


def refuse(error: CalibrationError) -> NoReturn:
    """Raise ``error`` with a hint at the option that skips bad samples."""
    raise CalibrationError(f"{error} (or skip bad samples: --skip-bad-samples)") from error


def usable(
    loads: Iterable[Callable[[], T]], on_bad: OnBad | None, *, may_be_empty: bool = False
) -> Iterator[T]:
    """Yield what the ``loads`` return; those that raise `CalibrationError` are reported to ``on_bad``.

    Errors while iterating over ``loads`` itself are not caught: they are no bad samples.

    Raises:
        CalibrationError: a sample is bad and there is no ``on_bad``; or no sample could be used, unless there
            ``may_be_empty`` parts of the data.
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
    if first is not None and not found and not may_be_empty:
        raise CalibrationError(f"no sample can be used. The first error: {first}") from first

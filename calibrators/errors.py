"""What the calibrators raise, and how messages shorten lists of names.

What the calibrators raise. They stand alone, so the class does not come from onnxq.

How messages put things.
"""

from __future__ import annotations

from collections.abc import Sequence


class CalibrationError(Exception):
    """Calibration cannot go on: bad data, a batch the model refuses, statistics that do not fit.

    The message names the file, sample or tensor, says what was expected and what to do.
    """


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are: ``a, b and 3 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

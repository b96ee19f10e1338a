"""The error that the calibrators raise, and the shortening of lists of names in messages.

The package ``calibrators`` does not depend on onnxq, so the error class is defined here.
"""

from __future__ import annotations

from collections.abc import Sequence


class CalibrationError(Exception):
    """Calibration cannot go on: bad data, a batch that the model refuses, statistics that do not fit.

    The message names the file, sample or tensor, and says what was expected and what to do.
    """


def shorten(names: Sequence[str], most: int = 5) -> str:
    """List the first ``most`` names and the number of the others: ``a, b and 3 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

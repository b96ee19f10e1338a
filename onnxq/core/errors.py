"""All errors that a user can meet, in one class tree.

::

    OnnxqError
    ├── ModelError          the model cannot be read, cleaned, run or written
    ├── ConfigError         options are wrong, or do not go together
    ├── CalibrationError    the calibration data, or the statistics of it, cannot be used
    └── TargetError         the deployment target is unknown, or does not support what was requested

A message names the file, node or tensor, and says what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

import calibrators.errors


class OnnxqError(Exception):
    """Base class of all errors raised on purpose: catch this one to catch them all."""


class ModelError(OnnxqError):
    """The model cannot be read, cleaned, run or written."""


class ConfigError(OnnxqError):
    """An option is unknown, malformed, or does not go with another."""


class CalibrationError(OnnxqError, calibrators.errors.CalibrationError):
    """The calibration data or statistics are missing or malformed, or do not fit the model."""


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end.

    It has a class of its own to carry ``heeded``, and because Python ends itself by the signal if a plain
    KeyboardInterrupt was raised at a bad moment.

    Attributes:
        heeded: whether something has acted on it, such as a search that ends early: then the work goes on.
    """

    heeded = False


class TargetError(OnnxqError):
    """The deployment target is unknown, or does not support what was requested."""


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """Ask "; did you mean 'x'?" for the valid name that is most like ``given``; empty if none is like it."""
    spellings = {name.lower(): name for name in valid}
    near = get_close_matches(given.lower(), spellings, n=1)
    return f"; did you mean {spellings[near[0]]!r}?" if near else ""

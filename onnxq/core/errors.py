"""Every error a user can meet, as one tree.

::

    OnnxqError
    ├── ModelError          the model cannot be read, cleaned, run or written
    ├── ConfigError         options that are wrong, or do not go together
    ├── CalibrationError    the data, or the statistics made from it
    └── TargetError         the deployment target cannot take what was asked for

A message names the file, node or tensor, says what was expected and what to do.
"""

from __future__ import annotations

import calibrators.errors


class OnnxqError(Exception):
    """Base of all errors raised on purpose: catch this one to catch them all."""


class ModelError(OnnxqError):
    """The model cannot be read, cleaned, run or written."""


class ConfigError(OnnxqError):
    """An option is unknown, malformed, or does not go with another."""


class CalibrationError(OnnxqError, calibrators.errors.CalibrationError):
    """The calibration data or statistics are missing, malformed or do not fit the model."""


class TargetError(OnnxqError):
    """The deployment target is unknown or cannot take what was asked for."""

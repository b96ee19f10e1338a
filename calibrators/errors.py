"""What the calibrators raise. They stand alone, so the class does not come from onnxq."""

from __future__ import annotations


class CalibrationError(Exception):
    """Calibration cannot go on: bad data, a batch the model refuses, statistics that do not fit.

    The message names the file, sample or tensor, says what was expected and what to do.
    """

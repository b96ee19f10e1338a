"""Time and memory of a command, as the comparisons report them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from measure import measured


def test_memory_is_that_of_the_command() -> None:
    ballast = np.ones(300_000_000, np.uint8)
    small = measured([sys.executable, "-S", "-c", "pass"])
    large = measured([sys.executable, "-S", "-c", "print(len(bytearray(b'x') * 200_000_000))"])
    assert small.megabytes < 100 < ballast.nbytes / 1e6
    assert large.megabytes - small.megabytes > 190
    assert large.output.strip() == "200000000"


def test_time_is_that_of_the_command() -> None:
    assert 0.3 <= measured([sys.executable, "-S", "-c", "import time; time.sleep(0.3)"]).seconds < 3


def test_a_failure_is_reported_with_what_the_command_said() -> None:
    with pytest.raises(RuntimeError, match=r"failed \(7\):\nno such thing"):
        measured([sys.executable, "-S", "-c", "import sys; print('no such thing'); sys.exit(7)"])

"""Run runtimes that may crash or hang in a separate process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

WORKERS = Path(__file__).parent / "workers"

SAID = 300
"""The length to which the last message of a failed worker is cut, in characters."""


@dataclass(frozen=True)
class Answer:
    """The result of a worker process.

    Attributes:
        content: the JSON content that it wrote; None if it failed.
        failure: why it failed, for a message.
        timed_out: whether it failed because time was up.
    """

    content: Any = None
    failure: str = ""
    timed_out: bool = False


def installed(*modules: str) -> str | None:
    """Find the first of ``modules`` that is installed, without importing it; None if there is none."""
    return next((name for name in modules if importlib.util.find_spec(name) is not None), None)


def run_in_process(worker: str, arguments: Sequence[str | os.PathLike[str]], seconds: float) -> Answer:
    """Run ``workers/<worker>.py RESULT ARGUMENTS...`` and read the JSON that it writes to RESULT.

    If the process crashes, fails or does not end in time, the answer says so; nothing is raised.

    Args:
        worker: the name of the worker's module.
        arguments: the arguments after RESULT.
        seconds: the time limit.
    """
    with tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True) as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, WORKERS / f"{worker}.py", result, *arguments]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return Answer(failure=f"it did not end within {seconds:.0f} s", timed_out=True)
        if done.returncode:
            return Answer(failure=_last_words(done))
        return Answer(json.loads(result.read_text("utf-8")))


def _last_words(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"it crashed ({_signal(-done.returncode)})"
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"it failed: {lines[-1][:SAID] if lines else f'exit code {done.returncode}'}"


def _signal(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"

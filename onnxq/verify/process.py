"""Runtimes that may crash or hang are asked in a process of their own."""

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
"""Characters of what a worker that failed has said last."""


@dataclass(frozen=True)
class Answer:
    """What a worker found out.

    Attributes:
        content: what it wrote; None if it did not come so far.
        failure: why, if so, in words.
        timed_out: whether that is because time was up.
    """

    content: Any = None
    failure: str = ""
    timed_out: bool = False


def installed(*modules: str) -> str | None:
    """The first of ``modules`` that could be imported; it is not imported."""
    return next((name for name in modules if importlib.util.find_spec(name) is not None), None)


def run_in_process(worker: str, arguments: Sequence[str | os.PathLike[str]], seconds: float) -> Answer:
    """Run ``workers/<worker>.py RESULT ARGUMENTS...`` and read the JSON that it writes to RESULT.

    Whatever happens to that process (a signal, an error, no end) is an answer, not an error.
    """
    with tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True) as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, WORKERS / f"{worker}.py", result, *arguments]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return Answer(failure=f"no end after {seconds:.0f} s", timed_out=True)
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

"""Run a command and measure its duration and its peak memory.

A small separate process starts the command: a child's peak memory starts at the memory of its parent when it
forks, so a parent with large libraries loaded would measure itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """A finished command.

    Attributes:
        seconds: duration by wall clock.
        megabytes: peak memory, in units of 10^6 bytes.
        output: its standard output and error together.
        processor_seconds: the time of all its threads; other programs on the machine hardly change it.
    """

    seconds: float
    megabytes: float
    output: str
    processor_seconds: float = 0.0


def measured(command: Sequence[str], env: Mapping[str, str] | None = None) -> Run:
    """Run ``command`` from the project's root.

    Raises:
        RuntimeError: the command failed; the message holds the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        with log.open("wb") as stream:
            subprocess.run(
                [sys.executable, "-S", __file__, str(result), *command],
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                check=True,
            )
        output = log.read_text("utf-8", errors="replace")
        code, seconds, megabytes, processor = json.loads(result.read_text("utf-8"))
    if code != 0:
        raise RuntimeError(f"{' '.join(command)} failed ({code}):\n{output[-3000:]}")
    return Run(seconds, megabytes, output, processor)


def main(result: str, command: Sequence[str]) -> None:
    """Start the command, wait for it, and write its exit code, durations and peak memory to ``result``."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    code = os.waitstatus_to_exitcode(status)
    figures = [code, seconds, usage.ru_maxrss * unit / 1e6, usage.ru_utime + usage.ru_stime]
    Path(result).write_text(json.dumps(figures), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

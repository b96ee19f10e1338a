"""A small model with data in a folder, and the command line run on it: tools that the tests share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
from graphs import parse

ROOT = Path(__file__).parents[2]

TEXT = """g (float[N,3,8,8] x) => (float[N,4] y) <float[8,3,3,3] w, float[8] b, float[8,4] v>
{ c = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(c)  p = GlobalAveragePool(r)  f = Flatten(p)
  y = MatMul(f, v) }"""


def save_model(path: Path, text: str = TEXT, **weights: object) -> Path:
    ir.save(parse(text, **weights), path)
    return path


def save_data(path: Path, count: int = 20, **changes: object) -> Path:
    """Random samples; ``changes`` replace the array of that name."""
    normal = np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)
    np.savez(path, **{"x": normal} | changes)
    return path


def onnxq(*arguments: object, cwd: Path = ROOT, **options: object) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    return python("-m", "onnxq.cli", *arguments, cwd=cwd, **options)


def python(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Python as a process of its own, in the current folder."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, **options)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a run."""


def listen() -> None:
    """Take signals in a new process, although we may run where they are ignored, as in the background."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def environment() -> dict[str, str]:
    """Ours, in which Python finds the project from any folder, and nothing pretends to be a terminal."""
    given = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}
    return given | {"PYTHONPATH": str(ROOT)}

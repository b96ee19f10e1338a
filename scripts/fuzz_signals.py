"""Send signals to quantizations at random moments: each run must end as interrupted, or be complete.

::

    scripts/python scripts/fuzz_signals.py [--runs 60] [--seed 0]

Every run gets SIGINT, SIGTERM or SIGHUP at a random moment between its first log line and its end. In a third
of the runs Python is kept busy with callbacks of weak references, whose exceptions it swallows. The script
exits 1 if a run went on after a signal, or left files half-written.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from fuzz_models import fuzz_models

ROOT = Path(__file__).parents[1]

OPTIONS = ("--data", "d.npz", "--report", "r.html", "--table", "t.json", "--save-config", "c.yaml")

WRITTEN = ("q.onnx", "r.html", "t.json", "c.yaml")

RUN = f"""
import sys, threading, weakref
from onnxq.cli.interrupts import Interrupts
from onnxq.cli.commands import quantize

class Thing:
    pass

swallowed = Interrupts._on_swallowed

def counted(self, what):
    if isinstance(what.exc_value, KeyboardInterrupt):
        print("SWALLOWED", file=sys.stderr, flush=True)
    swallowed(self, what)

Interrupts._on_swallowed = counted

def busy(*_):
    for _ in range(20_000):
        pass

def churn(frame, event, argument):
    if event == "return" and str(frame.f_globals.get("__name__")).startswith(("onnxq", "calibrators")):
        thing = Thing()
        keep = weakref.ref(thing, busy)
        del thing

if sys.argv.pop(1) == "churn":
    sys.setprofile(churn)
sys.argv[1:] = ["m.onnx", "q.onnx", "--verbose", *{OPTIONS!r}]
sys.exit(quantize())
"""


def prepared(folder: Path) -> Mapping[str, bytes]:
    """Put the files of a run in ``folder``, with outputs from before, and return them."""
    onnx.save(fuzz_models()["convolutions"].model, folder / "m.onnx")
    samples = np.random.default_rng(1).standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "d.npz", x=samples)
    for name in WRITTEN:
        (folder / name).write_bytes(b"old")
    return content(folder)


def content(folder: Path) -> Mapping[str, bytes]:
    """Every file and folder in ``folder``; a folder is empty."""
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}


def run(folder: Path, churn: bool, number: signal.Signals | None, moment: float) -> tuple[int, str, float]:
    """Quantize in ``folder``; send a signal ``moment`` seconds after the first log line.

    Args:
        folder: a folder from `prepared`.
        churn: whether callbacks of weak references run all the time.
        number: the signal; None: send none.
        moment: seconds.

    Returns:
        The exit code, what was printed to stderr, and the seconds from the first log line to the end.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, "churn" if churn else "still"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_listen,
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    started = time.monotonic()
    if number is not None:
        time.sleep(moment)
        process.send_signal(number)
    said += process.stderr.read()
    return process.wait(), said, time.monotonic() - started


def _listen() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def outcome(code: int, said: str, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """Name how a run ended: ``interrupted``, ``complete``, or what is wrong."""
    if code == 0:
        replaced = all(after.get(name, b"old") != b"old" for name in WRITTEN)
        return "complete" if replaced and before.keys() == after.keys() else "WRONG: files are missing"
    if before != after:
        return f"WRONG: exit code {code}, and files have changed"
    if code != 1 or not said.endswith("error: interrupted\n"):
        return f"WRONG: exit code {code}: {said[-300:]}"
    return "interrupted"


def main() -> int:
    """Run all, print the counts, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    lasts: dict[bool, float] = {}
    counts: Counter[str] = Counter()
    swallowed = 0
    for i in range(options.runs):
        churn = i % 3 == 2
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            folder = Path(name)
            before = prepared(folder)
            if churn not in lasts:
                *_, lasts[churn] = run(folder, churn, None, 0)
                before = prepared(folder)
            number = chance.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
            moment = chance.uniform(0, lasts[churn])
            code, said, _ = run(folder, churn, number, moment)
            end = outcome(code, said, before, content(folder))
        swallowed += said.count("SWALLOWED")
        counts[end.split(":")[0]] += 1
        if end.startswith("WRONG"):
            print(f"{number.name} after {moment:.2f} s: {end}", flush=True)
    ends = ", ".join(f"{count} {end}" for end, count in counts.items())
    print(f"{options.runs} runs: {ends}; Python swallowed {swallowed} interrupts, which were raised again")
    return int("WRONG" in counts)


if __name__ == "__main__":
    sys.exit(main())

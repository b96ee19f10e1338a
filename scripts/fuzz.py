"""Run commands on models with random changes, and count the runs that end otherwise than they should.

A command may refuse a model, with exit code 1 and one line on stderr, or take it and write whole files.
These are faults: a traceback, a message that says "bug", a warning of a library, a signal, more than
`SECONDS`, more than `MEGABYTES`, half a file, a forgotten temporary file. Each run is a process of its own,
forked from one that has imported everything, so that thousands take minutes.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import pkgutil
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import onnx
from fuzz_models import FuzzModel, fuzz_models
from mutations import mutate
from rich.console import Console
from rich.table import Table

import calibrators
import onnxq.cli

SECONDS = 60
"""The longest time of a run: the models are small, so what takes longer hangs."""

MEGABYTES = 2048
"""The most memory of a run: the models and all that they compute take less than one."""

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "quantize": ("quantize", "model.onnx", "out.onnx", "--data", "data"),
    "no-data": ("quantize", "model.onnx", "out.onnx"),
    "dynamic": ("quantize", "model.onnx", "out.onnx", "--mode", "dynamic", "--include", "*"),
    "calibrate": ("calibrate", "model.onnx", "out.npz", "--data", "data"),
    "inspect": ("inspect", "model.onnx"),
    "verify": ("verify", "int8.onnx"),
    "requantize": ("requantize", "int8.onnx", "out.onnx", "--data", "data"),
    "compare": ("compare", "model.onnx", "int8.onnx", "--data", "data"),
    "sensitivity": ("sensitivity", "model.onnx", "--data", "data"),
}
"""Name -> arguments. ``model.onnx`` is a changed float model, ``int8.onnx`` a changed Q/DQ model."""

DEFAULT = ("quantize", "dynamic", "calibrate", "inspect", "verify", "requantize")

WRITTEN = frozenset({"out.onnx", "out.onnx.data", "out.npz"})
"""The files that commands are asked to write; they may leave no others."""

NOT_IMPORTED = ("onnxq.torch", "onnxq.verify.workers")
"""Packages that these commands do not use, or only in processes of their own."""

SUSPICIOUS = re.compile(r"Traceback|bug in onnxq|[a-z]Warning: |terminate called|Exception ignored")


@dataclass(frozen=True)
class End:
    """How a run ended.

    Attributes:
        code: exit code; negative: the number of the signal that ended it.
        seconds: the time that it took.
        megabytes: the most memory that it had.
        stderr: what it wrote there.
        files: the files that it left.
    """

    code: int
    seconds: float
    megabytes: float
    stderr: str
    files: frozenset[str]

    @property
    def fault(self) -> str | None:
        """What is wrong with it, as one line; None if nothing is."""
        if self.seconds > SECONDS:
            return f"took more than {SECONDS} s"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        if self.megabytes > MEGABYTES:
            return f"took {self.megabytes:.0f} MB"
        if found := SUSPICIOUS.search(self.stderr):
            return _line_around(self.stderr, found.start())
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        if self.code and not self.stderr.strip().splitlines()[-1:]:
            return "failed without a message"
        if left := self.files - WRITTEN:
            return f"left files: {', '.join(sorted(left))}"
        return f"failed, and left {', '.join(sorted(self.files))}" if self.code and self.files else None


def _line_around(text: str, position: int) -> str:
    lines = text[position:].strip().splitlines()
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def run(arguments: Sequence[str], folder: Path) -> End:
    """Run a command in ``folder``, in a process forked from this one.

    Args:
        arguments: of the command ``onnxq``.
        folder: the working folder; new files in it are what the command leaves.
    """
    before = files_in(folder)
    started = time.monotonic()
    child = os.fork()
    if not child:
        _become(arguments, folder)
    status, usage = _waited(child, started + SECONDS)
    errors = (folder / "stderr").read_text(errors="replace")
    return End(
        os.waitstatus_to_exitcode(status),
        time.monotonic() - started,
        usage.ru_maxrss / 1024,
        errors,
        files_in(folder) - before - {"stderr", "stdout"},
    )


def files_in(folder: Path) -> frozenset[str]:
    """Return the names of all files in a folder."""
    return frozenset(path.name for path in folder.iterdir())


def _become(arguments: Sequence[str], folder: Path) -> None:
    """Turn this forked process into the command."""
    code = 70
    try:
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None
        code = onnxq.cli.main(list(arguments))
        sys.stderr.flush()
    finally:
        os._exit(code)


def _waited(child: int, deadline: float) -> tuple[int, resource.struct_rusage]:
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            return status, usage
        time.sleep(0.005)


def prepare() -> None:
    """Import everything, so that forked processes have it."""
    for package in (calibrators, onnxq):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith(NOT_IMPORTED) and not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def write(model: bytes | onnx.ModelProto, path: Path) -> Path:
    """Write a model, given as bytes or as a message."""
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def write_data(base: FuzzModel, folder: Path) -> None:
    """Write the feeds of a model as .npz files."""
    folder.mkdir(exist_ok=True)
    for number, feed in enumerate(base.feeds):
        np.savez(folder / f"{number}.npz", **feed)  # type: ignore[arg-type]


def quantized(base: FuzzModel, folder: Path) -> onnx.ModelProto:
    """Quantize a model for ONNX Runtime with this project: what is changed for ``int8.onnx``."""
    folder.mkdir()
    write(base.model, folder / "model.onnx")
    write_data(base, folder / "data")
    end = run((*COMMANDS["quantize"], "--verify", "off"), folder)
    if end.code:
        raise RuntimeError(end.stderr)
    return onnx.load(folder / "out.onnx")


def attempt(base: FuzzModel, integer: onnx.ModelProto, random: Random, folder: Path) -> None:
    """Write the files of one attempt: both models changed, and the data of the unchanged one."""
    folder.mkdir()
    write_data(base, folder / "data")
    write(mutate(base.model, random), folder / "model.onnx")
    write(mutate(integer, random), folder / "int8.onnx")


def tried(command: str, folder: Path) -> End:
    """Run a command on the files of an attempt, and remove what it wrote."""
    end = run(COMMANDS[command], folder)
    for name in end.files:
        path = folder / name
        if path.is_file():
            path.unlink()
    return end


@dataclass
class Count:
    """What was seen so far of one command.

    Attributes:
        codes: how often it ended with each exit code.
        faults: how many of its runs were faults.
        slowest: the longest time, in seconds.
        largest: the most memory, in MB.
    """

    codes: Counter[int] = field(default_factory=Counter)
    faults: int = 0
    slowest: float = 0.0
    largest: float = 0.0

    def add(self, end: End) -> None:
        """Count one run."""
        self.codes[end.code] += 1
        self.slowest, self.largest = max(self.slowest, end.seconds), max(self.largest, end.megabytes)
        self.faults += end.fault is not None


@dataclass(frozen=True)
class Job:
    """What a worker does: attempts with random changes of the base models.

    Attributes:
        bases: the float models by name.
        integers: the Q/DQ models by name.
        commands: the commands to run on each attempt.
        seed: seeds the changes, with the number of the attempt.
        root: folder for the attempts' folders.
        keep: where to copy the folders of attempts with faults; None: nowhere.
    """

    bases: Mapping[str, FuzzModel]
    integers: Mapping[str, onnx.ModelProto]
    commands: tuple[str, ...]
    seed: str
    root: Path
    keep: Path | None

    def name(self, number: int) -> str:
        """The name of the base model of an attempt."""
        return list(self.bases)[number % len(self.bases)]

    def __call__(self, number: int) -> tuple[int, list[tuple[str, End]]]:
        """Run all commands on one attempt: its number, and how each command ended."""
        name, folder = self.name(number), self.root / str(number)
        attempt(self.bases[name], self.integers[name], Random(f"{self.seed}/{number}"), folder)
        ends = [(command, tried(command, folder)) for command in self.commands]
        if self.keep is not None and any(end.fault for _, end in ends):
            shutil.copytree(folder, self.keep / str(number), dirs_exist_ok=True)
        shutil.rmtree(folder)
        return number, ends


def main() -> int:
    """Run as a script; 1 if there was a fault."""
    options = _arguments()
    prepare()
    bases = fuzz_models()
    counts = {name: Count() for name in options.commands}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        root = Path(scratch)
        integers = {name: quantized(base, root / name) for name, base in bases.items()}
        job = Job(bases, integers, tuple(options.commands), options.seed, root, options.keep)
        numbers = range(options.first, options.first + options.models)
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
            for number, ends in pool.map(job, numbers):
                for command, end in ends:
                    counts[command].add(end)
                    if end.fault is not None:
                        print(f"{number} {job.name(number)} {command}: {end.fault[:300]}", flush=True)
    Console().print(_table(counts))
    faults = sum(count.faults for count in counts.values())
    runs = sum(count.codes.total() for count in counts.values())
    print(f"{options.models} models, {faults} faults in {runs} runs")
    return int(faults > 0)


def _table(counts: Mapping[str, Count]) -> Table:
    table = Table("command", "exit 0", "exit 1", "exit 2", "faults", "slowest", "most memory")
    for name, count in counts.items():
        codes = [str(count.codes[code]) for code in (0, 1, 2)]
        limits = (f"{count.slowest:.1f} s", f"{count.largest:.0f} MB")
        table.add_row(name, *codes, str(count.faults), *limits)
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commands", nargs="*", metavar="COMMAND", default=DEFAULT, help=", ".join(COMMANDS))
    parser.add_argument("--models", type=int, default=300, help="number of changed models (default: 300)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: 0)")
    parser.add_argument("--seed", default="0", help="seed of the changes (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="number of processes")
    parser.add_argument("--keep", type=Path, help="keep the files of models with faults in this folder")
    options = parser.parse_args()
    if unknown := set(options.commands) - set(COMMANDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(COMMANDS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())

"""Run the same commands in this checkout and in another one, and compare the bytes of the files they write.

Prints one row per file: both SHA-256 sums, cut to 16 digits. Exits with 1 if they differ. Use it to check,
against an earlier checkout, that a change does not change behaviour.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

import bench
import cases
from cases import Case
from onnxq.core.option_types import TableFormat

HERE = Path(__file__).resolve().parent.parent

COMMAND = ("-c", "import sys; from onnxq.cli import main; sys.exit(main())")
"""Runs ``onnxq`` of the checkout that is the current folder."""

FORMATS = get_args(TableFormat)

Commands = Mapping[str, Sequence[str]]
"""File that a command writes -> its arguments; ``{out}`` stands for the folder of the checkout's files."""


def resnet20(case: Case) -> Commands:
    """Every mode, type and table format, on the network that takes only seconds."""
    model, data = str(case.model), ("--data", str(case.data))
    tables = [part for name in FORMATS for part in ("--table", f"{{out}}/resnet20-{name}.table")]
    known = "{out}/resnet20-json.table"
    formats = [part for name in FORMATS for part in ("--table-format", name)]
    return {
        "resnet20.onnx": ("quantize", model, *data, *tables, *formats),
        "resnet20-openvino.onnx": ("quantize", model, *data, "--target", "openvino"),
        "resnet20-entropy.onnx": ("quantize", model, *data, "--method", "entropy", "--correct", "full-bias"),
        "resnet20-int4.onnx": ("quantize", model, *data, "--weight", "int4"),
        "resnet20-goal.onnx": ("quantize", model, *data, "--goal", "sqnr>=36"),
        "resnet20-dynamic.onnx": ("quantize", model, "--mode", "dynamic", "--include", "*"),
        "resnet20-float16.onnx": ("quantize", model, "--mode", "dynamic", "--weight", "float16"),
        "resnet20.npz": ("calibrate", model, *data),
        "resnet20-saved.onnx": ("quantize", model, "--from-table", "{out}/resnet20.npz"),
        "resnet20-again.onnx": ("requantize", "{out}/resnet20.onnx", "--target", "tensorrt"),
        **{f"read-{name}.table": ("table", known, "--format", name) for name in FORMATS},
        "statistics.table": ("table", "{out}/resnet20.npz", "--format", "json"),
    }


def lite0(case: Case) -> Commands:
    """EfficientNet-Lite0 for two runtimes, and its statistics."""
    model, data = str(case.model), ("--data", str(case.data), *case.options)
    return {
        "lite0.onnx": ("quantize", model, *data),
        "lite0-tensorrt.onnx": ("quantize", model, *data, "--target", "tensorrt"),
        "lite0.npz": ("calibrate", model, *data),
        "lite0-again.onnx": ("requantize", "{out}/lite0-tensorrt.onnx", *data),
        "lite0-int4.onnx": ("quantize", model, *data, "--weight", "int4"),
    }


def minilm(case: Case) -> Commands:
    """The sentence encoder, static and dynamic."""
    model, data = str(case.model), ("--data", str(case.data))
    return {
        "minilm.onnx": ("quantize", model, *data),
        "minilm-dynamic.onnx": ("quantize", model, "--mode", "dynamic"),
        "minilm-blocks.onnx": ("quantize", model, "--weight", "int4", "--block-size", "32", *data),
    }


SECTIONS: Mapping[str, Callable[[Case], Commands]] = {"resnet20": resnet20, "lite0": lite0, "minilm": minilm}


def run(checkout: Path, commands: Commands, out: Path) -> None:
    """Run commands with the code of one checkout.

    Args:
        checkout: the checkout.
        commands: the commands, by the file that each writes.
        out: the new folder for these files.

    Raises:
        RuntimeError: a command failed; the message holds its output.
    """
    out.mkdir(parents=True)
    for name, (command, model, *options) in commands.items():
        given = [option.format(out=out) for option in (command, model, str(out / name), *options)]
        quiet = () if command == "table" else ("--quiet",)
        line = [sys.executable, *COMMAND, *given, *quiet]
        done = subprocess.run(line, cwd=checkout, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{checkout}: onnxq {' '.join(given)}:\n{done.stderr}")


def digests(folder: Path) -> dict[str, str]:
    """Compute the first 16 digits of the SHA-256 sum of each file in ``folder``, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def rows(here: Mapping[str, str], there: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (file, its sum here, its sum in the other checkout), with a dash for a missing file."""
    for name in sorted({*here, *there}):
        yield name, here.get(name, "–"), there.get(name, "–")


def show(title: str, found: Sequence[tuple[str, str, str]]) -> bool:
    """Print the rows, and return whether all files are the same."""
    table = Table("file", "this checkout", "the other one", "", title=title, title_justify="left")
    for name, here, there in found:
        table.add_row(name, here, there, "[green]same[/]" if here == there else "[bold red]DIFFERENT[/]")
    Console(width=110).print(table)
    return all(here == there for _, here, there in found)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, help="the other checkout")
    given = bench.arguments(parser, SECTIONS)
    if not (given.other / "onnxq").is_dir():
        parser.error(f"{given.other} is no checkout of this project")
    return given


def main() -> int:
    """Compare section by section; return 1 if any file differs."""
    given = arguments()
    same = True
    with tempfile.TemporaryDirectory() as folder:
        work = given.keep or Path(folder)
        for name in given.sections or SECTIONS:
            commands = SECTIONS[name](cases.CASES[name](given.data, work / name))
            here, there = work / name / "here", work / name / "there"
            run(HERE, commands, here)
            run(given.other, commands, there)
            same &= show(name, list(rows(digests(here), digests(there))))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

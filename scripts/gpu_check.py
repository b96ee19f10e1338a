"""Check on a GPU what can only be simulated without one.

`engines`: TensorRT engines of EfficientNet-Lite0 in float32, float16, int8 and FP8: whether their outputs are
those of ONNX Runtime, and the time of a run and of the slowest layers. `calibration`: whether statistics
collected with ``--provider CUDAExecutionProvider`` are those of the CPU. Exits with 1 if something is wrong,
and with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from precision_peers import Made, convert, quantize
from rich.console import Console
from rich.table import Table

import bench
import cases
from calibrators.session import checked_feeds, open_session
from calibrators.statistics.collection import Statistics
from cases import Case, Feeds
from measure import measured
from onnxq.core.errors import OnnxqError
from onnxq.core.numerics import sqnr
from onnxq.graph.half_precision.simulate import runnable
from onnxq.targets.lookup import get_target
from onnxq.verify.process import Answer, installed, run_in_process
from onnxq.verify.tensorrt import MODULES

NO_GPU = 2
"""The exit status without a GPU."""

SECONDS = 150.0
"""The time limit for building and running one engine."""

RUNS = 100

SLOWEST = 5
"""The number of layers to list."""

LEAST_SQNR = {"float32": 50.0, "float16": 35.0, "int8": 30.0, "fp8": 30.0}
"""The least SQNR in dB between a GPU's outputs and those that ONNX Runtime computes from the same file."""

QUICK = ("--samples", "32", "--correct", "none", "--verify", "off")
"""Which kernels run, and whether they are right, does not depend on the ranges."""

CUDA = "CUDAExecutionProvider"

RANGE_ERROR = 1e-2
"""The largest difference of an end of a range, relative to the range: GPUs compute in TF32."""


@dataclass(frozen=True)
class Place:
    """What the sections need.

    Attributes:
        case: the network and its data.
        work: the working folder.
    """

    case: Case
    work: Path


def _as_it_is(case: Case, output: Path) -> Made:
    return Made(case.model)


def _for_target(target: str, case: Case, output: Path) -> Made:
    try:
        get_target(target)
    except OnnxqError:
        return Made(word=f"skipped: there is no target {target}")
    return quantize(case, output, "--target", target, *QUICK)


FORMS: Mapping[str, Callable[[Case, Path], Made]] = {
    "float32": _as_it_is,
    "float16": partial(convert),
    "int8": partial(_for_target, "tensorrt"),
    "fp8": partial(_for_target, "tensorrt-fp8"),
}
"""The forms of the network, each with what makes its file."""


def engines(place: Place) -> Iterator[tuple[str, ...]]:
    """Form | SQNR to ONNX Runtime | SQNR to float32 | ms a run | slowest layers, ms | wrong."""
    feeds = next(iter(place.case.evaluation()))
    exact = _joined(open_session(place.case.model).run(None, dict(feeds)))
    for form, make in FORMS.items():
        made = make(place.case, place.work / f"{form}.onnx")
        if made.path is None:
            yield form, *["–"] * 4, made.word
            continue
        outputs = place.work / f"{form}.npz"
        answer = _answer(made.path, feeds, outputs)
        if not (answer.content and answer.content["ran"]):
            yield form, *["–"] * 4, _why_not(answer)
            continue
        yield form, *_figures(form, made.path, (feeds, exact), (answer.content, outputs))


def _answer(path: Path, feeds: Feeds, outputs: Path) -> Answer:
    """Build and run an engine in a process of its own."""
    inputs = outputs.with_suffix(".inputs.npz")
    arrays: dict[str, Any] = checked_feeds(open_session(path), feeds)
    np.savez(inputs, **arrays)
    return run_in_process("build_engine", [path, inputs, outputs, "SM86", str(RUNS)], SECONDS)


def _why_not(answer: Answer) -> str:
    if not answer.content:
        return answer.failure
    errors = [error["text"] for error in answer.content["errors"]]
    return str((errors or [answer.content["why_not"]])[0]).splitlines()[0]


def _figures(
    form: str, path: Path, given: tuple[Feeds, np.ndarray], ran: tuple[Any, Path]
) -> tuple[str, ...]:
    """Return the cells of an engine that ran.

    Args:
        form: a form of `FORMS`.
        path: the file.
        given: the inputs, and the outputs of the float32 model.
        ran: what the worker wrote, and the file of the outputs.
    """
    (feeds, exact), (content, outputs) = given, ran
    session = open_session(runnable(path))
    names = [output.name for output in session.get_outputs()]
    expected = _joined(session.run(None, checked_feeds(session, feeds)))
    with np.load(outputs) as arrays:
        actual = _joined([arrays[name] for name in names])
    alike = sqnr(expected, actual)
    slow = sorted(content["profile"].items(), key=lambda item: -item[1])[:SLOWEST]
    return (
        f"{alike:.1f} dB",
        f"{sqnr(exact, actual):.1f} dB",
        f"{np.median(content['milliseconds']):.3f}",
        "\n".join(f"{name}: {ms:.3f}" for name, ms in slow),
        "" if alike >= LEAST_SQNR[form] else f"below {LEAST_SQNR[form]:.0f} dB",
    )


def _joined(outputs: list[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(output, np.float32).ravel() for output in outputs])


def calibration(place: Place) -> Iterator[tuple[str, ...]]:
    """Tensors | largest difference of ranges | seconds on the GPU | seconds on the CPU | wrong."""
    if CUDA not in ort.get_available_providers():
        yield *["–"] * 4, f"skipped: this ONNX Runtime has no {CUDA}"
        return
    found, seconds = [], []
    for provider in (CUDA, "CPUExecutionProvider"):
        path = place.work / f"{provider}.npz"
        command = [sys.executable, "-m", "onnxq.cli", "calibrate", str(place.case.model), str(path)]
        options = [*place.case.options, "--data", str(place.case.data), "--provider", provider]
        seconds.append(f"{measured([*command, *options]).seconds:.1f}")
        found.append(Statistics.load(path))
    worst = difference(*found)
    wrong = "" if worst <= RANGE_ERROR else "the ranges differ"
    yield str(len(found[0])), f"{worst:.2e}", *seconds, wrong


def difference(one: Statistics, other: Statistics) -> float:
    """Return the largest difference of an end of a tensor's range, relative to the range's length."""
    pairs = ((one[name], other[name]) for name in one)
    return max(max(abs(a.low - b.low), abs(a.high - b.high)) / max(b.high - b.low, 1e-30) for a, b in pairs)


SECTIONS: Mapping[str, Callable[[Place], Iterator[tuple[str, ...]]]] = {
    "engines": engines,
    "calibration": calibration,
}
"""The sections. The docstring of each has the headings of its columns."""


def missing() -> str | None:
    """Say what is missing to run on a GPU; None if nothing is."""
    if installed(*MODULES) is None:
        return "TensorRT is not installed: pip install 'onnxq[tensorrt]'"
    from onnxq.verify.workers.build_engine import gpus

    return None if gpus() else "there is no GPU, or its driver does not answer"


def main() -> int:
    """Run the sections of the command line; return 1 if a result is wrong, 2 without a GPU."""
    if (reason := missing()) is not None:
        print(f"gpu_check: nothing was checked: {reason}")
        return NO_GPU
    given = bench.arguments(argparse.ArgumentParser(description=__doc__), SECTIONS)
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        for name in given.sections or SECTIONS:
            section = SECTIONS[name]
            work = Path(given.keep or folder) / name
            work.mkdir(parents=True)
            table = Table(title=name, title_justify="left")
            for heading in (section.__doc__ or "").rstrip(".").split(" | "):
                table.add_column(heading)
            for cells in section(Place(cases.lite0(given.data, work), work)):
                table.add_row(*cells)
                wrong |= bool(cells[-1]) and not cells[-1].startswith("skipped")
            Console(width=150).print(table)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""Run onnxq and its peers on one model for the precision benchmark, and measure what they write."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrators.errors import CalibrationError
from calibrators.session import RUNTIME_ERRORS, checked_feeds, open_session
from cases import Case, Feeds
from measure import Run, measured
from onnxq.core.numerics import sqnr
from onnxq.graph.files import load
from onnxq.graph.half_precision.simulate import runnable, unrounded

Outputs = list[NDArray[Any]]

CONVERTERS = {
    "onnxconverter-common": "onnxconverter_common",
    "onnxruntime.transformers": "onnxruntime.transformers",
    "autocast": "modelopt",
}
"""The peers of `onnxq convert`, as `peer_precision.py` calls them -> the module that each needs."""

FP8 = {"modelopt-fp8-max": "modelopt", "modelopt-fp8-entropy": "modelopt"}
"""The peers of the target tensorrt-fp8."""

MODULES = CONVERTERS | FP8 | {"onnxruntime.transformers-io": "onnxruntime.transformers"}

RUNS_NOT: tuple[type[Exception], ...] = (CalibrationError, *RUNTIME_ERRORS)

MISSING = "ModuleNotFoundError"


@dataclass(frozen=True)
class Made:
    """What a tool made of a model.

    Attributes:
        path: the written file; None if there is none.
        run: the command; None if it failed.
        word: why there is no file: "not installed" or "crash".
    """

    path: Path | None = None
    run: Run | None = None
    word: str = ""


@dataclass(frozen=True)
class Peers:
    """The peers.

    Attributes:
        python: the Python of an environment with peers that are not in this one; None: there is none.
    """

    python: Path | None

    def convert(self, tool: str, case: Case, output: Path) -> Made:
        """Convert the model of ``case`` with a tool of `MODULES`, in a process of its own."""
        here = importlib.util.find_spec(MODULES[tool].split(".")[0]) is not None
        python = sys.executable if here else self.python
        if python is None:
            return Made(word="not installed")
        script = Path(__file__).with_name("peer_precision.py")
        files = map(str, (case.model, output, case.data))
        return _made([str(python), str(script), *files, "--tool", tool], output)


def convert(case: Case, output: Path, *options: str) -> Made:
    """Convert the model of ``case`` with `onnxq convert`."""
    command = [sys.executable, "-m", "onnxq.cli", "convert", str(case.model), str(output)]
    return _made([*command, "--data", str(case.data), *case.options, *options], output)


def quantize(case: Case, output: Path, *options: str) -> Made:
    """Quantize the model of ``case`` with `python -m onnxq.quantize`."""
    command = [sys.executable, "-m", "onnxq.quantize", str(case.model), str(output)]
    return _made([*command, "--data", str(case.data), *case.options, *options], output)


def _made(command: Sequence[str], output: Path) -> Made:
    try:
        return Made(output, measured(command))
    except RuntimeError as error:
        if MISSING in str(error):
            return Made(word="not installed")
        print(str(error).strip().splitlines()[-1], file=sys.stderr)
        return Made(word="crash")


def accuracy(case: Case, made: Made, feeds: Sequence[Feeds] | None = None) -> float | str:
    """Compare what a tool wrote with the model of ``case``, half precision rounded as its hardware does.

    Args:
        case: the model and its evaluation data.
        made: what the tool wrote.
        feeds: the batches to compare on (default: all of the evaluation data).

    Returns:
        The SQNR of all outputs together in dB; or "crash", "invalid" (ONNX Runtime does not open or run it),
        "Inf/NaN", "not installed".
    """
    if made.path is None:
        return made.word
    feeds = list(case.evaluation()) if feeds is None else feeds
    reference = outputs(unrounded(load(case.model)), feeds)
    try:
        open_session(made.path)
        found = outputs(runnable(made.path), feeds)
    except RUNS_NOT as error:
        print(f"{made.path.name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return "invalid"
    if any(not np.isfinite(b[np.isfinite(a)]).all() for a, b in zip(reference, found, strict=True)):
        return "Inf/NaN"
    return min(sqnr(a, b) for a, b in zip(reference, found, strict=True))


def outputs(model: Any, feeds: Iterable[Feeds]) -> Outputs:
    """Run a model on all batches, and join each output, flattened, in float32."""
    session = open_session(model)
    given = [session.run(None, checked_feeds(session, batch)) for batch in feeds]
    return [
        np.concatenate([each.ravel() for each in output]).astype(np.float32)
        for output in zip(*given, strict=True)
    ]

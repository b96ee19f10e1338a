"""Calibrate one model and measure the time: ``python scripts/calibrate_once.py MODEL DATA TOOL …``.

A TOOL is ``onnxq`` (a selection of large tensors), ``onnxq-every`` (every element), or a method of the peer:
``minmax``, ``entropy``, ``percentile``. DATA is a folder of ``.npz`` batches, which every pass reads again.
Prints a line of JSON: seconds of the plain float pass (``float``) and of each tool. They run in turns, and
the values are medians of ``--repeat`` turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrators.collect import collect
from calibrators.data.samples import Sample
from calibrators.session import open_session
from onnxq.core.config import QuantConfig
from onnxq.pipelines.prepare import prepare

Feeds = Mapping[str, NDArray[Any]]
OURS = {"onnxq": False, "onnxq-every": True}
"""Tool -> whether every element is counted."""


def feeds(files: Sequence[Path]) -> Iterator[Feeds]:
    """Yield the batches, one after the other."""
    for file in files:
        with np.load(file) as arrays:
            yield dict(arrays)


def float_pass(model: Path, files: Sequence[Path], threads: int) -> Callable[[], None]:
    """Make a function that runs the float model on all batches.

    Args:
        model: path of the float model.
        files: the batches.
        threads: number of threads.
    """
    session = open_session(model, threads=threads)

    def run() -> None:
        for batch in feeds(files):
            session.run(None, dict(batch))

    return run


def our_pass(
    model: Path, files: Sequence[Path], threads: int, every_element: bool, tensors: int | None
) -> Callable[[], None]:
    """Make a function that collects statistics with onnxq.

    Args:
        model: path of the float model.
        files: the batches.
        threads: number of threads.
        every_element: count every element instead of a selection.
        tensors: number of tensors to observe, evenly spread over those of the plan; None: all of them.
    """
    simple, plan = prepare(model, QuantConfig())
    count = tensors or len(plan.observed)
    observed = [plan.observed[i * len(plan.observed) // count] for i in range(count)]

    def run() -> None:
        samples = (Sample("", batch, len(next(iter(batch.values())))) for batch in feeds(files))
        collect(simple, observed, samples, threads=threads, every_element=every_element)

    return run


def peer_pass(model: Path, files: Sequence[Path], method: str, work: Path) -> Callable[[], None]:
    """Make a function that runs the peer's calibrator, from its augmented model to its ranges.

    Args:
        model: path of the float model.
        files: the batches.
        method: the peer's method.
        work: folder for the augmented model.
    """
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.calibrate import create_calibrator
    from peer import METHODS

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self.batches = feeds(files)

        def get_next(self) -> Feeds | None:
            return next(self.batches, None)

    def run() -> None:
        calibrator = create_calibrator(
            str(model), None, str(work / "augmented.onnx"), calibrate_method=METHODS[method]
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()

    return run


def seconds(action: Callable[[], None]) -> float:
    """Run ``action`` and return its duration in seconds, by wall clock."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def prepared(tool: str, given: argparse.Namespace, files: Sequence[Path], work: Path) -> Callable[[], None]:
    """Make the function that calibrates with ``tool``.

    Args:
        tool: the tool.
        given: the command line's arguments.
        files: the batches.
        work: folder for temporary files.
    """
    if tool in OURS:
        return our_pass(given.model, files, given.threads, OURS[tool], given.tensors)
    return peer_pass(given.model, files, tool, work)


def main() -> None:
    """Measure the tools that the arguments name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("tools", nargs="+", choices=(*OURS, "minmax", "entropy", "percentile"))
    parser.add_argument("--batches", type=int, help="number of batches of DATA to use")
    parser.add_argument("--tensors", type=int, help="number of tensors to observe")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    given.model = given.model.absolute()
    files = sorted(given.data.absolute().glob("*.npz"))[: given.batches]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the peer leaves files in the working folder
        actions = {"float": float_pass(given.model, files, given.threads)}
        actions |= {tool: prepared(tool, given, files, Path(folder)) for tool in given.tools}
        actions["float"]()
        turns = [{name: seconds(action) for name, action in actions.items()} for _ in range(given.repeat)]
    print(json.dumps({name: statistics.median(turn[name] for turn in turns) for name in actions}))


if __name__ == "__main__":
    main()

"""Reach goals on the metric of a task with real models, and print what they cost.

For each case: the model is quantized with a goal, the curve of the search is printed, and the metric is
measured again on samples that took no part. There is no ground truth for these pictures: the labels are
the float model's own results, so its value is perfect, and the figure is how much of it is left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from onnxq.algorithms.mixed_precision.search import Search
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.pipelines.compare import compare_files
from onnxq.pipelines.static import quantize_static

OUT = Console()

OWN = "own"
"""The case that measures `same_class`, a function as users write them, with labels from a file."""


def same_class(outputs: Sequence[Mapping[str, Any]], labels: Sequence[int]) -> float:
    """Return the share of pictures whose surest box has the class that the label names.

    Args:
        outputs: those of a YOLO model, ``[1, 4 + C, N]``.
        labels: class indices.
    """
    classes = [_surest(next(iter(one.values()))) for one in outputs]
    return float(np.mean([found == label for found, label in zip(classes, labels, strict=True)]))


def _surest(output: Any) -> int:
    """Return the class of the surest box."""
    return int(output[0, 4:].max(1).argmax())


def main() -> int:
    """Run the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--case", nargs=3, action="append", required=True, metavar=("FOLDER", "METRIC", "GOAL")
    )
    parser.add_argument("--samples", type=int, default=40, help="samples to quantize with, and to confirm on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as keep:
        reached = [_reached(Path(case[0]), case[1:], args.samples, Path(keep)) for case in args.case]
    return int(not all(reached))


def _reached(folder: Path, wanted: Sequence[str], samples: int, keep: Path) -> bool:
    """Quantize, print, and return whether the goal was reached."""
    metric, goal = wanted
    config = _config(folder, "calib.npz", metric, samples, keep)
    model, output = folder / "model.onnx", keep / f"{folder.name}-{metric.partition(':')[0]}.onnx"
    try:
        result = quantize_static(model, output, config=config.changed(goal=goal))
    except ModelError as error:
        OUT.print(f"{folder.name}, {metric}, {goal}: {error}")
        return False
    assert result.search is not None
    OUT.print(_curve(f"{folder.name}, {metric}, {goal}: reached", result.search))
    floats, every = len(result.search.chosen.floats), len(result.plan.integer_nodes)
    OUT.print(f"float nodes for the goal: {floats} beside {every} in integers; {result.seconds:.0f} s")
    OUT.print(f"{result.judged_on}: {result.quality and result.quality.metric}")
    confirmed, speed = compare_files(model, output, _config(folder, "eval.npz", metric, samples, keep))
    OUT.print(f"other samples: {confirmed.metric}; {speed.ratio:.2f} times as fast as float, one thread")
    for warning in result.warnings:
        OUT.print(f"warning: {warning}")
    return True


def _config(folder: Path, data: str, metric: str, samples: int, keep: Path) -> QuantConfig:
    given: dict[str, Any] = {"metric": metric, "labels": "float"}
    if metric == OWN:
        labels = keep / f"{folder.name}-{data}.npy"
        np.save(labels, _classes(folder / "model.onnx", folder / data))
        given = {"metric": f"{__file__}:{same_class.__name__}", "labels": labels}
    return QuantConfig(data=folder / data, samples=samples, autotune="off", verify="off", **given)


def _classes(model: Path, data: Path) -> list[int]:
    """Return the class of the surest box of the float model, for each sample."""
    session = ort.InferenceSession(model)
    arrays = np.load(data)
    names = [one.name for one in session.get_inputs()]
    count = len(arrays[names[0]])
    feeds = ({name: arrays[name][n : n + 1] for name in names} for n in range(count))
    return [_surest(session.run(None, one)[0]) for one in feeds]


def _curve(title: str, search: Search) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("float nodes", "metric", "SQNR, dB", "MB", "speed", ""):
        table.add_column(column, justify="right")
    for trial in search.curve:
        figures = f"{len(trial.floats)}", f"{trial.value:.4f}", f"{trial.sqnr:.2f}", f"{trial.size / 1e6:.2f}"
        speed = "" if trial.speed is None else f"{trial.speed:.2f}"
        table.add_row(*figures, speed, "chosen" if trial.key == search.chosen.key else "")
    return table


if __name__ == "__main__":
    sys.exit(main())

"""Draw the range of each calibration method for some typical tensors, and the growth of ranges.

The same models, data and versions give the same files.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray

import bench
from calibrators.methods import CALIBRATORS
from calibrators.statistics import TensorStatistics
from calibrators.statistics.histogram import Histogram
from calibrators.statistics.sample_extremes import SampleExtremes
from calibrators.statistics.stability import stability
from cases import CASES, Case
from onnxq.calibration.qparams import ranges
from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan
from onnxq.pipelines.calibrate import calibrate
from onnxq.pipelines.prepare import prepare
from onnxq.pipelines.report.chart import cumulative

Ends = tuple[float, float]
Curve = tuple[NDArray[Any], NDArray[Any]]

COLUMNS = 240
"""Number of columns of a histogram; more could not be distinguished."""

STYLE: Any = {
    "svg.hashsalt": "onnxq",  # otherwise names inside the file are random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#59636e",
    "figure.facecolor": "white",
}
BARS, QUIET = "#9cc3ee", "#59636e"
COLORS = ("#1c2128", "#8250df", "#bf8700", "#cf222e", "#0969da", "#1a7f37")


@dataclass(frozen=True)
class Subject:
    """A tensor to draw: its model, its name there, and the title of the picture."""

    model: str
    tensor: str
    title: str


SUBJECTS: Mapping[str, Subject] = {
    "relu6": Subject("lite0", "hardtanh_27", "EfficientNet-Lite0: after a ReLU6"),
    "sum": Subject("lite0", "add_728", "EfficientNet-Lite0: a residual sum, both signs"),
    "gelu": Subject("minilm", "gelu", "MiniLM: after a Gelu"),
    "outliers": Subject(
        "minilm", "layer_norm_1", "MiniLM: after a LayerNormalization, a channel of outliers"
    ),
    "features": Subject("resnet20", "relu_18", "ResNet-20: the features before the global average pool"),
}
"""Name of the picture -> its tensor."""


TITLES = {"lite0": "EfficientNet-Lite0", "resnet20": "ResNet-20", "minilm": "MiniLM"}


@dataclass(frozen=True)
class Calibrated:
    """A calibrated model.

    Attributes:
        plan: its plan.
        statistics: group -> statistics, clipped to the group's bounds.
        ranges: method -> group -> range.
    """

    plan: QuantPlan
    statistics: Mapping[str, TensorStatistics]
    ranges: Mapping[str, Mapping[str, Ends]]


def main() -> int:
    """Draw all pictures."""
    given = _arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, mpl.rc_context(STYLE):
        models = {name: look(make(given.data, Path(folder) / name)) for name, make in CASES.items()}
        for name, subject in SUBJECTS.items():
            save(draw_methods(subject, models[subject.model]), given.output / f"{name}.svg")
        save(draw_growth(models), given.output / "growth.svg")
    return 0


def look(case: Case) -> Calibrated:
    """Calibrate a model once, and choose ranges by all methods."""
    config = options(case)
    _, plan = prepare(case.model, config)
    found = calibrate(case.model, case.data, config)
    groups = {group.name: group for group in plan.groups.values() if group.observed_tensors}
    statistics = {
        name: reduce(TensorStatistics.join, (found[tensor] for tensor in group.observed_tensors)).clipped(
            *group.bounds
        )
        for name, group in groups.items()
    }
    return Calibrated(plan, statistics, {name: ranges(plan, found, m) for name, m in CALIBRATORS.items()})


def options(case: Case) -> QuantConfig:
    """Convert a case's command-line options to a `QuantConfig`."""
    flags, values = case.options[::2], case.options[1::2]
    return QuantConfig(**{flag.removeprefix("--"): value for flag, value in zip(flags, values, strict=True)})


def group_of(subject: Subject, model: Calibrated) -> str:
    """Find the group of a subject's tensor; other exporter versions may use another name."""
    for name in model.statistics:
        if subject.tensor in model.plan.groups[name].tensors:
            return name
    raise SystemExit(
        f"{subject.model} has no tensor {subject.tensor!r} any more; it has {list(model.statistics)}"
    )


def with_zero(ends: Ends) -> Ends:
    """Extend a range to include zero, as the deployed one does."""
    return min(ends[0], 0.0), max(ends[1], 0.0)


def columns(histogram: Histogram, ends: Ends) -> Curve:
    """Compute edges [COLUMNS + 1] and counts [COLUMNS] between ``ends``; outer columns count all beyond."""
    edges = np.linspace(*ends, COLUMNS + 1)
    counts = np.diff(cumulative(histogram, np.array([-np.inf, *edges[1:-1], np.inf])))
    return edges, counts


def draw_methods(subject: Subject, model: Calibrated) -> Any:
    """Draw the histogram, and below it the range of each method on the same axis."""
    group = group_of(subject, model)
    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 3.6), layout="constrained", height_ratios=(3, 2)
    )
    _draw_histogram(above, model.statistics[group])
    above.set_title(subject.title, loc="left", fontweight="bold")
    for row, (found, color) in enumerate(zip(model.ranges.values(), COLORS, strict=True)):
        _draw_range(above, below, row, with_zero(found[group]), color)
    below.set_ylim(len(model.ranges) - 0.5, -0.5)
    below.set_yticks(range(len(model.ranges)), list(model.ranges))
    below.tick_params(axis="y", length=0)
    return figure


def _draw_histogram(axes: Any, statistics: TensorStatistics) -> None:
    edges, counts = columns(statistics.histogram, with_zero((statistics.low, statistics.high)))
    axes.stairs(counts, edges, fill=True, color=BARS)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.set_ylabel("values")


def _draw_range(above: Any, below: Any, row: int, ends: Ends, color: str) -> None:
    """Draw the range of one method as a line, and mark its ends in the histogram."""
    below.plot(ends, (row, row), color=color, linewidth=2, marker="|", markersize=9)
    below.annotate(
        f"{ends[0]:.3g} … {ends[1]:.3g}",
        (1.01, row),
        xycoords=("axes fraction", "data"),
        verticalalignment="center",
        color=QUIET,
        fontsize=8,
    )
    for end in ends:
        above.axvline(end, color=color, linewidth=0.8, linestyle=(0, (4, 2)))


def draw_growth(models: Mapping[str, Calibrated]) -> Any:
    """Draw the width of a range over the samples, for the tensor of each model that grew most at the end."""
    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    for (name, model), color in zip(models.items(), COLORS[2:], strict=False):
        group = most_grown(model)
        shares = growth(model.statistics[group].trail)
        samples = np.linspace(0, 1, len(shares) + 1)[1:]
        axes.step(samples, shares, where="post", color=color, label=f"{TITLES[name]}: {group}")
    axes.axvspan(0.75, 1, color=BARS, alpha=0.35, linewidth=0)
    axes.set_xlabel("share of the samples (the last quarter is shaded)")
    axes.set_ylabel("share of the final range")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower right")
    return figure


def most_grown(model: Calibrated) -> str:
    """Find the group that grew by the largest share over the last quarter of the samples."""
    return max(model.statistics, key=lambda name: stability(model.statistics[name]).growth or 0.0)


def growth(trail: SampleExtremes) -> NDArray[np.float64]:
    """Compute the width of the range, zero included, after each sample, as a share of the final width."""
    lows, highs = trail.seen()
    width = np.maximum(np.maximum.accumulate(highs), 0) - np.minimum(np.minimum.accumulate(lows), 0)
    return width.astype(np.float64) / (float(width[-1]) or 1.0)


def save(figure: Any, path: Path) -> None:
    """Save as SVG, without the date."""
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=bench.evaluation_data(), help="the evaluation data")
    parser.add_argument("--output", type=Path, default=Path("docs") / "pictures", help="(%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

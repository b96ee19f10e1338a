"""Measure the cost of calibration and the accuracy of its methods, compared with `onnxruntime.quantization`.

Prints a table for each given section (all of them by default) and exits with 1 if a goal is missed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np

import bench
import cases
import evaldata
import speed_models
from bench import Figure, Place, Sections, at_least, at_most
from calibrators.data.open import open_data
from calibrators.data.samples import input_specs
from calibrators.methods import CALIBRATORS
from calibrators.session import as_model, open_session
from calibrators.statistics import Statistics
from cases import Case
from measure import Run, measured
from onnxq.calibration.qparams import calibrator, from_statistics
from onnxq.core.config import QuantConfig
from onnxq.core.numerics import sqnr
from onnxq.pipelines.inspection import inspect
from onnxq.pipelines.prepare import prepare
from onnxq.pipelines.static import quantize_static

OURS = ("onnxq", "onnxq-every")
MEMORY = ("onnxq", "entropy")
"""The tools whose memory is measured: onnxq, and a peer's method that keeps histograms."""

PEER_METHODS = ("minmax", "entropy", "percentile")

TURNS = 9
"""How often a command is run beside a float pass; the figures are medians."""

SCALES = (1, 2, 4, 8)
"""The factors by which tensors, samples and elements are multiplied to measure how the cost grows."""


@dataclass(frozen=True)
class Cost:
    """The cost of calibrations in one process.

    Attributes:
        seconds: tool -> time in seconds; "float" is the plain float pass.
        megabytes: peak memory of the whole process.
    """

    seconds: Mapping[str, float]
    megabytes: float

    def ratio(self, tool: str) -> float:
        """The time of ``tool``, as a multiple of the float pass."""
        return self.seconds[tool] / self.seconds["float"]


def calibrated(model: Path, data: Path, *arguments: str) -> Cost:
    """Run calibrations with `calibrate_once`, in a separate process."""
    script = Path(__file__).with_name("calibrate_once.py")
    run = measured([sys.executable, str(script), str(model), str(data), *arguments])
    return Cost(json.loads(run.output.splitlines()[-1]), run.megabytes)


def cost(place: Place) -> list[Figure]:
    """EfficientNet-Lite0, 100 pictures one by one, two threads: time relative to the float pass, memory."""
    model, data = cases.lite0(place.shared, place.work).model, _pictures(place, 1)
    ours = calibrated(model, data, *OURS, "--repeat", "7")
    peer = calibrated(model, data, *PEER_METHODS)
    held = {
        tool: [calibrated(model, data, tool, "--batches", n).megabytes for n in ("100", "10")]
        for tool in MEMORY
    }
    growth, peer_growth = (many / few for many, few in held.values())
    every, selection = ours.ratio("onnxq-every"), ours.ratio("onnxq")
    return [
        Figure("plain float pass, s", ours.seconds["float"], peer=peer.seconds["float"]),
        at_most("counting every element; peer: entropy", every, 3.5, peer.ratio("entropy"), "{:.2f} ×"),
        at_most(
            "counting a selection; peer: percentile", selection, 2.5, peer.ratio("percentile"), "{:.2f} ×"
        ),
        Figure(
            "peer: min-max, which keeps no histograms", selection, peer=peer.ratio("minmax"), form="{:.2f} ×"
        ),
        Figure("peak memory, MB; peer: entropy", held["onnxq"][0], peer=held["entropy"][0], form="{:.0f}"),
        at_most("memory, 100 pictures against 10; peer: entropy", growth, 1.05, peer_growth, "{:.3f}"),
    ]


def command(place: Place) -> list[Figure]:
    """`onnxq calibrate` on EfficientNet-Lite0: time of 96 more pictures, memory of 100 against 10."""
    model = cases.lite0(place.shared, place.work).model
    stacks = {number: _stack(place, number) for number in (4, 10, 100)}
    statistics = place.work / "statistics.npz"
    float_pass = _float_pass(model, stacks[100], 96)
    passes: list[tuple[float, float]] = []
    runs: dict[int, list[Run]] = {number: [] for number in stacks}
    for _ in range(TURNS):
        passes.append(float_pass())
        for number, file in stacks.items():
            statistics.unlink(missing_ok=True)
            line = [sys.executable, "-m", "onnxq.cli", "calibrate", str(model), str(statistics)]
            runs[number].append(measured([*line, "--data", str(file)]))
    seconds, memory = (
        {number: median(getattr(run, what) for run in done) for number, done in runs.items()}
        for what in ("seconds", "megabytes")
    )
    running, whole = (median(column) for column in zip(*passes, strict=True))
    more = seconds[100] - seconds[4]
    return [
        Figure("a float pass that reads 96 pictures, s", whole),
        Figure("96 more pictures, s", more),
        at_most("relative to the float pass", more / whole, 2.5, form="{:.2f} ×"),
        Figure("relative to the float pass without reading", more / running, form="{:.2f} ×"),
        at_most("memory, 100 pictures against 10", memory[100] / memory[10], 1.05, form="{:.3f}"),
    ]


def shapes(place: Place) -> list[Figure]:
    """Time and memory with batches of 8 pictures, and for the sentence encoder with all lengths."""
    lite0, minilm = (make(place.shared, place.work) for make in (cases.lite0, cases.minilm))
    figures = []
    for name, case, data in (
        ("Lite0, batches of 8", lite0, _pictures(place, 8)),
        ("MiniLM, ragged", minilm, minilm.data),
    ):
        ours = calibrated(case.model, data, *OURS, "--repeat", "5")
        batches = len(list(data.iterdir()))
        whole, half = (
            calibrated(case.model, data, "onnxq", "--batches", str(n)).megabytes
            for n in (batches, batches // 2)
        )
        peer = _peer_ratio(case.model, data)
        figures += [
            at_most(
                f"{name}: every element; peer: entropy", ours.ratio("onnxq-every"), 3.5, peer, "{:.2f} ×"
            ),
            Figure(f"{name}: a selection", ours.ratio("onnxq"), form="{:.2f} ×"),
            at_most(f"{name}: memory, all against half", whole / half, 1.05, form="{:.3f}"),
        ]
    return figures


def growth(place: Place) -> list[Figure]:
    """The cost of counting every element over tensors, samples, elements; drawn in growth.png."""
    model, single = cases.lite0(place.shared, place.work).model, _pictures(place, 1)

    def seconds(data: Path, *options: str) -> float:
        return calibrated(model, data, "onnxq-every", "--repeat", "3", *options).seconds["onnxq-every"]

    series = {
        "tensors": {7 * n: seconds(single, "--tensors", str(7 * n)) for n in SCALES},
        "samples": {12 * n: seconds(single, "--batches", str(12 * n)) for n in SCALES},
        "samples per batch": {n: seconds(_pictures(place, n), "--batches", "10") for n in SCALES},
    }
    for name, points in series.items():
        print(f"{name}: " + ", ".join(f"{x} -> {y:.2f} s" for x, y in points.items()))
    _plot(series, place.work / "growth.png")
    return [
        at_least(f"{name}: R² of a straight line", _straightness(points), 0.95, form="{:.3f}")
        for name, points in series.items()
    ]


def chains(place: Place) -> list[Figure]:
    """Processor time of the plan (`onnxq inspect`) of chains of 1,000 nodes to 8,000."""

    def seconds(nodes: int) -> float:
        model = speed_models.chain(place.work / f"{nodes}.onnx", nodes // 3)
        start = time.process_time()
        inspect(model, QuantConfig())
        return time.process_time() - start

    seconds(100)  # loads what is loaded once
    points = {1000 * n: seconds(1000 * n) for n in SCALES}
    each = {nodes: 1e3 * took / nodes for nodes, took in points.items()}
    return [
        *(Figure(f"{nodes} nodes, ms each", took) for nodes, took in each.items()),
        at_most("8,000 nodes against 1,000, time for each", each[8000] / each[1000], 1.5, form="{:.2f} ×"),
    ]


def methods(place: Place) -> list[Figure]:
    """SQNR in dB by method: each model is calibrated once, and all methods use these statistics."""
    figures: list[Figure] = []
    for name, make in cases.CASES.items():
        case = make(place.shared, place.work)
        statistics = place.work / f"{name}.npz"
        bench.quantize(case, place.work / f"{name}.onnx", "--save-statistics", str(statistics))
        judge = Judge(case)
        ours = {method: judge.sqnr(_by_method(case, statistics, method, place)) for method in CALIBRATORS}
        peers = {method: judge.sqnr(model) for method, model in _peer_models(case, place)}
        figures += [Figure(f"{name}: {method}", db, peer=peers.get(method)) for method, db in ours.items()]
        default = str(QuantConfig().method)
        below_best = max(ours.values()) - ours[default]
        figures.append(at_most(f"{name}: the default, {default}, below the best, dB", below_best, 0.2))
        figures.append(at_most(f"{name}: ranges of all methods, s", _solving(case.model, statistics), 1.0))
    return figures


class Judge:
    """Measures models against the float model of a case, by the first output."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._reference = bench.outputs(case.model, case.evaluation())

    def sqnr(self, model: Path) -> float:
        """Compute the SQNR of ``model``, in dB."""
        return sqnr(self._reference, bench.outputs(model, self._case.evaluation()))


def _by_method(case: Case, statistics: Path, method: str, place: Place) -> Path:
    """Quantize with ranges by ``method`` from saved statistics."""
    output = place.work / "method.onnx"
    quantize_static(case.model, output, config=QuantConfig(method=method, from_table=statistics))
    return output


SECTIONS: Sections = {
    "cost": cost,
    "command": command,
    "shapes": shapes,
    "growth": growth,
    "chains": chains,
    "methods": methods,
}


def _pictures(place: Place, batch: int) -> Path:
    """Write the calibration pictures as batches of ``batch``; the last batch may be smaller."""
    folder = place.work / f"pictures-{batch}"
    if not folder.exists():
        images = [image for image, _ in evaldata.imagenet(place.shared, "calibration")]
        cases.batches(
            folder,
            ({"input": np.concatenate(images[i : i + batch])} for i in range(0, len(images), batch)),
        )
    return folder


def _stack(place: Place, number: int) -> Path:
    """Write the first ``number`` calibration pictures to one file."""
    file = place.work / f"stack-{number}.npz"
    if not file.exists():
        images = islice(evaldata.imagenet(place.shared, "calibration"), number)
        np.savez(file, input=np.concatenate([image for image, _ in images]))
    return file


def _float_pass(model: Path, file: Path, number: int) -> Callable[[], tuple[float, float]]:
    """Make a function that runs ``number`` pictures one by one.

    It returns the seconds of the runs, and those with the time to read the pictures as onnxq reads them.
    """
    session = open_session(model)
    source = open_data(file, input_specs(as_model(model)), limit=number)

    def run() -> tuple[float, float]:
        start, running = time.perf_counter(), 0.0
        for sample in source:
            begin = time.perf_counter()
            session.run(None, dict(sample.feeds))
            running += time.perf_counter() - begin
        return running, time.perf_counter() - start

    return run


def _peer_ratio(model: Path, data: Path) -> float | None:
    """Measure the peer's time with entropy, as a multiple of the float pass; None if it crashes."""
    try:
        return calibrated(model, data, "entropy").ratio("entropy")
    except RuntimeError as error:
        print(f"onnxruntime.quantization, entropy, {model.name}: {str(error).splitlines()[-1]}")
        return None


def _straightness(points: Mapping[int, float]) -> float:
    """Compute R², the share of the variance that the regression line explains."""
    return float(np.corrcoef(list(points), list(points.values()))[0, 1] ** 2)


def _plot(series: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Draw one panel per series, with its regression line."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(10, 3), layout="constrained")
    panels = drawing.subplots(1, len(series))
    for axes, (name, points) in zip(panels, series.items(), strict=True):
        x = np.array(list(points))
        slope, start = np.polyfit(x, list(points.values()), 1)
        axes.plot(x, start + slope * x, color="0.7")
        axes.plot(x, list(points.values()), "o")
        axes.set(xlabel=name, ylabel="calibration, s", ylim=(0, None), xlim=(0, None))
    drawing.savefig(path, dpi=120)
    print(f"drawn: {path}")


def _solving(model: Path, statistics: Path) -> float:
    """Measure the time in seconds to choose the ranges of all tensors by all methods."""
    _, plan = prepare(model, QuantConfig())
    loaded = Statistics.load(statistics)
    start = time.perf_counter()
    for method in CALIBRATORS:
        source = from_statistics(loaded, calibrator(QuantConfig(method=method)))
        for group in plan.groups.values():
            if group.observed_tensors:
                source(group)
    return time.perf_counter() - start


def _peer_models(case: Case, place: Place) -> Iterator[tuple[str, Path]]:
    """Yield the peer's models by method, without those of methods that crash."""
    for method in PEER_METHODS:
        model = place.work / f"peer-{method}.onnx"
        try:
            bench.quantize_peer(case, model, "--method", method)
        except RuntimeError as error:
            print(f"onnxruntime.quantization, {method}, {case.model.name}: {str(error).splitlines()[-1]}")
        else:
            yield method, model


if __name__ == "__main__":
    sys.exit(bench.run(__doc__, SECTIONS))

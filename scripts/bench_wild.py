"""The bare default command beside onnxruntime.quantization on a folder of networks of others.

Each network is a folder with ``model.onnx`` and the inputs ``calib`` and ``eval``: an ``.npz`` file of
stacked samples, or a folder of one ``.npz`` for each run. Printed for both tools: SQNR of the worst output on
``eval``, size and speed relative to float (one thread, in turns), seconds of the whole command and its peak
memory. Products of integers are summed exactly, as processors with VNNI do; on others, the SQNR with this
machine's kernels is printed too.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import quantize, quantize_peer
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.session import open_session, saturates
from cases import Case, Feeds, batches
from measure import Run
from onnxq.core.numerics import sqnr
from onnxq.verify.latency import time_interleaved

SECONDS = 4.0
"""How long the models of a case are timed in turns."""

SLOWER, SLOWER_THAN_PEER, LESS_ACCURATE, LEAST_SQNR = 0.98, 0.97, 0.3, 10.0
"""What is promised: speed of float, speed of the peer, dB below the peer, dB at the worst output."""


@dataclass(frozen=True)
class Figures:
    """What a tool made of a network.

    Attributes:
        sqnr: SQNR of the worst output, in dB.
        here: the same with this machine's kernels, which may saturate.
        size: bytes of the file, of those of the float model.
        speed: float seconds / its seconds, for one run.
        run: the command.
    """

    sqnr: float
    here: float
    size: float
    speed: float
    run: Run


def feeds(base: Path) -> Iterator[Feeds]:
    """Yield the inputs of each run from ``base.npz`` or from the files in the folder ``base``."""
    stacked = base.with_suffix(".npz")
    if not stacked.exists():
        for path in sorted(base.glob("*.npz")):
            with np.load(path) as file:
                yield dict(file)
        return
    with np.load(stacked) as file:
        arrays = dict(file)
    for index in range(len(next(iter(arrays.values())))):
        yield {name: array[index : index + 1] for name, array in arrays.items()}


def opened(folder: Path, work: Path) -> Case:
    """Return the network in ``folder``, with its calibration data as a folder that both tools read."""
    data = folder / "calib"
    if not data.is_dir():
        data = batches(work / folder.name / "calib", feeds(data))
    return Case(folder / "model.onnx", data, lambda: feeds(folder / "eval"))


def worst_sqnr(reference: Path, model: Path, case: Case, *, exact: bool) -> float:
    """Compute the SQNR of the worst float output over all evaluation samples, in dB."""
    sessions = [open_session(path, threads=1, exact=exact) for path in (reference, model)]
    pairs: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for sample in case.evaluation():
        given = zip(*(session.run(None, dict(sample)) for session in sessions), strict=True)
        for index, (one, other) in enumerate(given):
            if np.issubdtype(one.dtype, np.floating) and one.shape == other.shape:
                pairs.setdefault(index, []).append((one.ravel(), other.ravel()))
    joined = ([np.concatenate(part) for part in zip(*pair, strict=True)] for pair in pairs.values())
    return min((sqnr(one, other) for one, other in joined), default=float("nan"))


def speeds(models: Mapping[str, Path], case: Case) -> dict[str, float]:
    """Time all models in turns on one thread; return float seconds / seconds of each."""
    sessions = [open_session(path, threads=1, exact=False) for path in models.values()]
    times = time_interleaved(sessions, Sample("timed", dict(next(iter(case.evaluation())))), seconds=SECONDS)
    return {name: float(np.median(times[:, 0] / times[:, i])) for i, name in enumerate(models)}


def measure(case: Case, work: Path, options: Sequence[str]) -> tuple[dict[str, Figures], dict[str, str]]:
    """Quantize with both tools, and measure what they wrote; also return the errors by tool."""
    runs: dict[str, Run] = {}
    errors: dict[str, str] = {}
    models = {"float": case.model}
    for name, tool, extra in (("ours", quantize, options), ("peer", quantize_peer, ())):
        output = work / f"{name}.onnx"
        try:
            runs[name] = tool(case, output, *extra)
            open_session(output, threads=1, exact=False)
            models[name] = output
        except (RuntimeError, CalibrationError) as error:
            errors[name] = str(error).strip().splitlines()[-1]
    ratios = speeds(models, case)
    size = case.model.stat().st_size
    figures = {}
    for name in models.keys() & runs.keys():
        exact = worst_sqnr(case.model, models[name], case, exact=True)
        here = worst_sqnr(case.model, models[name], case, exact=False) if saturates() else exact
        share = models[name].stat().st_size / size
        figures[name] = Figures(exact, here, share, ratios[name], runs[name])
    return figures, errors


def broken(ours: Figures, peer: Figures | None) -> Iterator[str]:
    """Name the promises that ``ours`` breaks."""
    if ours.speed < SLOWER:
        yield "slower than float"
    if ours.size > 1:
        yield "larger than float"
    if ours.sqnr < LEAST_SQNR:
        yield "useless"
    if peer is None or not LEAST_SQNR <= peer.sqnr < math.inf:  # of no use, or not quantized
        return
    if ours.speed < SLOWER_THAN_PEER * peer.speed:
        yield "slower than the peer"
    if ours.sqnr < peer.sqnr - LESS_ACCURATE:
        yield "less accurate than the peer"


def row(name: str, found: Mapping[str, Figures], errors: Mapping[str, str]) -> list[str]:
    """Return the cells of a network."""

    def both(form: str, pick: str) -> str:
        cells = [form.format(_picked(found[t], pick)) if t in found else "–" for t in ("ours", "peer")]
        return " / ".join(cells)

    doubts = [errors["ours"]] if "ours" in errors else [*broken(found["ours"], found.get("peer"))]
    picks = (
        ("{:.1f}", "sqnr"),
        ("{:.1f}", "here"),
        ("{:.2f}", "size"),
        ("{:.2f}", "speed"),
        ("{:.0f}", "seconds"),
    )
    return [name, *(both(*each) for each in picks), both("{:.0f}", "megabytes"), ", ".join(doubts)]


def _picked(figures: Figures, name: str) -> float:
    return float(getattr(figures if hasattr(figures, name) else figures.run, name))


def main() -> int:
    """Measure the networks of the command line; return 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of networks")
    parser.add_argument("names", nargs="*", metavar="CASE", help="networks to measure (default: all)")
    parser.add_argument(
        "--options", action="append", default=[], metavar="CASE:OPTIONS", help="for one network"
    )
    parser.add_argument("--keep", type=Path, help="keep the written files in this folder")
    given = parser.parse_args()
    options = {name: text.split() for name, _, text in (each.partition(":") for each in given.options)}
    table = Table(title="onnxq / onnxruntime.quantization", title_justify="left")
    for heading in ("network", "SQNR, dB", "here", "size", "speed", "seconds", "MB", "broken"):
        table.add_column(heading)
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.names or sorted(path.parent.name for path in given.folder.glob("*/model.onnx")):
            work = (given.keep or Path(temporary)) / name
            work.mkdir(parents=True, exist_ok=True)
            case = opened(given.folder / name, Path(temporary))
            cells = row(name, *measure(case, work, options.get(name, [])))
            table.add_row(*cells)
            print(" | ".join(cells), file=sys.stderr, flush=True)
    console.print(table)
    return int(any(cells for cells in table.columns[-1].cells))


if __name__ == "__main__":
    sys.exit(main())

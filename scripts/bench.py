"""Measuring a quantized model against its float original: what the comparisons and the demo share."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from calibrators.session import open_session
from cases import Case, Feeds
from measure import Run, measured
from onnxq.verify import onnxruntime

Floats = NDArray[np.float32]

FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
INTEGER_KERNELS = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}


@dataclass(frozen=True)
class Figure:
    """One row of the report: what was measured, for us and for the peer, and what it must be."""

    name: str
    ours: float
    goal: Callable[[float], bool] | None = None
    wanted: str = ""
    peer: float | None = None
    form: str = "{:.2f}"

    @property
    def met(self) -> bool:
        """Whether the goal, if there is one, is reached."""
        return self.goal is None or self.goal(self.ours)


def at_least(name: str, ours: float, limit: float, peer: float | None = None, form: str = "{:.2f}") -> Figure:
    """A figure that must not be smaller than ``limit``."""
    return Figure(name, ours, lambda value: value >= limit, "≥ " + form.format(limit), peer, form)


def at_most(name: str, ours: float, limit: float, peer: float | None = None, form: str = "{:.2f}") -> Figure:
    """A figure that must not be greater than ``limit``."""
    return Figure(name, ours, lambda value: value <= limit, "≤ " + form.format(limit), peer, form)


def exactly(name: str, ours: int, wanted: int) -> Figure:
    """A count that must be right."""
    return Figure(name, ours, lambda value: value == wanted, str(wanted), form="{:.0f}")


def report(title: str, figures: Sequence[Figure]) -> bool:
    """Print the figures; say whether all goals are met."""
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    for column in ("onnxq", "onnxruntime.quantization", "wanted"):
        table.add_column(column, justify="right")
    table.add_column("")
    for figure in figures:
        peer = "–" if figure.peer is None else figure.form.format(figure.peer)
        verdict = "" if figure.goal is None else "[green]ok[/]" if figure.met else "[bold red]MISSED[/]"
        table.add_row(figure.name, figure.form.format(figure.ours), peer, figure.wanted, verdict)
    Console(width=110).print(table)
    return all(figure.met for figure in figures)


@dataclass(frozen=True)
class Place:
    """Where the evaluation data is, and where to work."""

    shared: Path
    work: Path


Sections = Mapping[str, Callable[[Place], list[Figure]]]
"""The parts of a benchmark by name. The first line of each one's docstring is its title."""


def run(description: str | None, sections: Sections) -> int:
    """A benchmark's command line: run the sections asked for; 1 if a goal was missed."""
    given = _arguments(description, sections)
    met = True
    with tempfile.TemporaryDirectory() as folder:
        for name in given.sections or sections:
            work = Path(given.keep or folder) / name
            work.mkdir(parents=True)
            figures = sections[name](Place(given.data, work))
            met &= report(f"{name}: {(sections[name].__doc__ or '').splitlines()[0]}", figures)
    return 0 if met else 1


def evaluation_data() -> Path:
    """Where evaluation data is when nobody says where: ``ONNXQ_SHARED``, or beside the checkout."""
    return Path(os.environ.get("ONNXQ_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")


def _arguments(description: str | None, sections: Sections) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of: {', '.join(sections)} (all)")
    parser.add_argument(
        "--data", type=Path, default=evaluation_data(), help="the evaluation data (%(default)s)"
    )
    parser.add_argument("--keep", type=Path, help="keep what is made in this folder")
    given = parser.parse_args()
    unknown = [name for name in given.sections if name not in sections]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(sections)}")
    if not given.data.is_dir():
        parser.error(f"no evaluation data in {given.data}: name its folder with --data")
    return given


def quantize(case: Case, output: Path, *options: str) -> Run:
    """Our command line, in a process of its own."""
    command = [sys.executable, "-m", "onnxq.quantize", str(case.model), str(output)]
    return measured([*command, "--data", str(case.data), *case.options, *options])


def quantize_peer(case: Case, output: Path, *options: str) -> Run:
    """The peer, in a process of its own."""
    script = Path(__file__).with_name("peer.py")
    command = [sys.executable, str(script), str(case.model), str(output), str(case.data)]
    return measured([*command, *case.peer_options, *options])


def outputs(model: Path, samples: Iterable[Feeds], threads: int = 2, optimize: bool = True) -> Floats:
    """The first output over all samples, joined along the first axis."""
    session = open_session(model, threads=threads, optimize=optimize)
    return np.concatenate([session.run(None, dict(feeds))[0] for feeds in samples])


def agreement(reference: Floats, actual: Floats) -> float:
    """Percent of rows with the same largest entry."""
    return float(100 * (reference.argmax(1) == actual.argmax(1)).mean())


def accuracy(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Percent of rows whose largest entry is the label."""
    return float(100 * (logits.argmax(1) == labels).mean())


def kernels(model: Path) -> tuple[int, int, int]:
    """What ONNX Runtime makes of Conv, Gemm and MatMul: (planned, integer, float) kernels.

    Planned are the nodes of the file whose data and weight both come from DequantizeLinear.
    """
    ran = onnxruntime.kernels(model).values()
    integer = sum(op_type in INTEGER_KERNELS for op_type in ran)
    return _between_integers(onnx.load(model)), integer, sum(op_type in FLOAT_KERNELS for op_type in ran)


def _between_integers(model: onnx.ModelProto) -> int:
    """Conv, Gemm and MatMul nodes whose first two inputs are dequantized."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    return sum(
        node.op_type in FLOAT_KERNELS
        and {makers.get(name) for name in node.input[:2]} == {"DequantizeLinear"}
        for node in model.graph.node
    )

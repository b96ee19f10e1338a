"""Measure a quantized model against its float original: helpers of the benchmarks and the demo."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
    """One row of a benchmark's table.

    Attributes:
        name: the measured quantity.
        ours: the value for onnxq.
        goal: whether a value reaches the goal; None: there is no goal.
        wanted: the goal in words.
        peer: the value for `onnxruntime.quantization`.
        form: format of the values.
    """

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
    """Make a figure that must not be smaller than ``limit``.

    Args:
        name: the measured quantity.
        ours: the value for onnxq.
        limit: the smallest value that reaches the goal.
        peer: the value for `onnxruntime.quantization`.
        form: format of the values.
    """
    return Figure(name, ours, lambda value: value >= limit, "≥ " + form.format(limit), peer, form)


def at_most(name: str, ours: float, limit: float, peer: float | None = None, form: str = "{:.2f}") -> Figure:
    """Make a figure that must not be greater than ``limit``.

    Args:
        name: the measured quantity.
        ours: the value for onnxq.
        limit: the greatest value that reaches the goal.
        peer: the value for `onnxruntime.quantization`.
        form: format of the values.
    """
    return Figure(name, ours, lambda value: value <= limit, "≤ " + form.format(limit), peer, form)


def exactly(name: str, ours: int, wanted: int) -> Figure:
    """Make a figure for a count that must equal ``wanted``.

    Args:
        name: the counted quantity.
        ours: the count for onnxq.
        wanted: the right count.
    """
    return Figure(name, ours, lambda value: value == wanted, str(wanted), form="{:.0f}")


def report(title: str, figures: Sequence[Figure]) -> bool:
    """Print the figures, and return whether all goals are reached."""
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
    """The folders of a benchmark.

    Attributes:
        shared: the evaluation data.
        work: the working folder.
    """

    shared: Path
    work: Path


Sections = Mapping[str, Callable[[Place], list[Figure]]]
"""The sections of a benchmark by name. The first line of a section's docstring is its title."""


def run(description: str | None, sections: Sections) -> int:
    """Run the requested sections of a benchmark; return 1 if a goal is missed, else 0."""
    given = arguments(argparse.ArgumentParser(description=description), sections)
    met = True
    with tempfile.TemporaryDirectory() as folder:
        for name in given.sections or sections:
            work = Path(given.keep or folder) / name
            work.mkdir(parents=True)
            figures = sections[name](Place(given.data, work))
            met &= report(f"{name}: {(sections[name].__doc__ or '').splitlines()[0]}", figures)
    return 0 if met else 1


def evaluation_data() -> Path:
    """The default folder of evaluation data: ``ONNXQ_SHARED``, or ``shared/data`` next to the checkout."""
    return Path(os.environ.get("ONNXQ_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")


def arguments(parser: argparse.ArgumentParser, sections: Collection[str]) -> argparse.Namespace:
    """Add the arguments that all benchmarks have to the parser, and parse the command line."""
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help=f"sections to run: {', '.join(sections)} (default: all)",
    )
    parser.add_argument(
        "--data", type=Path, default=evaluation_data(), help="the evaluation data (default: %(default)s)"
    )
    parser.add_argument("--keep", type=Path, help="keep the written files in this folder")
    given = parser.parse_args()
    unknown = [name for name in given.sections if name not in sections]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(sections)}")
    if not given.data.is_dir():
        parser.error(f"no evaluation data in {given.data}: give its folder with --data")
    return given


def quantize(case: Case, output: Path, *options: str) -> Run:
    """Quantize a case with onnxq's command line, in a separate process."""
    command = [sys.executable, "-m", "onnxq.quantize", str(case.model), str(output)]
    return measured([*command, "--data", str(case.data), *case.options, *options])


def quantize_peer(case: Case, output: Path, *options: str) -> Run:
    """Quantize a case with the peer, `onnxruntime.quantization`, in a separate process."""
    script = Path(__file__).with_name("peer.py")
    command = [sys.executable, str(script), str(case.model), str(output), str(case.data)]
    return measured([*command, *case.peer_options, *options])


def outputs(model: Path, samples: Iterable[Feeds], threads: int = 2, optimize: bool = True) -> Floats:
    """Run a model on all samples, and join its first output along the first axis.

    Args:
        model: path of the model.
        samples: the batches.
        threads: number of threads.
        optimize: use ONNX Runtime's graph optimizations.
    """
    session = open_session(model, threads=threads, optimize=optimize)
    return np.concatenate([session.run(None, dict(feeds))[0] for feeds in samples])


def agreement(reference: Floats, actual: Floats) -> float:
    """Compute the share of rows with the same largest entry, in percent."""
    return float(100 * (reference.argmax(1) == actual.argmax(1)).mean())


def accuracy(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Compute the share of rows whose largest entry is the label, in percent."""
    return float(100 * (logits.argmax(1) == labels).mean())


def kernels(model: Path) -> tuple[int, int, int]:
    """Count the kernels that ONNX Runtime uses for Conv, Gemm and MatMul: (planned, integer, float).

    Planned nodes are those of the file whose data and weight both come from DequantizeLinear.
    """
    ran = onnxruntime.kernels(model).values()
    integer = sum(op_type in INTEGER_KERNELS for op_type in ran)
    return _between_integers(onnx.load(model)), integer, sum(op_type in FLOAT_KERNELS for op_type in ran)


def _between_integers(model: onnx.ModelProto) -> int:
    """Count Conv, Gemm and MatMul nodes whose first two inputs are dequantized."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    return sum(
        node.op_type in FLOAT_KERNELS
        and {makers.get(name) for name in node.input[:2]} == {"DequantizeLinear"}
        for node in model.graph.node
    )

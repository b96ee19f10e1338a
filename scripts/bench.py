"""Measuring a quantized model against its float original: what the comparisons and the demo share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from calibrators.session import open_session
from measure import Run, measured
from onnxq.verify import onnxruntime

Floats = NDArray[np.float32]
Feeds = Mapping[str, NDArray[Any]]

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


def quantize(model: Path, output: Path, *options: str) -> Run:
    """Our command line, in a process of its own."""
    return measured([sys.executable, "-m", "onnxq.quantize", str(model), str(output), *options])


def quantize_peer(model: Path, output: Path, data: Path, *options: str) -> Run:
    """The peer, in a process of its own."""
    script = Path(__file__).with_name("peer.py")
    return measured([sys.executable, str(script), str(model), str(output), str(data), *options])


def outputs(model: Path, samples: Iterable[Feeds], threads: int = 2) -> Floats:
    """The first output over all samples, joined along the first axis."""
    session = open_session(model, threads=threads)
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

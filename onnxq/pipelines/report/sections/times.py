"""The section on time: by operator of ONNX Runtime, and for the slowest nodes, before and after."""

from __future__ import annotations

from collections.abc import Iterator

from onnxq.pipelines.report.blocks import (
    Blocks,
    Cell,
    Column,
    Folded,
    Paragraph,
    Span,
    Table,
    number,
    text,
)
from onnxq.pipelines.report.evidence.kernel_times import KernelTimes, NodeTime, OperatorTime
from onnxq.pipelines.report.report import Report

SLOWEST = 15
"""How many nodes are shown at once."""


def times(report: Report) -> Blocks:
    """Yield the times of both models, by operator and by node."""
    known = report.measured.times
    if known is None:
        yield Paragraph(f"Not measured: {report.measured.missing.get('times', 'nothing was profiled')}.")
        return
    threads = f"{known.threads} threads" if known.threads else "all threads"
    yield Paragraph(
        f"One run on this machine ({threads}): {_ms(known.before)} in float, {_ms(known.after)} now, of "
        f"which {_ms(known.conversions)} convert types or memory layouts. The profiler's own time is "
        "taken out, so single figures are rough."
    )
    yield Table(_OPERATORS, map(_operator, known.operators), "operators")
    yield Paragraph(f"The {min(SLOWEST, len(known.nodes))} slowest nodes, with what is fused into them:")
    yield Table(_NODES, map(_node, known.nodes[:SLOWEST]), "slowest nodes")
    if len(known.nodes) > SLOWEST:
        yield Folded(f"All {len(known.nodes)} nodes", Table(_NODES, _all(known), "nodes"), is_open=False)


def _all(known: KernelTimes) -> Iterator[list[Cell]]:
    return map(_node, known.nodes)


def _operator(one: OperatorTime) -> list[Cell]:
    return [
        text(one.op_type),
        number(one.kernels_before, "{}"),
        number(one.kernels_after, "{}"),
        *_pair(one.before, one.after),
    ]


def _node(one: NodeTime) -> list[Cell]:
    fused = f"{one.op_type}, with {one.fused} more" if one.fused else one.op_type
    return [Cell((Span(one.node, "code"), Span(fused, "small"))), *_pair(one.before, one.after)]


def _pair(before: float, after: float) -> list[Cell]:
    ratio = before / after if before and after else None
    return [
        number(before * 1e3, "{:.3f}") if before else text("–"),
        number(after * 1e3, "{:.3f}") if after else text("–"),
        number((before - after) * 1e3, "{:+.3f}") if before or after else text("–"),
        number(ratio, "{:.2f} ×"),
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


_TIMES = (
    Column("float, ms", numbers=True),
    Column("now, ms", numbers=True),
    Column("gained, ms", numbers=True),
    Column("times as fast", numbers=True),
)
_OPERATORS = (
    Column("operator", "as ONNX Runtime runs it, after its fusions"),
    Column("kernels in float", numbers=True),
    Column("kernels now", numbers=True),
    *_TIMES,
)
_NODES = (Column("node", "of the float model"), *_TIMES)

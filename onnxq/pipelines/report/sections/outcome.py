"""The section on the result: the main figures, accuracy by output, corrections, the goal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.filesize import decimal

from onnxq.pipelines.report.bits import told_types
from onnxq.pipelines.report.blocks import Blocks, Cell, Column, Lines, Paragraph, Table, Tiles, number, text
from onnxq.pipelines.report.report import Report
from onnxq.pipelines.report.sections.goal import goal

UNKNOWN = "unknown"


def outcome(report: Report) -> Blocks:
    """Yield the main figures, the accuracy of each output, the corrections, and the goal."""
    yield Tiles(tuple(_figures(report)))
    if types := list(told_types(report.plan)):
        yield Paragraph(f"{'; '.join(types)}.")
    yield from _accuracy(report)
    if report.corrections:
        rows = (
            [text(one.name), text(one.outcome), number(one.seconds, "{:.1f} s")] for one in report.corrections
        )
        yield Table(_CORRECTIONS, rows, "corrections")
    yield from goal(report.search)
    if report.mix:
        yield Lines(report.mix, "note")


def _figures(report: Report) -> Iterator[tuple[str, str]]:
    plan = report.plan
    every = len(plan.integer_nodes) + len(plan.float_nodes)
    yield f"{len(plan.integer_nodes)} of {every}", "nodes quantized"
    sizes = decimal(report.float_bytes), decimal(report.int8_bytes)
    yield f"{report.int8_bytes / report.float_bytes:.1%}", f"of the size: {sizes[0]} → {sizes[1]}"
    yield _worst_sqnr(report), "SQNR of the worst output"
    if report.quality is not None and report.quality.agreement is not None:
        known = f"{report.quality.agreement:.1%}"
        yield UNKNOWN if report.request.synthetic else known, "agreement with float"
    if report.quality is not None and report.quality.metric is not None:
        found = report.quality.metric
        yield f"{found.value:.4g}", f"{found.name} (float: {found.float_value:.4g})"
    if report.skipped:
        yield str(report.skipped), "bad samples skipped"
    yield f"{report.seconds:.1f} s", "time"


def _worst_sqnr(report: Report) -> str:
    worst = math.nan if report.quality is None else report.quality.sqnr
    return UNKNOWN if math.isnan(worst) or report.request.synthetic else f"{worst:.2f} dB"


def _accuracy(report: Report) -> Blocks:
    quality = report.quality
    if quality is None or not quality.outputs:
        yield Paragraph("Accuracy was not measured: there were no samples.")
        return
    yield Table(_COLUMNS, _rows(report), "outputs")
    if quality.next_token is not None:
        yield Paragraph(f"Distribution of the next token: {quality.next_token.describe()}.")
    source = f"Measured on {report.judged_on}: {quality.samples}." if quality.samples else ""
    caution = " Synthetic inputs say nothing about real use." if report.request.synthetic else ""
    yield Paragraph(source + caution, "quiet")
    if quality.metric is not None:
        yield Paragraph(f"Metric of the task: {quality.metric}.")


def _rows(report: Report) -> Iterator[list[Cell]]:
    for name, output in (report.quality.outputs if report.quality else {}).items():
        sqnr = None if math.isnan(output.sqnr) else output.sqnr
        yield [text(name), number(sqnr, "{:.2f} dB"), number(output.agreement, "{:.1%}")]


_CORRECTIONS = (
    Column("correction", "in the order in which they were tried, each on top of those kept before"),
    Column("effect", "on held-out samples, unless stated otherwise"),
    Column("time", numbers=True),
)

_COLUMNS = (
    Column("output"),
    Column(
        "SQNR", "power of the output over the power of its error; 20 dB is an error of a tenth", numbers=True
    ),
    Column("agreement", "how often the largest entry is the same as in float", numbers=True),
)

"""The section of what came out."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.filesize import decimal

from onnxq.pipelines.report.goal import goal
from onnxq.pipelines.report.markup import Cell, Column, Markup, element, joined, number, table
from onnxq.pipelines.report.report import Report

UNKNOWN = "unknown"


def result(report: Report) -> Markup:
    """The figures that matter, and each output's accuracy."""
    tiles = [element("div", element("b", value), element("span", name)) for name, value in _figures(report)]
    return joined(
        [element("div", *tiles, class_="tiles"), _accuracy(report), _corrected(report), goal(report.reached)]
    )


def _figures(report: Report) -> Iterator[tuple[str, str]]:
    plan = report.plan
    yield (
        "nodes in integers",
        f"{len(plan.integer_nodes)} of {len(plan.integer_nodes) + len(plan.float_nodes)}",
    )
    sizes = decimal(report.float_bytes), decimal(report.int8_bytes)
    yield f"of the size: {sizes[0]} → {sizes[1]}", f"{report.int8_bytes / report.float_bytes:.1%}"
    yield "SQNR of the worst output", _worst_sqnr(report)
    agreements = [a.agreement for a in report.accuracy.values() if a.agreement is not None]
    if agreements:
        yield "agreement with float", UNKNOWN if report.request.synthetic else f"{min(agreements):.1%}"
    if report.skipped:
        yield "bad samples skipped", str(report.skipped)
    yield "time", f"{report.seconds:.1f} s"


def _worst_sqnr(report: Report) -> str:
    known = [a.sqnr for a in report.accuracy.values() if not math.isnan(a.sqnr)]
    return f"{min(known):.2f} dB" if known and not report.request.synthetic else UNKNOWN


def _accuracy(report: Report) -> Markup:
    if not report.accuracy:
        return element("p", "Accuracy was not measured: there were no samples.")
    on = f"Measured on {report.judged_on}: {report.judged}." if report.judged else ""
    made_up = " They are made up, so this says nothing about real use." if report.request.synthetic else ""
    return joined([table(_COLUMNS, _rows(report), "outputs"), element("p", on + made_up, class_="quiet")])


def _rows(report: Report) -> Iterator[list[Cell]]:
    for name, accuracy in report.accuracy.items():
        sqnr = None if math.isnan(accuracy.sqnr) else accuracy.sqnr
        yield [Cell(name), number(sqnr, "{:.2f} dB"), number(accuracy.agreement, "{:.1%}")]


def _corrected(report: Report) -> Markup:
    if not report.corrected:
        return Markup()
    rows = ([Cell(one.name), Cell(one.outcome), number(one.seconds, "{:.1f} s")] for one in report.corrected)
    return table(_CORRECTIONS, rows, "corrections")


_CORRECTIONS = (
    Column("correction", "what was tried to come closer to float, one on top of the other"),
    Column("what came of it", "on samples that it was not fitted on, where nothing else is said"),
    Column("time", numbers=True),
)

_COLUMNS = (
    Column("output"),
    Column(
        "SQNR", "power of the output over the power of its error; 20 dB is an error of a tenth", numbers=True
    ),
    Column("agreement", "how often the largest entry is the same as in float", numbers=True),
)

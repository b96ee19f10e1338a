"""The section on the plan: which nodes are quantized, and why the others are kept in float."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from onnxq.core.plan import QuantPlan
from onnxq.pipelines.report.blocks import (
    Blocks,
    Cell,
    Column,
    Folded,
    Paragraph,
    SideBySide,
    Table,
    number,
    text,
)
from onnxq.pipelines.report.report import Report

LONG = 40
"""Lists with more rows are folded."""


def whole_plan(report: Report) -> Blocks:
    """Yield tables of operators and reasons, then lists of all nodes."""
    plan = report.plan
    if not plan.integer_nodes and not plan.float_nodes:
        yield Paragraph("The model computes nothing.")
        return
    overview = [Table(_OPERATORS, _operators(plan), "operators")]
    if plan.float_nodes:
        overview.append(Table(_REASONS, _reasons(plan), "reasons"))
    yield SideBySide(tuple(overview))
    if plan.float_nodes:
        rows = [[name, node.op_type, node.reason] for name, node in plan.float_nodes.items()]
        yield _folded("nodes in float", _FLOATS, rows)
    yield _folded("quantized nodes", _INTEGERS, [[*pair] for pair in plan.integer_nodes.items()])
    if plan.passthrough_nodes:
        named = [[*pair] for pair in plan.passthrough_nodes.items()]
        yield _folded("nodes in the type of their neighbours", _INTEGERS, named)


def _folded(kind: str, columns: tuple[Column, ...], rows: Sequence[Sequence[str]]) -> Folded:
    cells = ([text(content) for content in row] for row in rows)
    listing = Table(columns, cells, kind)
    told = kind.replace("nodes", "node") if len(rows) == 1 else kind
    return Folded(f"{len(rows)} {told}", listing, is_open=len(rows) <= LONG)


def _operators(plan: QuantPlan) -> Iterator[list[Cell]]:
    integers = Counter(plan.integer_nodes.values())
    floats = Counter(node.op_type for node in plan.float_nodes.values())
    for op_type, count in (integers + floats).most_common():
        yield [
            text(op_type),
            number(integers[op_type], "{}"),
            number(floats[op_type], "{}"),
            Cell((_bar(integers[op_type] / count),)),
        ]


def _bar(share: float) -> Markup:
    return Markup(f'<meter value="{share:.3f}" min="0" max="1">{share:.0%}</meter>')


def _reasons(plan: QuantPlan) -> Iterator[list[Cell]]:
    """Yield the reasons with their counts; reasons that differ only in names and times count as one."""
    kinds = Counter(
        (n.op_type, re.sub(r"'[^']*'|[\d.]+(?= ms)", "…", n.reason)) for n in plan.float_nodes.values()
    )
    for (op_type, reason), count in kinds.most_common():
        yield [number(count, "{}"), text(op_type), text(reason)]


_OPERATORS = (
    Column("operator"),
    Column("quantized", numbers=True),
    Column("in float", numbers=True),
    Column("share quantized"),
)
_REASONS = (Column("nodes", numbers=True), Column("operator"), Column("kept in float because"))
_FLOATS = (Column("node"), Column("operator"), Column("kept in float because"))
_INTEGERS = (Column("node"), Column("operator"))

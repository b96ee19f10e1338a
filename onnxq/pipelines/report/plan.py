"""The section of the plan: what runs in integers, and why the rest does not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from onnxq.core.plan import QuantPlan
from onnxq.pipelines.report.markup import Cell, Column, Markup, element, folded, joined, number, table
from onnxq.pipelines.report.report import Report

LONG = 40
"""Rows beyond which a list is folded."""


def whole_plan(report: Report) -> Markup:
    """Operators first, then the reasons, then every node."""
    plan = report.plan
    if not plan.integer_nodes and not plan.float_nodes:
        return element("p", "The model computes nothing.")
    overview = [table(_OPERATORS, _operators(plan), "operators")]
    lists = [
        _folded("integers", _INTEGERS, [[name, op_type] for name, op_type in plan.integer_nodes.items()])
    ]
    if plan.float_nodes:
        overview.append(table(_REASONS, _reasons(plan), "reasons"))
        rows = [[name, node.op_type, node.reason] for name, node in plan.float_nodes.items()]
        lists.insert(0, _folded("float", _FLOATS, rows))
    if plan.passthrough_nodes:
        named = [[name, op_type] for name, op_type in plan.passthrough_nodes.items()]
        lists.append(_folded("the type of their neighbours", _CARRIED, named))
    return joined([element("div", *overview, class_="pair"), *lists])


def _folded(kind: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Markup:
    cells = ([Cell(text) for text in row] for row in rows)
    listing = table(columns, cells, f"nodes in {kind}")
    return folded(f"{len(rows)} nodes in {kind}", listing, is_open=len(rows) <= LONG)


def _operators(plan: QuantPlan) -> Iterator[list[Cell]]:
    integers = Counter(plan.integer_nodes.values())
    floats = Counter(node.op_type for node in plan.float_nodes.values())
    for op_type, count in (integers + floats).most_common():
        yield [
            Cell(op_type),
            number(integers[op_type], "{}"),
            number(floats[op_type], "{}"),
            Cell(_bar(integers[op_type] / count)),
        ]


def _bar(share: float) -> Markup:
    return element("meter", f"{share:.0%}", value=f"{share:.3f}", min=0, max=1)


def _reasons(plan: QuantPlan) -> Iterator[list[Cell]]:
    """What many nodes have in common: names and times in reasons make no difference."""
    kinds = Counter(
        (n.op_type, re.sub(r"'[^']*'|[\d.]+(?= ms)", "…", n.reason)) for n in plan.float_nodes.values()
    )
    for (op_type, reason), count in kinds.most_common():
        yield [number(count, "{}"), Cell(op_type), Cell(reason)]


_OPERATORS = (
    Column("operator"),
    Column("in integers", numbers=True),
    Column("in float", numbers=True),
    Column("share in integers"),
)
_REASONS = (Column("nodes", numbers=True), Column("operator"), Column("stay float because"))
_FLOATS = (Column("node"), Column("operator"), Column("stays float because"))
_INTEGERS = (Column("node"), Column("operator"))
_CARRIED = _INTEGERS
"""The runtime moves Q/DQ across them."""

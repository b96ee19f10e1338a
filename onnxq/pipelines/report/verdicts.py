"""The section of who has checked the written model: the target's rules, and runtimes that took it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from calibrators.errors import shorten
from onnxq.pipelines.report.markup import Cell, Column, Markup, element, joined, table
from onnxq.pipelines.report.report import Checked, Found, Report


def checks(report: Report) -> Markup:
    """What each says, then what it found."""
    if not report.checked:
        return element("p", "Neither rules nor a runtime were asked about the model.")
    parts = [table(_CHECKED, map(_row, report.checked), "checks")]
    if found := [row for one in report.checked for row in _found(one)]:
        parts.append(table(_FOUND, found, "findings"))
    return joined(parts)


def _row(checked: Checked) -> list[Cell]:
    failed = checked.status == "failed"
    status = element("span", checked.status, class_="bad") if failed else checked.status
    return [Cell(checked.runtime), Cell(status), Cell(checked.summary)]


def _found(checked: Checked) -> Iterator[list[Cell]]:
    for one in checked.found:
        severity = element("span", one.severity, class_="bad") if one.severity == "error" else one.severity
        yield [Cell(checked.runtime), Cell(severity), Cell(_text(one)), Cell(_nodes(one.nodes))]


def _text(found: Found) -> Markup:
    return joined([found.message, element("small", found.advice) if found.advice else ""])


def _nodes(names: Sequence[str]) -> str:
    """Some, the rest to be opened."""
    short, whole = shorten(names), ", ".join(names)
    if short == whole:
        return whole or "the whole model"
    return element("details", element("summary", short), whole)


_CHECKED = (
    Column("checked by", "legality: the rules of the target's table"),
    Column("result"),
    Column("summary"),
)
_FOUND = (
    Column("checked by"),
    Column("kind", "error: refused, computed otherwise or in float; warning: works, but costs something"),
    Column("what was found"),
    Column("nodes"),
)

"""The section on the checks: what the target's rules and the runtimes say of the written model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from calibrators.errors import shorten
from onnxq.pipelines.report.blocks import (
    Blocks,
    Cell,
    Column,
    Expandable,
    Paragraph,
    Piece,
    Span,
    Table,
    text,
)
from onnxq.pipelines.report.report import Report
from onnxq.verify.verdict import Finding, Verdict


def verdicts(report: Report) -> Blocks:
    """Yield the result of each check, then the findings."""
    if not report.verdicts:
        yield Paragraph("The model was checked neither against rules nor in a runtime.")
        return
    yield Table(_CHECKED, map(_row, report.verdicts), "checks")
    if found := [row for verdict in report.verdicts for row in _findings(verdict)]:
        yield Table(_FOUND, found, "findings")


def _row(verdict: Verdict) -> list[Cell]:
    status = _marked(verdict.status, is_bad=verdict.status == "failed")
    return [text(verdict.runtime), Cell((status,)), text(verdict.summary)]


def _findings(verdict: Verdict) -> Iterator[list[Cell]]:
    for finding, nodes in verdict.grouped:
        severity = _marked(finding.severity, is_bad=finding.severity == "error")
        yield [text(verdict.runtime), Cell((severity,)), Cell(_told(finding)), Cell((_nodes(nodes),))]


def _marked(word: str, *, is_bad: bool) -> Span:
    return Span(word, "span", "bad") if is_bad else Span(word)


def _told(finding: Finding) -> tuple[Piece, ...]:
    advice = (Span(finding.advice, "small"),) if finding.advice else ()
    return (Span(finding.message), *advice)


def _nodes(names: Sequence[str]) -> Piece:
    """List some of the nodes; all of them when opened."""
    short, whole = shorten(names), ", ".join(names)
    return Span(whole or "the whole model") if short == whole else Expandable(short, whole)


_CHECKED = (
    Column("checked by", "legality: the rules of the target"),
    Column("result"),
    Column("summary"),
)
_FOUND = (
    Column("checked by"),
    Column(
        "severity",
        "error: refused, computed differently or in float; warning: works, but slower or less accurate",
    ),
    Column("finding"),
    Column("nodes"),
)

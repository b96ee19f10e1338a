"""What had to stay float for the goal, and what more or fewer float nodes give."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.report.markup import Cell, Column, Markup, element, joined, number, table


@dataclass(frozen=True)
class Try:
    """One model that was measured on the way.

    Attributes:
        floats: how many nodes were kept float.
        value: what the goal is about.
        sqnr: dB.
        agreement: 0 ... 1, counted; None if nothing is decided.
        speed: times as fast as the float model; None if it was not measured.
    """

    floats: int
    value: float
    sqnr: float
    agreement: float | None
    speed: float | None


@dataclass(frozen=True)
class Reached:
    """Attributes:
    goal: as text.
    chosen: what was taken.
    tries: those that none beats in both float nodes and value, the fewest float nodes first.
    """

    goal: str
    chosen: Try
    tries: tuple[Try, ...]


def goal(reached: Reached | None) -> Markup:
    """The curve between float nodes and accuracy; nothing without a goal."""
    if reached is None:
        return Markup()
    text = f"{reached.goal} holds with {reached.chosen.floats} more nodes in float. Others that were tried:"
    rows = (_row(one, chosen=one == reached.chosen) for one in reached.tries)
    return joined([element("p", text), table(_COLUMNS, rows, "tries")])


def _row(one: Try, *, chosen: bool) -> list[Cell]:
    return [
        number(one.floats, "{}"),
        number(one.value),
        number(one.sqnr, "{:.2f} dB"),
        number(one.agreement, "{:.1%}"),
        number(one.speed, "{:.2f}"),
        Cell("chosen" if chosen else ""),
    ]


_COLUMNS = (
    Column("nodes kept float", numbers=True),
    Column("goal's measure", "for agreement: what can be promised beyond these samples", numbers=True),
    Column("SQNR", numbers=True),
    Column("agreement", "as counted on the held-out samples", numbers=True),
    Column("speed", "times as fast as the float model", numbers=True),
    Column(""),
)

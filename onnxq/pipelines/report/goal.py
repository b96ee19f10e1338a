"""What had to be wider, and what float, for the goal, and what more or less of that gives."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.pipelines.report.markup import Cell, Column, Markup, element, joined, number, table


@dataclass(frozen=True)
class Try:
    """One model that was measured on the way.

    Attributes:
        floats: how many nodes were kept float.
        widened: how many others got weights of more bits.
        value: what the goal is about.
        sqnr: dB.
        agreement: 0 ... 1, counted; None if nothing is decided.
        size: bytes that the constants take in the file.
        speed: times as fast as the float model; None if it was not measured.
    """

    floats: int
    widened: int
    value: float
    sqnr: float
    agreement: float | None
    size: int
    speed: float | None


@dataclass(frozen=True)
class Reached:
    """Attributes:
    goal: as text.
    chosen: what was taken.
    tries: those that none beats in both cost and value, the cheapest first.
    """

    goal: str
    chosen: Try
    tries: tuple[Try, ...]


def goal(reached: Reached | None) -> Markup:
    """The curve between cost and accuracy; nothing without a goal."""
    if reached is None:
        return Markup()
    chosen = reached.chosen
    wider = f" and {chosen.widened} with weights of more bits" if chosen.widened else ""
    text = f"{reached.goal} holds with {chosen.floats} more nodes in float{wider}. Others that were tried:"
    rows = (_row(one, chosen=one == reached.chosen) for one in reached.tries)
    return joined([element("p", text), table(_COLUMNS, rows, "tries")])


def _row(one: Try, *, chosen: bool) -> list[Cell]:
    return [
        number(one.floats, "{}"),
        number(one.widened, "{}"),
        number(one.value),
        number(one.sqnr, "{:.2f} dB"),
        number(one.agreement, "{:.1%}"),
        number(one.size / 1e6, "{:.2f} MB"),
        number(one.speed, "{:.2f}"),
        Cell("chosen" if chosen else ""),
    ]


_COLUMNS = (
    Column("nodes kept float", numbers=True),
    Column("with more bits", "nodes with weights of a wider type than was asked for", numbers=True),
    Column("goal's measure", "for agreement: what can be promised beyond these samples", numbers=True),
    Column("SQNR", numbers=True),
    Column("agreement", "as counted on the held-out samples", numbers=True),
    Column("constants", "what they take in the file", numbers=True),
    Column("speed", "times as fast as the float model", numbers=True),
    Column(""),
)

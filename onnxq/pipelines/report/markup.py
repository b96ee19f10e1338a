"""HTML from Python: text is escaped unless it is known to be markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_VOID = {"input", "meta"}
"""Elements without content have no end tag."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element; children that are no `Markup` are escaped, as are values. ``class_`` stands for ``class``.

    An attribute that is None is left out, one that is the empty string has no value.
    """
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    head = "".join(_attribute(name, value) for name, value in given.items() if value is not None)
    if tag in _VOID:
        return Markup(f"<{tag}{head}>")
    return Markup(f"<{tag}{head}>{joined(children)}</{tag}>")


def joined(parts: Iterable[str]) -> Markup:
    """One after the other, escaped where they are no `Markup`."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def _attribute(name: str, value: str | float) -> str:
    return f' {name}="{escape(str(value))}"' if value != "" else f" {name}"


@dataclass(frozen=True)
class Cell:
    """Of a table: what is shown, and the number that it sorts by, if it is one."""

    content: str
    number: float | None = None


@dataclass(frozen=True)
class Column:
    """Of a table: its heading, what it means, and whether it holds numbers."""

    name: str
    meaning: str = ""
    numbers: bool = False


def number(value: float | None, text: str = "{:.4g}") -> Cell:
    """A cell with a number; a dash where there is none."""
    return Cell("–") if value is None else Cell(text.format(value), value)


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], name: str) -> Markup:
    """A table that can be sorted and filtered; ``name`` is what its rows are, in the plural."""
    heads = map(_head, columns)
    body = [element("tr", *map(_cell, row)) for row in rows]
    head, content = element("thead", element("tr", *heads)), element("tbody", *body)
    return element(
        "div", element("table", head, content, class_="sortable", data_rows=name), class_="wide", tabindex="0"
    )


def _head(column: Column) -> Markup:
    kind = "n" if column.numbers else None
    return element("th", column.name, scope="col", class_=kind, title=column.meaning or None)


def _cell(cell: Cell) -> Markup:
    if cell.number is None:
        return element("td", cell.content)
    return element("td", cell.content, class_="n", data_v=f"{cell.number:.6g}")


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names and what they stand for, one below the other."""
    rows = (element("tr", element("th", name, scope="row"), element("td", text)) for name, text in pairs)
    return element("table", element("tbody", *rows), class_="facts")


def folded(title: str, content: Markup, *, is_open: bool) -> Markup:
    """What can be opened and closed."""
    return element("details", element("summary", title), content, open="" if is_open else None)

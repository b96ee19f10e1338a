"""The content of the report's sections as data; `page.html` renders it and escapes every text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from markupsafe import Markup


@dataclass(frozen=True)
class Span:
    """A piece of text.

    Attributes:
        text: the text.
        tag: the HTML element around it; empty for none.
        style: its CSS class.
        title: the tooltip.
    """

    text: str
    tag: str = ""
    style: str = ""
    title: str = ""


@dataclass(frozen=True)
class Expandable:
    """A text that shows its summary until it is opened."""

    summary: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A small picture.

    Attributes:
        uri: the picture as a data URI.
        alternative: what it shows.
    """

    uri: str
    alternative: str


Piece: TypeAlias = "Span | Expandable | Picture | Markup"


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its content, and the number that it is sorted by, if it has one."""

    pieces: tuple[Piece, ...]
    number: float | None = None

    @property
    def sort_key(self) -> str:
        """The number as text, for the page's script."""
        return "" if self.number is None else f"{self.number:.6g}"


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, an explanation, and whether it holds numbers."""

    name: str
    meaning: str = ""
    numbers: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and filtered.

    Attributes:
        columns: from left to right.
        rows: the cells, row by row. Read once, when the page is rendered.
        name: the plural noun for its rows.
    """

    form: ClassVar[str] = "table"

    columns: tuple[Column, ...]
    rows: Iterable[list[Cell]]
    name: str


@dataclass(frozen=True)
class Facts:
    """Names and values, one below the other."""

    form: ClassVar[str] = "facts"

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    form: ClassVar[str] = "paragraph"

    text: str
    style: str = ""


@dataclass(frozen=True)
class Lines:
    """Paragraphs that belong together, in one box."""

    form: ClassVar[str] = "lines"

    texts: tuple[str, ...]
    style: str


@dataclass(frozen=True)
class Tiles:
    """The most important figures, as pairs of value and label."""

    form: ClassVar[str] = "tiles"

    figures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Folded:
    """A block that can be opened and closed."""

    form: ClassVar[str] = "folded"

    title: str
    content: Block
    is_open: bool


@dataclass(frozen=True)
class SideBySide:
    """Blocks next to each other where the page is wide enough."""

    form: ClassVar[str] = "side_by_side"

    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Drawing:
    """A drawing across the page.

    Attributes:
        svg: the drawing.
    """

    form: ClassVar[str] = "drawing"

    svg: Markup


@dataclass(frozen=True)
class Commands:
    """Commands that can be copied.

    Attributes:
        pairs: what each is for, and the command.
    """

    form: ClassVar[str] = "commands"

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Graph:
    """A graph that the page's script draws.

    Attributes:
        legend: the types of nodes, the CSS class of each, and the number of its nodes.
        json: the nodes as JSON, without characters that end an element.
    """

    form: ClassVar[str] = "graph"

    legend: tuple[tuple[str, str, int], ...]
    json: Markup


Block: TypeAlias = (
    "Table | Facts | Paragraph | Lines | Tiles | Folded | SideBySide | Drawing | Commands | Graph"
)
Blocks: TypeAlias = Iterator[Block]


def text(content: str) -> Cell:
    """Make a cell with plain text."""
    return Cell((Span(content),))


def number(value: float | None, form: str = "{:.4g}") -> Cell:
    """Make a cell with a number in this format; a dash for None."""
    return text("–") if value is None else Cell((Span(form.format(value)),), value)

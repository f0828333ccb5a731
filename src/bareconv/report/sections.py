"""What a page consists of, before it is HTML or Markdown: sections of charts, tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Words:
    """A figure's two texts: ``alt``, what a screen reader says in its place, and ``caption``, what to see in it."""

    alt: str
    caption: str


@dataclass(frozen=True)
class Cell:
    """A cell's text; ``note`` stands small beside it. ``device`` ("cpu", "gpu") gives it that colour's dot.

    ``mark``: a warning that must be seen beside the number, such as "unstable".
    """

    text: str
    note: str = ""
    strong: bool = False
    device: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Column:
    """A column's heading. ``figures``: its cells are numbers, at the right; ``quiet``: they explain the one before."""

    name: str
    figures: bool = False
    quiet: bool = False


def figures(*names: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(name, figures=True) for name in names]


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of each its heading. ``label`` says to a screen reader what the table is.

    ``groups``: the rows that a heading over the whole width stands before, by their place.
    """

    kind: ClassVar[str] = "table"
    label: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    groups: dict[int, str] = field(default_factory=dict)


def cells(*texts: str | Cell) -> list[Cell]:
    """A row."""
    return [text if isinstance(text, Cell) else Cell(text) for text in texts]


@dataclass(frozen=True)
class Chart:
    """A figure, drawn for a width in inches when it is needed. ``name``: the only one of its page, as in a file name.

    ``draw`` may raise ``NothingToShow``; then it is left out.
    """

    kind: ClassVar[str] = "chart"
    name: str
    draw: Callable[[float], Figure]
    words: Callable[[], Words]


@dataclass(frozen=True)
class Prose:
    """A paragraph. ``tone``: "plain", "aside" (smaller), "note" (to be seen first), "good" or "bad" (a verdict)."""

    kind: ClassVar[str] = "prose"
    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Heading:
    """A heading within a section; ``anchor``: its address within the page, where it has one."""

    kind: ClassVar[str] = "heading"
    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Fold:
    """What is one click away. ``raw``: numbers without end, that are not printed on paper."""

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: Sequence[Table | Facts | Prose | Chart]
    raw: bool = False


@dataclass(frozen=True)
class Download:
    """A file within the page: its name, its type ("text/csv"), its content, and what it is."""

    kind: ClassVar[str] = "download"
    name: str
    media_type: str
    content: bytes
    text: str


Block = Table | Chart | Prose | Heading | Facts | Fold | Download


@dataclass(frozen=True)
class Section:
    """A part of a page. ``anchor``: its address within the page; ``short``: its name among the contents."""

    anchor: str
    title: str
    short: str
    blocks: Sequence[Block]

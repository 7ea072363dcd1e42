"""What a report is put together from: sections of sentences, pictures with their data, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxsae.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure and the numbers in it.

    name     of its files, NAME.svg and NAME.csv
    caption  what is drawn, of how many rows and seeds, and what an interval is
    figure   drawn with `report.style`: vector, fit for a column of a paper, told apart without colour too
    data     every number that is drawn, a row a point
    """

    name: str
    caption: str
    figure: Figure
    data: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """A table of text, the first column naming its rows; `name` is that of its CSV file.

    A folded table shows its caption, and its rows on a click: for a table that few readers need.
    """

    name: str
    caption: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the report: a title, what is asked, what was found, what shows it, and notes in small print.

    A folded section shows its title and question, and the rest on a click.  The contents of the page stand before the
    first folded section: the sections before it are the answer, which every reader should see.
    """

    anchor: str
    title: str
    question: str
    findings: Sequence[str] = ()
    shown: Sequence[Picture | Table] = field(default=())
    notes: Sequence[str] = ()
    folded: bool = False

"""Sections of findings, figures and tables, as files: a self-contained web page, Markdown, CSV and JSON.

A row is one measurement, `meta` describes the run, a section tells of one part of it.  Nothing here knows what was
measured: who calls it brings sections, names and colours.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from proxsae.conventions import Error
from proxsae.disk import write_files
from proxsae.report.page import html
from proxsae.report.rows import Row, as_csv, as_json, table_csv
from proxsae.report.section import Picture, Section, Table
from proxsae.report.style import figure_class, image
from proxsae.report.summary import markdown, stem

__all__ = [
    "Picture", "Section", "Table", "figure_class", "write_report",
]  # fmt: skip


def write_report(
    sections: Sequence[Section], meta: Row, rows: Sequence[Row], folder: str | os.PathLike[str], title: str = "Report"
) -> list[str]:
    """Write a report into `folder`, made if missing, and return the names of its files.

    report.html is the whole report in one file, summary.md the same for a lab log; rows.csv and rows.json hold `rows`;
    figures/NAME.svg and figures/NAME.csv a picture and its data, tables/NAME.csv a table.  All are written or none.

    Raises `Error` when the folder cannot be written, matplotlib is missing, or a name is used twice or is no name.
    """
    shown = [item for section in sections for item in section.shown]
    pictures = [item for item in shown if isinstance(item, Picture)]
    _check_names([*(section.anchor for section in sections), "about"])
    _check_names([stem(item) for item in shown])
    drawn = {picture.name: image(picture.figure, "svg") for picture in pictures}
    files = {
        "report.html": html(sections, meta, title, drawn).encode("utf-8", "backslashreplace"),
        "summary.md": markdown(sections, meta, title).encode("utf-8", "backslashreplace"),
        "rows.csv": as_csv(rows),
        "rows.json": as_json(rows, meta),
    }
    for item in shown:
        if isinstance(item, Picture):
            files |= {f"{stem(item)}.svg": drawn[item.name], f"{stem(item)}.csv": as_csv(item.data)}
        else:
            files[f"{stem(item)}.csv"] = table_csv(item.headings, item.lines)
    write_files(files, folder)
    return list(files)


def _check_names(names: Sequence[str]) -> None:
    """A name is a file's and an id's."""
    for name, count in Counter(names).items():
        if count > 1 or not re.fullmatch(r"(figures/|tables/)?[A-Za-z][\w-]*", name, re.ASCII):
            msg = f"the name {name!r} appears {count} times, but a report needs names of letters, digits, - and _, once"
            raise Error(msg)

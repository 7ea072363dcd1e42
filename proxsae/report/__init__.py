"""What a depth study found, told five ways: terminal table, CSV, JSON, figure, self-contained web page; and rates.

A row is one measurement, `meta` describes the run.  Nothing is computed here but the ratio of two numbers
that are both shown, so that the reader can check every sentence against the table.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proxsae.report.figure import figure, figure_class, image
from proxsae.report.page import html
from proxsae.report.rates import rates_figure, rates_table, write_rates
from proxsae.report.rows import COLUMNS, Row, findings, table
from proxsae.report.write import as_csv, check_writable, disk_errors, write_files

__all__ = [
    "COLUMNS", "check_writable", "figure", "figure_class", "findings", "rates_figure", "rates_table", "table",
    "write_csv", "write_json", "write_rates", "write_report",
]  # fmt: skip


def _json(rows: Sequence[Row], meta: Row) -> bytes:
    def plain(value: Any) -> Any:  # JSON has neither NumPy's types nor NaN
        if isinstance(value, np.generic | np.ndarray):
            value = value.tolist()
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    # default=str: an odd object in `meta` should not cost the user the results of a long run.
    content = json.dumps(plain({"meta": meta, "rows": rows}), indent=1, allow_nan=False, default=str)
    return f"{content}\n".encode()


def write_csv(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Write the rows to the file `path` as CSV: a header, numbers in full precision, None as an empty field.

    Raises `Error` when the file cannot be written.
    """
    with disk_errors(path):
        Path(path).write_bytes(as_csv(rows))


def write_json(rows: Sequence[Row], meta: Row, path: str | os.PathLike[str]) -> None:
    """Write `{"meta": {...}, "rows": [...]}` to the file `path`: full precision, NaN and infinity as null.

    Raises `Error` when the file cannot be written.
    """
    with disk_errors(path):
        Path(path).write_bytes(_json(rows, meta))


def write_report(rows: Sequence[Row], meta: Row, folder: str | os.PathLike[str]) -> None:
    """Write rows.csv, rows.json, depth.png, depth.svg and report.html into `folder`, made if missing.

    All five are written to a temporary folder on the same disk, then moved: nobody ever sees half a file.

    Raises `Error` when the folder cannot be written, matplotlib is missing, or there are no rows.
    """
    drawn = figure(rows, meta)
    svg = image(drawn, "svg")
    inline = svg[svg.index(b"<svg") :].decode()  # an HTML page has no place for the XML heading
    files = {
        "rows.csv": as_csv(rows),
        "rows.json": _json(rows, meta),
        "depth.png": image(drawn, "png"),
        "depth.svg": svg,
        "report.html": html(rows, meta, inline).encode("utf-8", "backslashreplace"),
    }
    write_files(files, folder)

"""What a depth study found, told five ways: terminal table, CSV, JSON, figure, self-contained web page.

A row is one measurement, `meta` describes the run.  Nothing is computed here but the ratio of two numbers
that are both shown, so that the reader can check every sentence against the table.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from proxsae.conventions import Error
from proxsae.report.figure import figure, figure_class, image
from proxsae.report.page import html
from proxsae.report.rows import COLUMNS, Row, findings, table

__all__ = ["COLUMNS", "check_writable", "figure", "findings", "table", "write_csv", "write_json", "write_report"]


@contextmanager
def _disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError) else error.strerror
        # A failed move knows its destination; any other name may be a temporary one, unknown to the caller.
        msg = f"cannot write {error.filename2 or os.fspath(path)}: {reason}"
        raise Error(msg) from error


def _csv(rows: Sequence[Row]) -> bytes:
    # The keys come from the rows, so that a quantity this file has not heard of is saved all the same.
    keys = list(dict.fromkeys(chain(*rows))) or [c.key for c in COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


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
    with _disk_errors(path):
        Path(path).write_bytes(_csv(rows))


def write_json(rows: Sequence[Row], meta: Row, path: str | os.PathLike[str]) -> None:
    """Write `{"meta": {...}, "rows": [...]}` to the file `path`: full precision, NaN and infinity as null.

    Raises `Error` when the file cannot be written.
    """
    with _disk_errors(path):
        Path(path).write_bytes(_json(rows, meta))


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise `Error` now if `write_report` could not write into `folder` later; leaves nothing behind."""
    figure_class()
    with _disk_errors(folder):
        home = Path(folder)
        while not home.is_dir():
            if home.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(home))
            home = home.parent
        with tempfile.TemporaryDirectory(dir=home, prefix=".proxsae-"):
            pass


def write_report(rows: Sequence[Row], meta: Row, folder: str | os.PathLike[str]) -> None:
    """Write rows.csv, rows.json, depth.png, depth.svg and report.html into `folder`, made if missing.

    All five are written to a temporary folder on the same disk, then moved: nobody ever sees half a file.

    Raises `Error` when the folder cannot be written, matplotlib is missing, or there are no rows.
    """
    drawn = figure(rows, meta)
    svg = image(drawn, "svg")
    inline = svg[svg.index(b"<svg") :].decode()  # an HTML page has no place for the XML heading
    files = {
        "rows.csv": _csv(rows),
        "rows.json": _json(rows, meta),
        "depth.png": image(drawn, "png"),
        "depth.svg": svg,
        "report.html": html(rows, meta, inline).encode("utf-8", "backslashreplace"),
    }
    with _disk_errors(folder):
        target = Path(folder)
        # A new folder should not be left behind empty, so its draft lies beside it.  One that exists may be a
        # mount of its own, where nothing can be moved in from beside, so its draft lies inside.
        home = target if target.is_dir() else target.parent
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=".proxsae-") as draft:
            for name, content in files.items():
                Path(draft, name).write_bytes(content)
            target.mkdir(exist_ok=True)
            for name in files:
                os.replace(Path(draft, name), target / name)

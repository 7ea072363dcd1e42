"""What a row of measurements is, and how its numbers read as text."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

Row = dict[str, Any]  # one measurement; flat, and of what JSON knows: text, numbers, None


def cell(value: Any, digits: int = 4) -> str:
    """Return `value` for a table: floats to `digits` significant digits, scientific at either end."""
    if value is None:
        return "-"
    if not isinstance(value, float | np.floating):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    # "#" keeps trailing zeros, so that digits line up; the exponent loses its padding to stay narrow.
    in_full = -3 <= int(exponent) < digits
    return f"{value:#.{digits}g}".rstrip(".") if in_full else f"{mantissa}e{int(exponent)}"


def as_csv(rows: Sequence[Row]) -> bytes:
    """Rows as CSV: a header, numbers in full precision, None as an empty field."""
    # The keys come from the rows, so that a quantity this file has not heard of is saved all the same.
    keys = list(dict.fromkeys(chain(*rows)))
    return table_csv(keys, [[row.get(key) for key in keys] for row in rows])


def as_json(rows: Sequence[Row], meta: Row) -> bytes:
    """The description of a run and its rows as JSON; NaN and infinity as null."""

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


def table_csv(headings: Sequence[str], lines: Iterable[Sequence[Any]]) -> bytes:
    """Headings and lines as CSV; what no text file can hold (a lone surrogate of a file's name) is spelled out."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headings, *lines])
    return text.getvalue().encode("utf-8", "backslashreplace")

"""The one door for rows: what a user gives becomes `Rows`, with those that stand out kept, dropped or clipped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import check_choice, check_number, plain
from proxsae.data.files import floats, memory_part, open_parts
from proxsae.data.rows import Rows
from proxsae.data.survey import ABOVE, Survey, look
from proxsae.disk import check_file, sentence

RECORD = "collected.json"  # what `models.collect` writes beside its shards
LARGEST_RECORD = 2**24  # bytes
TREATMENTS = ("keep", "drop", "clip")


def open_rows(source: Any, outliers: str = "keep", above: float = ABOVE) -> Rows:
    """Open a path (`.npy`, `.npz`, `.safetensors`, `.pt`, or a folder of them), an array or a tensor (n, d) as `Rows`.

    outliers: what becomes of rows whose norm is above `above` times the median norm: "keep", "drop", which leaves them
    out, or "clip", which scales them down to that norm when they are read.
    above: a number > 1; `survey` tells what it would find.

    No array is copied: files are memory-mapped, so that one of any size opens at once, but for `.npz`, which is read
    into memory.  Nothing is looked through either, unless outliers are to be found: then all rows are read once, and
    what is kept in memory is the numbers of those that are dropped.  What holds bfloat16 gives float32.

    Raises the errors of `data.read`, but for NaN and infinite entries, which are found when their row is read; and
    `Error` for another treatment, and for `above` <= 1.

    >>> rows = open_rows(np.arange(12.0).reshape(6, 2))
    >>> rows.shape, rows[np.array([5, 0])].tolist()
    ((6, 2), [[10.0, 11.0], [0.0, 1.0]])
    >>> open_rows(np.vstack([np.ones((9, 4)), 100 * np.ones((1, 4))]), outliers="drop")
    <Rows (9, 4) float64 of 1 parts, 1 of 10 rows above 10 times the median norm dropped>
    """
    check_choice("outliers", outliers, TREATMENTS)
    factor = _above(above)
    rows = _opened(source)
    if outliers == "keep":
        return rows
    found = look(rows, factor)  # never all of them: half of the rows are no longer than the median
    told = f"{len(found.outliers)} of {len(rows)} rows above {factor:g} times the median norm {outliers}ped"
    return (
        rows.without(found.outliers, told) if outliers == "drop" else rows.no_longer_than(factor * found.median, told)
    )


def survey(rows: Any, above: float = ABOVE) -> Survey:
    """Look through rows (n, d), an array or a path as `open_rows` takes it, in float64 and a piece at a time.

    above: rows above this many times the median norm are counted and named.
    Raises `Error` as `open_rows` does, and for rows that are not finite.

    >>> found = survey(np.vstack([np.ones((9, 4)), 100 * np.ones((1, 4))]))
    >>> found.outliers.tolist(), found.median
    ([9], 2.0)
    """
    return look(_opened(rows), _above(above))


def _above(value: Any) -> float:
    return check_number("above", value, "> 1", ": a number of times the median norm, such as 10")


def _opened(source: Any) -> Rows:
    if isinstance(source, Rows):
        return source
    if not isinstance(source, (str, os.PathLike)):
        return Rows([memory_part(source)])
    return Rows(open_parts(source), _collected(Path(source)))


def _collected(folder: Path) -> dict[str, Any] | None:
    """What the record in a folder says of where its rows come from; None where there is none that can be understood."""
    try:
        if check_file(folder / RECORD) > LARGEST_RECORD:
            return None
        record = json.loads((folder / RECORD).read_bytes())
        model = {name: sentence(record["model"][name]) for name in ("class", "name", "weights")}
        known = {"model": model, "module": sentence(record["module"]), "at": record["at"], "skip": int(record["skip"])}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, OverflowError):
        return None
    return known if known["at"] in ("input", "output") else None


def in_memory(name: str, source: Any) -> NDArray[Any]:
    """What `open_rows` takes, and arrays of other axes, as an array of its own in memory that torch can take over."""
    rows = open_rows(source)[:] if isinstance(source, (str, os.PathLike, Rows)) else floats(name, source)
    with np.errstate(all="ignore"):  # what overflows is infinite
        return np.array(rows, dtype=plain(rows.dtype), order="C")

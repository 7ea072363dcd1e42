"""How results reach the disk: all files or none, and one sentence where the disk refuses."""

from __future__ import annotations

import csv
import errno
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from proxsae.conventions import Error
from proxsae.report.rows import Row


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the disk refuses into one sentence."""
    try:
        yield
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError) else error.strerror
        # A failed move knows its destination; any other name may be a temporary one, unknown to the caller.
        msg = f"cannot write {error.filename2 or os.fspath(path)}: {reason}"
        raise Error(msg) from error


def as_csv(rows: Sequence[Row]) -> bytes:
    """Rows as CSV: a header, numbers in full precision, None as an empty field."""
    # The keys come from the rows, so that a quantity this file has not heard of is saved all the same.
    keys = list(dict.fromkeys(chain(*rows)))
    return table_csv(keys, [[row.get(key) for key in keys] for row in rows])


def table_csv(headings: Sequence[str], lines: Iterable[Sequence[Any]]) -> bytes:
    """Headings and lines as CSV; what no text file can hold (a lone surrogate of a file's name) is spelled out."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headings, *lines])
    return text.getvalue().encode("utf-8", "backslashreplace")


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise `Error` now if a file could not be written into `folder` later; leaves nothing behind."""
    with disk_errors(folder):
        home = Path(folder)
        while not home.is_dir():
            if home.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(home))
            home = home.parent
        with tempfile.TemporaryDirectory(dir=home, prefix=".proxsae-"):
            pass


def write_files(files: Mapping[str, bytes], folder: str | os.PathLike[str]) -> None:
    """Write files, by name or by subfolder/name, into `folder`, made if missing.

    All are written to a temporary folder on the same disk, then moved: nobody ever sees half a file.  Raises `Error`
    when the folder cannot be written.
    """
    with disk_errors(folder):
        target = Path(folder)
        # A new folder should not be left behind empty, so its draft lies beside it.  One that exists may be a
        # mount of its own, where nothing can be moved in from beside, so its draft lies inside.
        home = target if target.is_dir() else target.parent
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=".proxsae-") as draft:
            for name, content in files.items():
                Path(draft, name).parent.mkdir(exist_ok=True)
                Path(draft, name).write_bytes(content)
            places = [target / name for name in files]
            for place in places:  # before the first is moved: all or none
                if place.is_dir():
                    raise _in_the_way(errno.EISDIR, place)
                if place.parent.exists() and not place.parent.is_dir():
                    raise _in_the_way(errno.EEXIST, place.parent)
            for name, place in zip(files, places, strict=True):
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(draft, name), place)


def _in_the_way(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path), None, str(path))  # named as by a move that failed

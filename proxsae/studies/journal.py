"""The journal of a study: one line of JSON for each task that ended, so that an interrupted study resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from proxsae.conventions import Error
from proxsae.disk import append_line, disk_errors, flush
from proxsae.studies.task import Row

FILE = "study.jsonl"
UNKNOWN = "unknown"  # what a journal of another version does not have
TORN = b'{"study": '  # the beginning of a first line, of which a kill may leave only a part


class Journal:
    """The tasks that ended, with their rows and seconds; the first line describes the study.

    A line is written whole and flushed to the disk before the next task begins.  Where a kill leaves a part of a last
    line, that part is dropped and its task is done again.

    done      rows of each task that ended
    fresh     seconds of each task that ended in this process
    seconds   of all tasks that ended
    """

    def __init__(self, folder: Path, study: dict[str, Any]) -> None:
        """Begin a journal, or continue that of the same `study`; `Error` for another study and for a foreign file."""
        self.path, self.done, self.seconds = folder / FILE, dict[str, list[Row]](), 0.0
        self.fresh: dict[str, float] = {}
        study = json.loads(json.dumps(study))
        there = planned(folder)
        if there is None:
            self.path.unlink(missing_ok=True)
            append_line(self.path, json.dumps({"study": study}).encode())
            with disk_errors(folder):
                flush(folder)  # the name of the new file
            return
        check_same(self.path, there, study)
        whole = _lines(self.path)
        try:
            for line in whole[1:]:
                entry = json.loads(line)
                self.done[entry["task"]] = entry["rows"]
                self.seconds += entry["seconds"]
            os.truncate(self.path, sum(map(len, whole)))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            msg = f"{self.path} is damaged ({problem}): use another folder, or remove it"
            raise Error(msg) from None

    def add(self, task: str, rows: list[Row], seconds: float) -> None:
        """Add a task that ended, and its seconds.  Raises `Error` where the file cannot be written."""
        append_line(self.path, json.dumps({"task": task, "seconds": seconds, "rows": rows}).encode())
        self.done[task], self.fresh[task] = rows, seconds
        self.seconds += seconds


def check_same(path: Path, there: dict[str, Any], study: dict[str, Any]) -> None:
    """Raise `Error` if the journal at `path` is of another study, with the first option that differs."""
    for name, value in study.items():
        if there.get(name, UNKNOWN) != value:
            was, now = ("the default" if given is None else given for given in (there.get(name, UNKNOWN), value))
            msg = f"{path} is of another study ({name} is {was}, not {now}): "
            msg += "one folder holds one study, so name another folder with --out, or remove this one"
            raise Error(msg)


def planned(folder: Path) -> dict[str, Any] | None:
    """The first line of the journal in a folder, None where there is none; `Error` for a foreign file."""
    path = folder / FILE
    try:
        torn = path.exists() and not _lines(path) and TORN.startswith(path.read_bytes()[: len(TORN)])
        if torn or not path.exists():
            return None
        study = json.loads(_lines(path)[0])["study"]
        if not isinstance(study, dict):
            raise TypeError
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise foreign(path) from None
    return study


def foreign(path: Path) -> Error:
    """The error for a file that is no journal."""
    return Error(f"{path} is not the journal of a study: use another folder, or remove it")


def _lines(path: Path) -> list[bytes]:
    """The lines of a file that were written whole."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

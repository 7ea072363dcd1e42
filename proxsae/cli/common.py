"""What commands share: how one is declared, checks of paths and devices, and what a run is described by.

No torch here before a command asks for it: `proxsae --help` must not wait for it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

from proxsae.conventions import Error
from proxsae.studies.machine import machine as machine
from proxsae.studies.machine import versions as versions


def command(commands: Any, name: str, run: Any, description: str, example: str) -> argparse.ArgumentParser:
    """Add one command, with an example below its help; `run` gets the parsed arguments and returns the status."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=description, description=description[0].upper() + description[1:] + ".", epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    return parser


def check_path(name: str, path: str | None) -> None:
    """Raise `Error` for an empty path, which the disk would read as the current folder."""
    if path == "":
        msg = f"{name} is empty, but must be a path"
        raise Error(msg)


def check_apart(name: str, out: str, **inputs: str) -> None:
    """Raise `Error` for an empty path among `inputs`, and where `out` is one of them or lies in the folder that one is.

    Links are followed, and a link in such a folder lies there all the same.
    """
    home = Path(os.path.realpath(Path(out).parent), Path(out).name)
    behind = Path(os.path.realpath(out))
    for given, path in inputs.items():
        check_path(given, path)
        if Path(os.path.realpath(path)) in (home, *home.parents, behind, *behind.parents):
            msg = f"{name} {out} is {given} or lies in it: write elsewhere, so that {path} stays as it is"
            raise Error(msg)


def numbers(name: str, text: str | None) -> tuple[int, ...]:
    """The whole numbers of "1,2,4", or none where nothing is given."""
    try:
        found = tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        found = (0,)
    if any(number < 1 for number in found):
        msg = f"{name} {text!r} must be whole numbers >= 1 with commas between, such as 1,2,4"
        raise Error(msg)
    return found


def device_named(name: str) -> str:
    """Return the name of a device that torch can compute on, or raise `Error`."""
    import torch

    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError) as problem:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            msg = f"--device {name} must be cpu, cuda or cuda:N"
            raise Error(msg) from None
        msg = f"--device {name} is not there: {str(problem).splitlines()[0]}"
        raise Error(msg) from None
    return name


def paragraph(name: str, text: str) -> str:
    """`text` after `name`, wrapped to 110 columns and indented by the width of `name`."""
    return textwrap.fill(text, 110, initial_indent=name, subsequent_indent=" " * len(name), break_on_hyphens=False)


class Progress:
    """A bar on a terminal, where tqdm is there; called with what is done and the whole."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        """Move the bar to `done` of `total`."""
        if self.bar is None and sys.stderr.isatty():
            with suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(total=total, unit=f" {self.unit}", leave=False)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def __exit__(self, *problem: object) -> None:
        if self.bar is not None:
            self.bar.close()

"""What commands share: their parser, checks of paths and devices, and the description of a run.

Torch is imported inside functions only, so that `proxsae --help` need not wait for it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, cast

from proxsae import hub
from proxsae.conventions import Error, Note, did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence; for an unknown command, option or choice it names the nearest one."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence without the usage, and exit with status 2."""
        self.exit(2, f"proxsae: {message.removeprefix('argument ')} (see `{self.prog} --help`)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        near = did_you_mean(value, action.choices)
        if isinstance(action.choices, dict):  # the commands
            self.error(f"no command is called {value!r}{near}")
        name = "/".join(action.option_strings) or action.dest
        self.error(f"{name} {value!r} must be one of {', '.join(action.choices)}{near}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown arguments here: the parser of `proxsae` does not know the options of a command."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            what = "no option is called" if left[0].startswith("-") else "there is one argument too many:"
            self.error(f"{what} {left[0]!r}{did_you_mean(left[0], self._option_string_actions)}")
        return found, left


def command(commands: Any, name: str, run: Any, description: str, example: str) -> argparse.ArgumentParser:
    """Add one command, with an example below its help; `run` takes the parsed arguments and returns the status."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, description=description[0].upper() + description[1:] + ".", epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    return parser


def outliers_argument(parser: Any) -> None:
    """The option of commands that take rows: what becomes of those that stand out."""
    parser.add_argument(
        "--outliers",
        choices=("keep", "drop", "clip"),
        default="keep",
        help="rows above 10 times the median norm: keep, drop, or clip to that norm (default: keep)",
    )


def check_path(name: str, path: str | None) -> None:
    """Raise `Error` for an empty path, which the disk would read as the current folder."""
    if path == "":
        msg = f"{name} is empty, but must be a path"
        raise Error(msg)


def check_there(path: str | None) -> None:
    """Raise `Error` for a path that leads nowhere; called before torch is loaded, so that the answer comes at once."""
    if path is not None:
        try:
            os.stat(path)
        except (OSError, ValueError) as problem:
            msg = f"cannot read {path}: {getattr(problem, 'strerror', None) or problem}"
            raise Error(msg) from None


def check_sae_there(path: str | None) -> None:
    """`check_there` for an SAE, which may be the name of a model in the cache of a hub."""
    check_there(path and os.fspath(hub.find(path)))


def check_apart(name: str, out: str, **inputs: str) -> None:
    """Raise `Error` if an input is the empty path, or if `out` is an input or lies in an input folder.

    Links are followed on both sides; a link that stands in an input folder lies in it, wherever it points.
    """
    home = Path(os.path.realpath(Path(out).parent), Path(out).name)
    behind = Path(os.path.realpath(out))
    for given, path in inputs.items():
        check_path(given, path)
        if Path(os.path.realpath(path)) in (home, *home.parents, behind, *behind.parents):
            msg = f"{name} {out} is {given} or lies in it: write elsewhere, so that {path} stays as it is"
            raise Error(msg)


def steps_of_encoder(name: str, text: str | None) -> tuple[float, ...]:
    """The numbers of encoder steps of "1,4,inf"; none if `text` is None."""
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    counts = numbers(name, ",".join(word for word in words if word != "inf") or None)
    return (*counts, math.inf) if "inf" in words else counts


def numbers(name: str, text: str | None, least: int = 1) -> tuple[int, ...]:
    """The whole numbers of "1,2,4"; none if `text` is None."""
    try:
        found = tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        found = (least - 1,)
    if any(number < least for number in found):
        msg = f"{name} {text!r} must be whole numbers >= {least} with commas between, such as 1,2,4"
        raise Error(msg)
    return found


def paragraph(name: str, text: str) -> str:
    """`text` after `name`, wrapped to 110 columns and indented by the width of `name`."""
    return textwrap.fill(text, 110, initial_indent=name, subsequent_indent=" " * len(name), break_on_hyphens=False)


@contextmanager
def notes_told() -> Iterator[None]:
    """A `Note` of the library is one line `note: ...` on standard error, once; other warnings are shown as ever."""
    with warnings.catch_warnings():
        before, told = warnings.showwarning, set[str]()
        warnings.simplefilter("always", Note)

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, Note):
                before(message, category, *where)
            elif str(message) not in told:
                told.add(str(message))
                print(f"note: {message}", file=sys.stderr, flush=True)

        warnings.showwarning = cast(Any, show)
        yield


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function of what is done and the total: it moves a bar, if stderr is a terminal and tqdm is installed."""
    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None and sys.stderr.isatty():
            with suppress(ImportError):
                from tqdm import tqdm

                bar = tqdm(total=total, unit=f" {unit}", leave=False)
        if bar is not None:
            bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()

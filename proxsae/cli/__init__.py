"""The command line: `proxsae COMMAND`, the same as `python -m proxsae COMMAND`.

Every problem that a user can cause ends in one sentence and exit status 2, Ctrl-C in 130; nothing is left half-written.
A file here holds the commands of one kind, and adds them to the parser by its `add`.
"""

from __future__ import annotations

import argparse
import os
import sys

from proxsae.cli import checks, depth, exports, saes, studies, training
from proxsae.conventions import Error

GROUPS = (depth, studies, training, saes, exports, checks)  # in the order of `proxsae --help`


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except Error as problem:
        print(f"proxsae: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nproxsae: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as problem:
        if "alloc" not in str(problem).lower() and not isinstance(problem, MemoryError):
            raise
        print(f"proxsae: not enough memory: {str(problem).splitlines()[0]}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="proxsae", description="A sparse autoencoder is one step of proximal gradient; this takes more steps."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in GROUPS:
        group.add(commands)
    return parser

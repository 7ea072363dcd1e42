"""The command line: `proxsae COMMAND`, the same as `python -m proxsae COMMAND`.

A mistake of the user ends in one sentence and exit status 2, Ctrl-C in 130; no file is left half-written.
A file here holds the commands of one kind, and adds them to the parser by its `add`.
"""

from __future__ import annotations

import argparse
import io
import os
import sys

from proxsae import __version__
from proxsae.cli import checks, depth, exports, lm, saes, studies, training
from proxsae.cli.common import Parser, notes_told
from proxsae.conventions import Error

FILES = (depth, studies, training, saes, lm, exports, checks)

# What `proxsae --help` lists.  The long description of a command is in its own --help.
GROUPS = {
    "studies": {
        "depth": "what more encoder steps change, on packaged data or your own",
        "rates": "ISTA, FISTA and IHT beside their proved rates",
    },
    "sparse autoencoders": {
        "train": "train an SAE on rows that need not fit in memory",
        "eval": "error, sparsity and dead latents at 1, 2, 4, ... encoder steps",
        "encode": "write the sparse codes of all rows",
        "inspect": "what the file of an SAE implies, or what rows are like",
        "convert": "write an SAE in another format",
    },
    "language models": {"lm": "collect rows, loss recovered, top contexts, steering, probes"},
    "checks": {
        "laws": "check operators and statements; planted errors must be caught",
        "statements": "list the citable statements: claim, code, check, proof",
    },
    "speed": {"bench": "how a k-sparse encoder would run on this machine, and how fast"},
}
HEAD = """\
usage: proxsae COMMAND [options]

The encoder of a sparse autoencoder is one step of proximal gradient.
proxsae takes more steps, and measures what they change.
"""
TAIL = """
start with:  proxsae depth                             (on packaged activations)
        or:  proxsae eval runs/my-sae activations.npy  (on an SAE of yours)

`proxsae COMMAND --help` explains a command, with an example.
`proxsae --version` prints the version.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the encoding of a pipe lacks is printed as "?"
            stream.reconfigure(errors="replace")
    try:
        arguments = _parser().parse_args(argv)
        with notes_told():
            status: int = arguments.run(arguments)
        sys.stdout.flush()
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


class _Commands(Parser):
    """The parser of `proxsae` itself, whose help lists the commands in groups."""

    def format_help(self) -> str:
        lines = [HEAD]
        for group, commands in GROUPS.items():
            lines += [f"{group}:", *(f"  {name:12}{summary}" for name, summary in commands.items()), ""]
        return "\n".join(lines).rstrip() + "\n" + TAIL


def _parser() -> argparse.ArgumentParser:
    parser = _Commands(prog="proxsae")
    parser.add_argument("--version", action="version", version=f"proxsae {__version__}")
    parser.set_defaults(run=lambda arguments: parser.exit(2, parser.format_help()))
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for file in FILES:
        file.add(commands)
    return parser

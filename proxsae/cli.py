"""The command line: `proxsae COMMAND`, the same as `python -m proxsae COMMAND`.

Every problem that a user can cause ends in one sentence and exit status 2, Ctrl-C in 130; nothing is left half-written.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from proxsae.conventions import Error, check_count, check_seed


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except Error as problem:
        print(f"proxsae: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nproxsae: interrupted; nothing was written", file=sys.stderr)
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

    depth = _command(
        commands,
        "depth",
        _depth,
        "what 1, 2, 4, 8 and 16 encoder steps change: train four SAEs, unroll each, measure on held-out rows",
        "proxsae depth --data activations.npy --k 64 --out runs/mine",
    )
    depth.add_argument(
        "--data", metavar="PATH", help="rows (n, d): .npy, .npz, .safetensors or a folder (default: packaged)"
    )
    depth.add_argument("--d-sae", type=int, metavar="P", help="number of latents (default: 3 d_in)")
    depth.add_argument("--k", type=int, default=32, help="non-zeros per row that every SAE is asked for (default: 32)")
    depth.add_argument(
        "--train-steps", type=int, default=300, metavar="N", help="training steps per SAE (default: 300)"
    )
    depth.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: 0)")
    depth.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    depth.add_argument(
        "--out", default="proxsae-depth", metavar="DIR", help="folder for the report (default: proxsae-depth)"
    )

    laws = _command(
        commands,
        "laws",
        _laws,
        "check every law on every operator and backend, and that every planted wrong operator is caught",
        "proxsae laws ksparse",
    )
    laws.add_argument("name", nargs="?", default="", help="only operators and wrong operators whose name contains this")
    laws.add_argument(
        "--device", default="cpu", help="device of the torch backends: cpu, cuda or cuda:N (default: cpu)"
    )
    laws.add_argument("--seed", type=int, default=0, help="seed of the drawn inputs (default: 0)")
    return parser


def _command(commands: Any, name: str, run: Any, description: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=description, description=description[0].upper() + description[1:] + ".", epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    return parser


def _depth(arguments: argparse.Namespace) -> int:
    # A run of minutes must not fail at its end: what the report needs is looked at before.
    from proxsae.report import check_writable, findings, table, write_report

    for name in ("data", "out"):
        if getattr(arguments, name) == "":
            msg = f"--{name} is empty, but must be a path"
            raise Error(msg)
    check_writable(arguments.out)
    for name, least in (("k", 1), ("train_steps", 1)):
        check_count(f"--{name.replace('_', '-')}", getattr(arguments, name), least)
    train_rows, test_rows, data_name = _activations(arguments.data)
    d_sae = 3 * train_rows.shape[1] if arguments.d_sae is None else arguments.d_sae
    device = _device(arguments.device)

    import torch

    from proxsae.studies.depth import depth

    started = time.perf_counter()
    on_terminal = sys.stderr.isatty()
    rows = depth(
        train_rows,
        test_rows,
        d_sae=check_count("--d-sae", d_sae, 1),
        k=arguments.k,
        train_steps=arguments.train_steps,
        seed=arguments.seed,
        device=device,
        progress=on_terminal,
        report=lambda line: print(f"[{time.perf_counter() - started:5.1f} s] {line}", file=sys.stderr, flush=True),
    )
    meta = {
        "data": data_name,
        "rows": f"{len(train_rows)} to train, {len(test_rows)} held out",
        "d_in": train_rows.shape[1],
        "d_sae": d_sae,
        "k": arguments.k,
        "training steps": arguments.train_steps,
        "left out": "refit steps for relu, whose codes are dense after its first dictionary step",
        "seed": arguments.seed,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": _machine(),
        "versions": f"proxsae {_version()}, torch {torch.__version__}, Python {platform.python_version()}",
        "seconds": round(time.perf_counter() - started, 1),
        "command": "proxsae " + " ".join(sys.argv[1:]),
    }
    write_report(rows, meta, arguments.out)  # before printing: nobody who pipes the table into `head` loses the run
    print(table(rows))
    print()
    print("\n".join(findings(rows)))
    print(f"\nwritten to {arguments.out}: report.html, rows.csv, rows.json, depth.png, depth.svg ({meta['seconds']} s)")
    return 0


def _laws(arguments: argparse.Namespace) -> int:
    from proxsae import testing

    device = _device(arguments.device)
    check_seed(arguments.seed)
    wanted = arguments.name.lower()
    operators = {name: R for name, R in testing.OPERATORS.items() if wanted in name.lower()}
    mutants = [mutant for mutant in testing.MUTANTS if wanted in f"{mutant.name} {type(mutant.R).__name__}".lower()]
    if not operators and not mutants:
        msg = f"no operator is called {arguments.name!r}: there are {', '.join(testing.OPERATORS)}"
        raise Error(msg)
    backends = (*testing.NUMPY, *testing.torch_backends(device))
    broken = survivors = checked = 0
    print(f"{'operator':24}{'law':14}" + "".join(f"{backend.name:>20}" for backend in backends))
    for name, R in operators.items():
        results = {(r.law, r.backend): r.problem for r in testing.results(R, backends, seed=arguments.seed)}
        for law in dict.fromkeys(law for law, _ in results):
            cells = [results.get((law, backend.name), "-") for backend in backends]
            print(f"{name:24}{law:14}" + "".join(f"{_verdict(cell):>20}" for cell in cells), flush=True)
            checked += sum(cell != "-" for cell in cells)
            for problem in (cell for cell in cells if cell not in (None, "-")):
                broken += 1
                print(f"    {problem}")
    print(f"\n{'wrong operator':44}{'must be killed by':20}{'killed by'}")
    for mutant in mutants:
        by = testing.killers(mutant, device)
        survivors += mutant.killed_by not in by
        print(f"{mutant.name:44}{mutant.killed_by:20}{', '.join(by) or 'nothing: it SURVIVES'}", flush=True)
    print(f"\n{checked} checks, {broken} broken; {len(mutants)} wrong operators, {survivors} survivors")
    return 1 if broken or survivors else 0


def _verdict(cell: str | None) -> str:
    return "ok" if cell is None else "-" if cell == "-" else "BROKEN"


def _activations(path: str | None) -> tuple[Any, Any, str]:
    """Train rows, held-out rows (the last fifth of the user's own), and what to call them."""
    from proxsae import data

    if path is None:
        train, test = data.packaged()
        return (
            train,
            test,
            "hidden states after layer 3 of all-MiniLM-L6-v2 on CPython's documentation topics (packaged)",
        )
    rows = data.read(path)
    held_out = len(rows) // 5
    if not held_out:
        msg = f"{path} holds {len(rows)} rows, but a study needs at least 5: the last fifth is held out"
        raise Error(msg)
    return rows[:-held_out], rows[-held_out:], f"{Path(path).name}, the last fifth held out"


def _device(name: str) -> str:
    import torch

    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError) as problem:
        msg = f"--device {name} is not there: {str(problem).splitlines()[0]}"
        raise Error(msg) from None
    return name


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _version() -> str:
    from proxsae import __version__

    return __version__

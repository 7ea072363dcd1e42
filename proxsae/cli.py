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

    rates = _command(
        commands,
        "rates",
        _rates,
        "hold ISTA, FISTA and IHT against their proved rates, on random and on adversarial problems: table and picture",
        "proxsae rates --seed 1 --out runs/rates",
    )
    rates.add_argument("--seed", type=int, default=0, help="seed of the random problems (default: 0)")
    rates.add_argument(
        "--out", default="proxsae-rates", metavar="DIR", help="folder for table and picture (default: proxsae-rates)"
    )

    laws = _command(
        commands,
        "laws",
        _laws,
        "check every law on every operator and backend, every statement, and that every planted error is caught",
        "proxsae laws ksparse",
    )
    laws.add_argument(
        "name", nargs="?", default="", help="only operators, statements and planted errors whose name contains this"
    )
    laws.add_argument(
        "--device", default="cpu", help="device of the torch backends: cpu, cuda or cuda:N (default: cpu)"
    )
    laws.add_argument("--seed", type=int, default=0, help="seed of the drawn inputs (default: 0)")

    statements = _command(
        commands,
        "statements",
        _statements,
        "list the citable statements: claim, code, what checks it, planted errors caught, proof",
        "proxsae statements thm-prox-l0",
    )
    statements.add_argument(
        "label", nargs="?", default="", help="only statements whose label contains this; all about it if it is one"
    )
    statements.add_argument(
        "--prove", action="store_true", help="run the machine proofs, refute their planted errors, and print the times"
    )

    bench = _command(
        commands,
        "bench",
        _bench,
        "say how a k-sparse encoder would be run here and why, and time it: ratios to the product x W_enc",
        "proxsae bench --d-in 2304 --d-sae 65536 --k 64 --rows 1000000 --steps 16 --explain",
    )
    sizes = (("d-in", 768), ("d-sae", 16384), ("k", 32), ("rows", 1024), ("steps", 4))
    for name, default in sizes:
        bench.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"(default: {default})")
    bench.add_argument("--explain", action="store_true", help="print the choices and their reasons, and time nothing")
    bench.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    bench.add_argument("--seed", type=int, default=0, help="seed of rows and weights (default: 0)")
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


def _rates(arguments: argparse.Namespace) -> int:
    from proxsae.report import check_writable, rates_table, write_rates
    from proxsae.studies.rates import holds, rates

    if arguments.out == "":
        msg = "--out is empty, but must be a path"
        raise Error(msg)
    check_writable(arguments.out)
    started = time.perf_counter()
    rows = rates(arguments.seed)
    files = write_rates(rows, arguments.out)
    broken = sum(not holds(row) for row in rows)
    print(rates_table(rows))
    print(f"\n{len(rows)} measurements, {broken} broken")
    print(f"written to {arguments.out}: {', '.join(files)} ({time.perf_counter() - started:.1f} s)")
    return 1 if broken else 0


def _laws(arguments: argparse.Namespace) -> int:
    from proxsae import testing
    from proxsae.testing import statements

    device = _device(arguments.device)
    check_seed(arguments.seed)
    wanted = arguments.name.lower()
    operators = {name: R for name, R in testing.OPERATORS.items() if wanted in name.lower()}
    mutants = [mutant for mutant in testing.MUTANTS if wanted in f"{mutant.name} {type(mutant.R).__name__}".lower()]
    checks = [s for s in statements.STATEMENTS.values() if s.check and wanted in s.label]
    planted_errors = [p for p in statements.PLANTED if any(p.killed_by == s.label for s in checks)]
    if not operators and not mutants and not checks:
        msg = f"nothing is called {arguments.name!r}: there are {', '.join(testing.OPERATORS)}, and the statements"
        raise Error(msg)
    backends = (*testing.NUMPY, *testing.torch_backends(device))
    broken = checked = 0
    survivors = []
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
        survivors += [] if mutant.killed_by in by else [mutant.name]
        print(f"{mutant.name:44}{mutant.killed_by:20}{', '.join(by) or 'nothing: it SURVIVES'}", flush=True)
    if checks:
        print(f"\n{'statement':34}{'its own check':16}{'planted errors'}")
    for s in checks:
        told = statements.problem(s.label, seed=arguments.seed)
        broken, checked = broken + (told is not None), checked + 1
        here = [planted for planted in planted_errors if planted.killed_by == s.label]
        alive = [p.name for p in here if statements.problem(p.killed_by, p.functions, arguments.seed) is None]
        survivors += alive
        fate = f"SURVIVES: {'; '.join(alive)}" if alive else f"{len(here)} caught" if here else "-"
        print(f"{s.label:34}{_verdict(told):16}{fate}", flush=True)
        if told is not None:
            print(f"    {told}")
    errors = len(mutants) + len(planted_errors)
    print(f"\n{checked} checks, {broken} broken; {errors} planted errors, {len(survivors)} survivors")
    return 1 if broken or survivors else 0


def _statements(arguments: argparse.Namespace) -> int:
    from proxsae.testing import proofs, statements

    chosen = [s for s in statements.STATEMENTS.values() if arguments.label in s.label]
    if not chosen:
        msg = f"no statement is called {arguments.label!r}: `proxsae statements` lists all of them"
        raise Error(msg)
    if arguments.prove:
        return _prove([proof for proof in proofs.PROOFS.values() if proof.statement in {s.label for s in chosen}])
    if len(chosen) == 1 or arguments.label in statements.STATEMENTS:
        print("\n\n".join(map(statements.details, chosen)))
        return 0
    page = ""
    for s in chosen:
        if s.page != page:
            print(f"\ndocs/theory/{s.page}.md")
            page = s.page
        print(f"\n  {s.label}\n      {s.claim}")
        print(f"      code: {', '.join(s.code) or '-'}")
        print(f"      checked by: {', '.join(statements.checked_by(s)) or 'nothing: ' + s.no_check}", end="")
        print(f"; {len(statements.caught(s))} planted errors caught" if statements.caught(s) else "")
        print(f"      proof: {statements.proof_status(s)}")
    proved = sum(statements.proof_status(s).startswith("machine") for s in chosen)
    unchecked = sum(not statements.checked_by(s) for s in chosen)
    print(f"\n{len(chosen)} statements, {proved} proved by machine as well as on paper, {unchecked} without a check")
    return 0


def _prove(chosen: list[Any]) -> int:
    from proxsae.testing import proofs

    if not chosen:
        msg = "these statements have no machine proof: `proxsae statements` says which have"
        raise Error(msg)
    total, failures = 0.0, 0
    print(f"{'proof':36}{'statement':30}{'seconds':>8}  planted error, refuted by")
    for proof in chosen:
        try:
            seconds = proofs.prove(proof)
            against = ", ".join(f"{name} = {value}" for name, value in proofs.refute(proof).items())
        except AssertionError as problem:
            failures += 1
            print(f"{proof.name:36}{proof.statement:30}{'FAILED':>8}  {problem}", flush=True)
            continue
        total += seconds
        print(f"{proof.name:36}{proof.statement:30}{seconds:8.2f}  {proof.wrong_name}: {against}", flush=True)
    print(f"\n{len(chosen)} proofs, {failures} failed, {total:.1f} s of proving")
    return 1 if failures else 0


def _bench(arguments: argparse.Namespace) -> int:
    for name in ("d_in", "d_sae", "k", "rows", "steps"):
        check_count(f"--{name.replace('_', '-')}", getattr(arguments, name), 1)
    check_seed(arguments.seed)
    device = _device(arguments.device)

    import torch

    from proxsae.encoder import free_bytes
    from proxsae.kernels.dispatch import kind_of, plan
    from proxsae.studies.cost import cost

    d_in, d_sae, k, rows, steps = (getattr(arguments, name) for name in ("d_in", "d_sae", "k", "rows", "steps"))
    kind = kind_of(torch.device(device).type, 4)
    chosen = plan(rows, d_in, d_sae, min(k, d_sae), steps, kind=kind, free_bytes=free_bytes(torch.device(device)))
    print(f"{rows} rows of {d_in}, {d_sae} latents, k = {k}, {steps} steps, float32, weights frozen")
    print(*(f"  {reason}" for reason in chosen.reasons), sep="\n")
    if arguments.explain:
        return 0
    print(f"\ntimes over that of the product x W_enc, {torch.get_num_threads()} threads, {_machine()}")
    print(f"{'':50} {'median':>7} {'quartiles':>14} {'model':>7}")
    for row in cost(d_in, d_sae, k, rows, steps, device, seed=arguments.seed):
        spread = f"{row.low:.2f} to {row.high:.2f}"
        print(f"{row.name:50} {row.median:7.2f} {spread:>14} {row.model:7.2f}")
    return 0


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

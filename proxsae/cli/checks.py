"""Commands that check: `laws` runs the checks of operators and statements, `statements` lists and proves statements."""

from __future__ import annotations

import argparse
from typing import Any

from proxsae.cli.common import command
from proxsae.conventions import Error, check_seed, did_you_mean
from proxsae.studies.machine import device_named


def add(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    laws = command(
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
    laws.add_argument("--seed", type=int, default=0, help="seed of the random inputs (default: 0)")

    statements = command(
        commands,
        "statements",
        _statements,
        "list the citable statements: claim, code, what checks it, planted errors caught, proof",
        "proxsae statements thm-prox-l0",
    )
    statements.add_argument(
        "label",
        nargs="?",
        default="",
        help="only statements whose label contains this; a whole label prints all about that statement",
    )
    statements.add_argument(
        "--prove", action="store_true", help="run the machine proofs, refute their planted errors, and print the times"
    )


def _laws(arguments: argparse.Namespace) -> int:
    from proxsae import testing
    from proxsae.testing import statements

    device = device_named(arguments.device)
    check_seed(arguments.seed)
    wanted = arguments.name.lower()
    operators = {name: R for name, R in testing.OPERATORS.items() if wanted in name.lower()}
    mutants = [mutant for mutant in testing.MUTANTS if wanted in f"{mutant.name} {type(mutant.R).__name__}".lower()]
    checks = [s for s in statements.STATEMENTS.values() if s.check and wanted in s.label]
    planted_errors = [p for p in statements.PLANTED if any(p.killed_by == s.label for s in checks)]
    if not operators and not mutants and not checks:
        families = dict.fromkeys(type(R).__name__ for R in testing.OPERATORS.values())
        near = did_you_mean(wanted, (*families, *statements.STATEMENTS), 3)
        names = f"operators are {', '.join(families)}, and `proxsae statements` lists statements"
        msg = f"nothing is called {arguments.name!r}{near or ':'} {names}"
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

    wanted = arguments.label.lower()
    chosen = [s for s in statements.STATEMENTS.values() if wanted in s.label]
    if not chosen:
        near = did_you_mean(wanted, statements.STATEMENTS, 3)
        msg = f"no statement is called {arguments.label!r}{near or ':'} `proxsae statements` lists all of them"
        raise Error(msg)
    if arguments.prove:
        return _prove([proof for proof in proofs.PROOFS.values() if proof.statement in {s.label for s in chosen}])
    if len(chosen) == 1 or wanted in statements.STATEMENTS:
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
    whole = sum(map(statements.proved_whole, chosen))
    cases = sum(bool(statements.machine(s)) for s in chosen) - whole
    unchecked = sum(not statements.checked_by(s) for s in chosen)
    print(
        f"\n{len(chosen)} statements: {whole} proved by machine as well as on paper, {cases} in special cases only; ",
        end="",
    )
    print(f"{unchecked} without a check")
    return 0


def _prove(chosen: list[Any]) -> int:
    from proxsae.testing import proofs

    if not chosen:
        msg = "these statements have no machine proof: `proxsae statements` lists the proof of each statement"
        raise Error(msg)
    total, failures = 0.0, 0
    print(f"{'proof':26}{'statement':28}{'scope':36}{'seconds':>8}  planted error, refuted by")
    for proof in chosen:
        try:
            seconds = proofs.prove(proof)
            against = ", ".join(f"{name} = {value}" for name, value in proofs.refute(proof).items())
        except AssertionError as problem:
            failures += 1
            print(f"{proof.name:26}{proof.statement:28}{proof.scope:36}{'FAILED':>8}  {problem}", flush=True)
            continue
        total += seconds
        print(
            f"{proof.name:26}{proof.statement:28}{proof.scope:36}{seconds:8.2f}  {proof.wrong_name}: {against}",
            flush=True,
        )
    print(f"\n{len(chosen)} proofs, {failures} failed, {total:.1f} s of proving")
    return 1 if failures else 0


def _verdict(cell: str | None) -> str:
    return "ok" if cell is None else "-" if cell == "-" else "BROKEN"

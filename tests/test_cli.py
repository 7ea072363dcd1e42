"""The command line: what it prints and writes, exit status 2 and one sentence for what users get wrong, 130 for ^C."""

import dataclasses
import io
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import proxsae as px
from proxsae import cli, testing
from proxsae.cli import main

ROWS = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
COMMANDS = ("depth", "rates", "bench", "train", "inspect", "eval", "encode", "convert", "lm", "laws", "statements")


@pytest.fixture
def place(tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: proxsae" in printed
    if command:
        assert f"example: proxsae {command[0]}" in " ".join(printed.split())
    else:
        assert "depth" in printed
        assert "laws" in printed


@pytest.mark.parametrize("arguments", [[], ["depths"], ["depth", "--k", "many"], ["laws", "--tol", "1"]], ids=str)
def test_what_argparse_refuses_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "proxsae" in capsys.readouterr().err


UNKNOWN = {
    "command": (["dept"], "no command is called 'dept': did you mean depth? (see `proxsae --help`)"),
    "command like none": (["xyzzy"], "no command is called 'xyzzy' (see `proxsae --help`)"),
    "choice": (
        ["train", "x", "--out", "y", "--kind", "abstopK"],
        ": did you mean abstopk? (see `proxsae train --help`)",
    ),
    "option": (["eval", "a", "b", "--stepz", "3"], "no option is called '--stepz': did you mean --step? "
                                                   "(see `proxsae eval --help`)"),
    "argument": (["rates", "more"], "there is one argument too many: 'more' (see `proxsae rates --help`)"),
    "nothing": (["inspect"], "the following arguments are required: SAE (see `proxsae inspect --help`)"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_name_ends_in_one_sentence_with_the_nearest_name(case, capsys):
    arguments, says = UNKNOWN[case]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.startswith("proxsae: ")
    assert told.endswith(f"{says}\n")
    assert told.count("\n") == 1


def test_help_lists_every_command_once_in_a_group(capsys):
    (commands,) = (action.choices for action in cli._parser()._actions if isinstance(action.choices, dict))
    listed = [name for group in cli.GROUPS.values() for name in group]
    assert sorted(listed) == sorted(commands) == sorted(COMMANDS)
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"proxsae {px.__version__}\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_the_encoding_of_a_pipe_lacks_is_printed_as_a_question_mark(encoding, monkeypatch):
    pipe = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", pipe)
    command = types.SimpleNamespace(run=lambda arguments: print("λ ≤ 1"))
    monkeypatch.setattr(cli, "_parser", lambda: types.SimpleNamespace(parse_args=lambda arguments: command))
    main([])
    assert pipe.buffer.getvalue() == f"? ? 1{os.linesep}".encode()


def test_laws_of_one_family_hold_and_leave_no_survivor(capsys, device, monkeypatch):
    """Of two operators and four wrong ones: test_laws.py has all of them, `tests/long` all of this family."""
    kept = {name: testing.OPERATORS[name] for name in ("L1", "KSparse k=2", "KSparse k=2 nonneg")}
    wrong = [mutant for mutant in testing.MUTANTS if isinstance(mutant.R, px.KSparse)]
    monkeypatch.setattr(testing, "OPERATORS", kept)
    monkeypatch.setattr(testing, "MUTANTS", wrong[:4])
    laws_of_ksparse(capsys, device)


def laws_of_ksparse(capsys, device):
    assert main(["laws", "KSparse", "--device", device]) == 0
    printed = capsys.readouterr().out
    assert "0 broken" in printed.splitlines()[-1]
    assert printed.splitlines()[-1].endswith(", 0 survivors")
    assert "BROKEN" not in printed
    assert "KSparse k=2 nonneg" in printed
    assert "L1" not in printed.split("must be killed by")[0]


def test_laws_that_are_broken_exit_with_1(capsys, monkeypatch):
    class Keeps(px.KSparse):
        def _prox(self, u, step):
            return u.copy()

    monkeypatch.setattr(testing, "OPERATORS", {"keeps": Keeps(1)})
    monkeypatch.setattr(testing, "torch_backends", lambda device: ())
    assert main(["laws", "keeps"]) == 1
    printed = capsys.readouterr().out
    assert "BROKEN" in printed
    assert " 0 broken" not in printed


def test_laws_of_an_unknown_operator_end_in_one_sentence(capsys):
    assert main(["laws", "nothing"]) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.startswith("proxsae: nothing is called 'nothing'")
    assert told.count("\n") == 1


def test_laws_check_statements_and_their_planted_errors(capsys, monkeypatch):
    from proxsae.testing import statements

    assert main(["laws", "thm-ista-rate"]) == 0
    printed = capsys.readouterr().out
    assert "thm-ista-rate" in printed
    assert " 0 broken; " in printed.splitlines()[-1]
    harmless = statements.Planted("nothing wrong", "thm-ista-rate", {})
    monkeypatch.setattr(statements, "PLANTED", [harmless])
    assert main(["laws", "thm-ista-rate"]) == 1
    assert "SURVIVES: nothing wrong" in capsys.readouterr().out


def test_statements_are_listed_and_told_apart(capsys):
    from proxsae.statements import STATEMENTS

    assert main(["statements"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {label}\n" in printed for label in STATEMENTS)
    summary = printed.splitlines()[-1]
    assert summary.startswith(f"{len(STATEMENTS)} statements: 5 proved by machine as well as on paper, ")
    assert summary.endswith(" in special cases only; 0 without a check")
    assert main(["statements", "thm-prox-l0"]) == 0
    printed = capsys.readouterr().out
    assert "docs/theory/proximal.md#thm-prox-l0" in printed
    assert "hard: keeps ties" in printed
    assert main(["statements", "nonsense"]) == 2
    assert capsys.readouterr().err == (
        "proxsae: no statement is called 'nonsense': `proxsae statements` lists all of them\n"
    )
    assert main(["statements", "thm-prox-l9"]) == 2
    assert "'thm-prox-l9': did you mean thm-prox-l1 or thm-prox-l0" in capsys.readouterr().err
    assert main(["laws", "ksparce"]) == 2
    assert "'ksparce': did you mean KSparse or BatchKSparse? operators are L1" in capsys.readouterr().err


def test_statements_are_proved_on_demand(capsys, monkeypatch):
    from proxsae.testing import proofs

    assert main(["statements", "thm-prox-l1", "--prove"]) == 0
    printed = capsys.readouterr().out
    assert "prox-l1" in printed
    assert " 0 failed" in printed.splitlines()[-1]
    proof = next(p for p in proofs.PROOFS.values() if p.statement == "thm-prox-l1")
    monkeypatch.setattr(proofs, "PROOFS", {"false": dataclasses.replace(proof, goal=proof.wrong)})
    assert main(["statements", "thm-prox-l1", "--prove"]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert main(["statements", "def-prox", "--prove"]) == 2
    assert "no machine proof" in capsys.readouterr().err


def python(*arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(px.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


def test_import_loads_neither_torch_nor_matplotlib_nor_triton():
    done = python("-c", "import proxsae, sys; print(*{'torch', 'matplotlib', 'triton'} & set(sys.modules))")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_the_module_is_the_command():
    done = python("-m", "proxsae", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: proxsae")
    assert done.stderr == ""
    done = python("-m", "proxsae", "depth", "--data", "/none/such.npy")
    assert done.returncode == 2
    assert done.stderr.startswith("proxsae: cannot read /none/such.npy")
    assert done.stderr.count("\n") == 1


def test_bench_explains_its_choices_and_times_nothing(capsys, monkeypatch):
    from proxsae.studies import cost

    monkeypatch.setattr(cost, "cost", lambda *_, **__: pytest.fail("nothing is to be timed"))
    assert main(["bench", "--d-in", "2304", "--k", "64", "--rows", "1000", "--steps", "16", "--explain"]) == 0
    first, *reasons = capsys.readouterr().out.splitlines()
    assert first == "1000 rows of 2304, 16384 latents, k = 64, 16 steps, float32, weights frozen"
    assert [line.split(":")[0].strip() for line in reasons] == ["rows", "decode", "further steps"]


def test_bench_prints_ratios_beside_the_model(capsys, device):
    sizes = ["--d-in", "16", "--d-sae", "256", "--k", "2", "--rows", "20", "--steps", "3"]
    assert main(["bench", *sizes, "--device", device]) == 0
    rows = capsys.readouterr().out.splitlines()[-5:]
    assert [row.split("  ")[0].split(":")[0] for row in rows] == [
        "encode",
        "training step",
        "evaluate",
        "a further step",
        "a further step, ExactStep",
    ]
    for row in rows:
        median, low, _, high, model = row[50:].split()
        assert float(low) <= float(median) <= float(high)
        assert float(model) >= 1


def test_bench_shows_what_a_stream_shares(capsys):
    """Where the model says that a million rows repay D^T D."""
    sizes = ["--d-in", "512", "--d-sae", "512", "--k", "1", "--rows", "20", "--steps", "4"]
    assert main(["bench", *sizes]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("a further step, D^T D made for a stream")


@pytest.mark.parametrize("size", ["--d-in", "--d-sae", "--k", "--rows", "--steps"])
def test_bench_refuses_sizes_below_one(size, capsys):
    assert main(["bench", size, "0"]) == 2
    assert capsys.readouterr().err == f"proxsae: {size}=0 must be a whole number >= 1\n"

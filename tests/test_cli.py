"""The command line: what it prints and writes, exit status 2 and one sentence for what users get wrong, 130 for ^C."""

import csv
import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import proxsae as px
from proxsae.cli import main

FILES = {"depth.png", "depth.svg", "report.html", "rows.csv", "rows.json"}
ROWS = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
COMMANDS = ("depth", "rates", "bench", "train", "inspect", "eval", "encode", "convert", "laws", "statements")
COUNT = (2 + 3 + 3 + 3) * 5  # rules of relu, jumprelu, topk and abstopk, times 1, 2, 4, 8 and 16 steps


@pytest.fixture
def place(tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def depth(*more, out="out"):
    small = ["--data", "rows.npy", "--train-steps", "3", "--d-sae", "16", "--k", "4", "--out", out]
    return main(["depth", *small, *more])


def contents(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))


def test_depth_prints_a_table_and_writes_five_files(place, capsys, device):
    assert depth("--seed", "5", "--device", device) == 0
    printed, told = capsys.readouterr()
    assert {f.name for f in (place / "out").iterdir()} == FILES
    assert contents(place) == sorted(["out", "rows.npy", *(f"out/{name}" for name in FILES)])
    lines = printed.splitlines()
    assert lines[0].split()[:4] == ["sae", "rule", "steps", "nmse"]
    body = [line.split() for line in lines[2:] if line.split()[1:2] in (["lipschitz"], ["exact"], ["refit"])]
    assert len(body) == COUNT
    for name in ("relu", "jumprelu", "topk", "abstopk"):
        assert f"\n{name}: from 1 to 16" in printed
        assert f"{name}: training 3 steps" in told
    rows = list(csv.DictReader((place / "out" / "rows.csv").read_text().splitlines()))
    assert [(r["sae"], r["rule"], r["steps"]) for r in rows] == [tuple(line[:3]) for line in body]
    assert all(np.isfinite(float(r["nmse"])) for r in rows)
    assert all(0 <= float(r["fixed_point_residual"]) < 1e6 for r in rows)
    assert {r["l0"] for r in rows if r["sae"] == "abstopk" and r["steps"] == "1"} == {"4.0"}
    meta = json.loads((place / "out" / "rows.json").read_text())["meta"]
    assert (meta["d_sae"], meta["k"], meta["seed"], meta["rows"]) == (16, 4, 5, "48 to train, 12 held out")
    first = {key: [r[key] for r in rows] for key in ("sae", "rule", "steps", "nmse", "l0", "objective", "cost")}
    assert depth("--seed", "5", "--device", device) == 0  # replaces, and repeats
    rows = list(csv.DictReader((place / "out" / "rows.csv").read_text().splitlines()))
    if device == "cpu":
        assert first == {key: [r[key] for r in rows] for key in first}


# The command may not get as far as training: a training that is started fails the test.
WRONG = {
    "missing file": (("--data", "none.npy"), "none.npy"),
    "truncated file": (("--data", "torn.npy"), "torn.npy"),
    "foreign file": (("--data", "text.npy"), "text.npy"),
    "NaN": (("--data", "nan.npy"), "nan.npy"),
    "integers": (("--data", "int.npy"), "int64"),
    "too few rows": (("--data", "few.npy"), "4 rows"),
    "k below 0": (("--k", "-1"), "k=-1"),
    "k of 0": (("--k", "0"), "k=0"),
    "k above d_sae": (("--k", "17"), "k=17"),
    "no latents": (("--d-sae", "0"), "d-sae=0"),
    "no steps": (("--train-steps", "0"), "train-steps=0"),
    "seed below 0": (("--seed", "-1"), "seed=-1"),
    "seed too large": (("--seed", str(2**70)), "seed"),
    "out below a file": (("--out", "rows.npy/out"), "rows.npy"),
    "out is a file": (("--out", "rows.npy"), "rows.npy"),
    "unknown device": (("--device", "toaster"), "--device toaster must be cpu, cuda or cuda:N"),
    "device without data": (("--device", "meta"), "meta"),
    "absent device": (("--device", "cuda:99"), "cuda:99"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_ends_in_one_sentence_and_status_2(case, place, capsys, monkeypatch):
    (place / "torn.npy").write_bytes((place / "rows.npy").read_bytes()[:-9])
    (place / "text.npy").write_text("1 2 3\n")
    np.save(place / "nan.npy", np.where(np.arange(60)[:, None] == 3, np.nan, ROWS))
    np.save(place / "int.npy", ROWS.astype(int))
    np.save(place / "few.npy", ROWS[:4])
    before = contents(place)
    monkeypatch.setattr("proxsae.studies.depth.train", lambda *a, **k: pytest.fail("training was started"))
    arguments, says = WRONG[case]
    try:
        status = depth(*arguments)
    except SystemExit as stop:  # argparse's own errors
        status = stop.code
    assert status == 2
    printed, told = capsys.readouterr()
    told = [line for line in told.splitlines() if not line.startswith("[")]  # progress lines
    assert printed == ""
    assert len(told) == 1
    assert told[0].startswith("proxsae: ")
    assert says in told[0]
    assert len(told[0]) < 200
    assert contents(place) == before
    gc.collect()  # a file left open is this test's fault


def test_rows_that_cannot_be_learned_end_in_one_sentence(place, capsys):
    np.save(place / "rows.npy", np.ones((60, 8)))
    assert depth() == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("proxsae: the 48 rows of activations are equal")
    assert not (place / "out").exists()


def test_ctrl_c_ends_with_130_and_leaves_nothing(place, capsys, monkeypatch):
    calls = []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("proxsae.studies.depth.train", interrupted)
    before = contents(place)
    assert depth() == 130
    assert len(calls) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.splitlines()[-1] == "proxsae: interrupted"
    assert contents(place) == before


def test_a_disk_that_fills_at_the_end_leaves_no_half_report(place, capsys, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    before = contents(place)
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr("proxsae.studies.depth.STEPS", (1, 2))
    assert depth() == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("proxsae: cannot write out")
    assert contents(place) == before


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


def test_laws_of_one_family_hold_and_leave_no_survivor(capsys, device):
    assert main(["laws", "KSparse", "--device", device]) == 0
    printed = capsys.readouterr().out
    assert "0 broken" in printed.splitlines()[-1]
    assert printed.splitlines()[-1].endswith(", 0 survivors")
    assert "BROKEN" not in printed
    assert "KSparse k=2 nonneg" in printed
    assert "L1" not in printed.split("must be killed by")[0]


def test_laws_that_are_broken_exit_with_1(capsys, monkeypatch):
    from proxsae import testing

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
    from proxsae.testing.statements import STATEMENTS

    assert main(["statements"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {label}\n" in printed for label in STATEMENTS)
    assert printed.splitlines()[-1].startswith(f"{len(STATEMENTS)} statements, ")
    assert printed.splitlines()[-1].endswith(" 0 without a check")
    assert main(["statements", "thm-prox-l0"]) == 0
    printed = capsys.readouterr().out
    assert "docs/theory/proximal.md#thm-prox-l0" in printed
    assert "hard: keeps ties" in printed
    assert main(["statements", "nonsense"]) == 2
    assert capsys.readouterr().err == (
        "proxsae: no statement is called 'nonsense': `proxsae statements` lists all of them\n"
    )


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


@pytest.mark.parametrize("option", ["--data", "--out"])
def test_an_empty_path_is_refused(option, place, capsys):
    assert main(["depth", option, ""]) == 2
    assert capsys.readouterr().err == f"proxsae: {option} is empty, but must be a path\n"


def test_too_little_memory_is_one_sentence(place, capsys, monkeypatch):
    message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.\nTraceback"

    def hungry(*args, **kwargs):
        raise RuntimeError(message)

    monkeypatch.setattr("proxsae.studies.depth.train", hungry)
    assert depth() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("proxsae: not enough memory")


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
    rows = capsys.readouterr().out.splitlines()[-4:]
    assert [row.split("  ")[0].split(":")[0] for row in rows] == [
        "encode",
        "training step",
        "a further step",
        "a further step, ExactStep",
    ]
    for row in rows:
        median, low, _, high, model = row[50:].split()
        assert float(low) <= float(median) <= float(high)
        assert float(model) >= 1


@pytest.mark.parametrize("size", ["--d-in", "--d-sae", "--k", "--rows", "--steps"])
def test_bench_refuses_sizes_below_one(size, capsys):
    assert main(["bench", size, "0"]) == 2
    assert capsys.readouterr().err == f"proxsae: {size}=0 must be a whole number >= 1\n"

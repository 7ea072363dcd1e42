"""What `proxsae train` says: progress without a terminal, another run in the same folder, defaults, what is missing."""

import signal

import numpy as np
import pytest

import proxsae as px
from proxsae.cli import main
from proxsae.training import loop
from tests.test_survive import ROWS, fresh, run


def test_without_a_terminal_lines_of_progress_go_to_standard_error(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "rows.npy", ROWS)
    monkeypatch.chdir(tmp_path)
    command = ["train", "rows.npy", "--out", "out", "--d-sae", "32", "--k", "3", "--batch-size", "64"]
    step, calls = loop._step, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 31:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", stopping)
    assert main([*command, "--steps", "50"]) == 130
    _, told = capsys.readouterr()
    first, like, *lines, _, last = told.splitlines()
    assert first.startswith("600 rows of 16; SAE(")
    assert like.startswith("all rows: median norm ")
    assert like.endswith("b_dec begins at the mean, so that it does not decide which latents fire")
    assert [line.split(":")[0] for line in lines] == [f"step {t} of 50" for t in (1, 5, 10, 15, 20, 25, 30)]
    assert all("loss " in line and "nmse " in line and "l0 3" in line for line in lines)
    assert "interrupted at step 31" in last
    assert main([*command, "--steps", "50"]) == 0
    _, told = capsys.readouterr()
    _, then, *lines = told.splitlines()
    assert then == "continuing at step 31 of 50"
    assert [line.split(":")[0] for line in lines] == [f"step {t} of 50" for t in (32, 35, 40, 45, 50)]
    assert main([*command, "--steps", "50"]) == 0
    assert capsys.readouterr().err.splitlines()[1:] == ["all steps are done"]


def test_python_gets_no_lines(tmp_path, capsys):
    run(fresh("abstopk"), tmp_path, progress=None)
    assert capsys.readouterr() == ("", "")


def test_another_width_in_the_same_folder_is_named_and_not_what_follows_from_it(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "rows.npy", ROWS)
    monkeypatch.chdir(tmp_path)
    command = ["train", "rows.npy", "--out", "out", "--batch-size", "64", "--steps", "5", "--k", "3"]
    assert main([*command, "--d-sae", "32"]) == 0
    for more, says in (
        (["--d-sae", "48"], "with d_sae=32 and not 48"),
        (["--d-sae", "32", "--kind", "topk"], "with sae=AbsTopK and not TopK"),
        (["--d-sae", "32", "--k", "4"], "with k=3 and not 4"),
        (["--d-sae", "32", "--seed", "1"], "with seed=0 and not 1"),
        (["--d-sae", "32", "--encoder-steps", "2"], "with encoder steps=1 and not 2"),
    ):
        capsys.readouterr()
        assert main([*command, *more]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["abstopk", "relu"])
def test_defaults_fit_narrow_rows(kind, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "rows.npy", ROWS[:, :6].copy())
    monkeypatch.chdir(tmp_path)
    assert main(["train", "rows.npy", "--out", "out", "--steps", "5", "--kind", kind]) == 0
    sae = px.load("out")
    assert (sae.d_in, sae.d_sae) == (6, 24)
    capsys.readouterr()
    assert main(["inspect", "out"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["format", "proxsae"]
    assert sae.penalty == px.KSparse(3) or kind == "relu"


@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_a_threshold_that_is_not_given_is_asked_for_with_the_call_that_finds_one(name):
    with pytest.raises(px.Error, match=r"in the units of the rows: .*l0=32") as error:
        getattr(px, f"{name}_sae")(16, 32)
    assert "\n" not in str(error.value)

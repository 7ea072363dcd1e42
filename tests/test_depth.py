"""`proxsae depth`: what it prints and writes, that it goes on where it stopped, and a sentence for what goes wrong."""

import csv
import gc
import importlib.util
import json
import math
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.cli import main
from proxsae.disk import held
from proxsae.studies import study
from proxsae.studies.journal import FILE
from proxsae.studies.parts.depth import measure as depth_part
from proxsae.studies.progress import Progress

ROWS = px.data.planted(n=60, d_in=8, d_sae=16, k=4, noise=0.1).x.astype(np.float32)


@pytest.fixture
def place(tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def depth(*more, out="out"):
    small = ["--data", "rows.npy", "--train-steps", "3", "--seeds", "2", "--d-sae", "16", "--k", "4", "--out", out]
    return run("depth", *small, "--parts", "depth", *more)


def run(*command):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["proxsae", *command])
        return main(list(command))


def contents(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))


@pytest.fixture
def few(monkeypatch):
    """Two of the six SAEs, and two depths, so that a study takes a second."""
    monkeypatch.setattr(depth_part, "TRAINING", {"topk": 1.0, "abstopk": 1.0})
    monkeypatch.setattr(depth_part, "STEPS", (1, 3))


def table(place, name, out="out"):
    return list(csv.DictReader((place / out / name).read_text().splitlines()))


@pytest.mark.usefixtures("few")
def test_depth_prints_findings_and_writes_the_report(place, capsys, device):
    assert depth("--seed", "5", "--train-depths", "1,2", "--device", device) == 0
    printed, told = capsys.readouterr()
    assert {"report.html", "summary.md", "rows.csv", "rows.json", FILE} < {f.name for f in (place / "out").iterdir()}
    assert not list(place.rglob(".proxsae-*"))
    rows = table(place, "rows.csv")
    assert len(rows) == 2 * 2 * 2 * 3 * 2  # SAEs, training depths, seeds, rules, inference depths
    assert {row["seed"] for row in rows} == {"5", "6"}
    for row in rows:
        assert float(row["l0"]) <= 4
        assert 0 < float(row["nmse"]) < 1
    drawn = table(place, "figures/depth-steps.csv")
    for point in drawn:
        same = [
            float(row["nmse"])
            for row in rows
            if all(row[key] == point[key] for key in ("penalty", "train_depth", "rule", "steps"))
        ]
        assert len(same) == int(point["seeds"]) == 2
        assert float(point["nmse"]) == pytest.approx(sum(same) / 2)
        half = 12.7062 * abs(same[0] - same[1]) / 2  # Student's 97.5 % quantile of 1 degree of freedom
        assert float(point["high"]) - float(point["nmse"]) == pytest.approx(half, rel=1e-4)
    said = " ".join(printed.split())
    assert "AbsTopK (k-sparse), error after 3 exact steps over that after one: trained with one step: ×" in said
    assert "2 seeds, 3 training steps, 12 rows, 8 tasks: about" in told
    assert "8 of 8: depth abstopk-train2-seed6" in told
    meta = json.loads((place / "out" / "rows.json").read_text())["meta"]
    assert (meta["d_sae"], meta["k"], meta["seeds"]) == (16, 4, "5 to 6")
    assert meta["rows"] == "48 to train, 12 held out, of which 12 are measured"
    assert meta["command"].startswith("proxsae depth --data rows.npy")
    claims = table(place, "tables/claims.csv")
    assert {claim["verdict"] for claim in claims} <= {
        "holds", "does not hold", "undecided here", "cannot be tested here"
    }  # fmt: skip
    page = (place / "out" / "report.html").read_text()
    for claim in claims:
        assert claim["verdict"] in page
    assert "depth" in {claim["part"] for claim in claims}
    assert (
        "proxsae depth --data rows.npy --k 4 --d-sae 16 --train-depths 1,2 --seed 5 --seeds 2 --train-steps 3" in page
    )


@pytest.mark.usefixtures("few")
def test_the_page_of_the_docs_is_written_from_a_study(place, capsys, monkeypatch):
    assert depth() == 0
    file = Path(__file__).parent.parent / "docs" / "write_study.py"
    spec = importlib.util.spec_from_file_location("write_study", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "DOCS", place / "docs")
    (place / "docs" / "figures").mkdir(parents=True)
    script.main(place / "out")
    page = (place / "docs" / "study.md").read_text()
    assert [f.name for f in (place / "docs" / "figures").iterdir()] == ["depth-steps.svg"]
    assert (place / "out" / "figures" / "depth-steps.svg").read_bytes() == (
        place / "docs" / "figures" / "depth-steps.svg"
    ).read_bytes()
    assert "proxsae depth --data rows.npy --k 4 --d-sae 16 --seeds 2 --train-steps 3" in page
    assert "| AbsTopK reconstructs better than TopK, at equal width and density |" in page
    assert re.findall(r"!\[.*?\]\((.*?)\)", page) == ["figures/depth-steps.svg"]
    assert not re.search(r"rows\.csv|rows\.json|tables/|\.csv", page)
    assert page.count("<details>") == page.count("</details>") == 3  # depth, claims and words: the answer stands open


@pytest.mark.usefixtures("few")
def test_the_same_command_goes_on_and_ends_in_the_same_report(place, capsys, monkeypatch):
    assert depth(out="whole") == 0
    train, calls = depth_part.train, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr("proxsae.studies.parts.depth.measure.train", interrupted)
    assert depth() == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last
        == "proxsae: interrupted; out keeps the 2 of 8 tasks that ended and a report of them: run the same command to "
        "resume"
    )
    assert {row["seed"] for row in table(place, "rows.csv")} == {"0"}
    assert depth() == 0
    assert "resuming: 2 of 8 tasks are done" in capsys.readouterr().err
    assert len(calls) == 3 + 6
    whole, parts = (table(place, "rows.csv", name) for name in ("whole", "out"))
    for one, other in zip(whole, parts, strict=True):
        for key, value in one.items():
            assert value == other[key] or "seconds" in key, key
    assert depth() == 0  # nothing is left to do
    assert len(calls) == 9
    assert "resuming: 8 of 8 tasks are done" in capsys.readouterr().err


@pytest.mark.usefixtures("few")
def test_the_report_is_there_after_the_first_task_and_grows(place, monkeypatch):
    monkeypatch.setattr("proxsae.studies.carry_out.SELDOM", 0.0)
    monkeypatch.setattr("proxsae.studies.carry_out.SHARE", 0.0)
    train, seen = depth_part.train, []

    def looking(*arguments, **options):
        there = (place / "out" / "report.html").exists()
        seen.append({(row["penalty"], row["seed"]) for row in table(place, "rows.csv")} if there else set())
        return train(*arguments, **options)

    monkeypatch.setattr("proxsae.studies.parts.depth.measure.train", looking)
    assert depth("--train-depths", "1") == 0
    assert [len(each) for each in seen] == [0, 1, 2, 3]


@pytest.mark.usefixtures("few")
def test_on_a_terminal_a_bar_says_what_is_done(place, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert depth() == 0
    told = capsys.readouterr().err
    assert re.search(r"8 of 8: depth abstopk-train4-seed1, error 0\.\d+ after 1 step, 0\.\d+ after 3", told)
    assert " % |" in told


def test_a_sign_of_life_while_nothing_ends(capsys, monkeypatch):
    monkeypatch.setattr("proxsae.studies.progress.BEAT", 0.001)
    monkeypatch.setattr("proxsae.studies.progress.PATIENCE", 0.0)
    told = ""
    with Progress() as progress:
        progress.doing("timing a training step")
        for _ in range(10_000):
            told += capsys.readouterr().err
            if told:
                break
            time.sleep(0.001)
    assert re.fullmatch(r"(\[ *\d+\.\d s\] timing a training step: \d+ s so far\n)+", told)


@pytest.mark.usefixtures("few")
def test_parts_that_were_chosen_are_not_those_that_are_named(place, capsys):
    small = ["--data", "rows.npy", "--d-sae", "16", "--k", "4", "--out", "out", "--budget", "1e-7"]
    assert run("depth", *small) == 0
    for name, value, there in (("--parts", "depth,signs", "['depth']"), ("--train-depths", "1,4", "[1]")):
        capsys.readouterr()
        assert run("depth", *small, name, value) == 2
        assert f"is of another study ({name} is {there}, not [" in capsys.readouterr().err
    assert run("depth", *small) == 0
    assert run("depth", *small, "--parts", "depth", "--train-depths", "1") == 0, "those that were chosen are the same"


@pytest.mark.usefixtures("few")
def test_a_foreign_journal_is_one_sentence(place, capsys):
    assert depth() == 0
    first, *_ = (place / "out" / FILE).read_text().splitlines()
    capsys.readouterr()
    own = json.loads(first)["study"]
    plan = own["plan"]
    for damage, says in (
        ({"x": 1}, "is of another study (the data is unknown, not "),
        ({"plan": 3}, "is of another study (the data is unknown, not "),
        (own | {"the version": "0.0"}, "is of another study (the version is 0.0, not "),
        *(
            (own | {"plan": kept}, "is not the journal of a study")
            for kept in (3, {}, plan | {"seeds": "two"}, plan | {"rows": 0}, plan | {"a training step": None})
        ),
    ):
        (place / "out" / FILE).write_text(json.dumps({"study": damage}) + "\n")
        assert depth() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("proxsae: out/study.jsonl ")
        assert says in line


@pytest.mark.usefixtures("few")
def test_another_study_in_the_same_folder_is_refused(place, capsys):
    assert depth() == 0
    before = contents(place)
    capsys.readouterr()
    assert depth("--k", "3") == 2
    told = capsys.readouterr().err
    assert told.startswith("proxsae: out/study.jsonl is of another study (--k is 4, not 3): one folder holds one study")
    assert contents(place) == before


# The command may not get as far as a task: a task that is begun fails the test.
WRONG = {
    "missing file": (("--data", "none.npy"), "none.npy"),
    "truncated file": (("--data", "torn.npy"), "torn.npy"),
    "foreign file": (("--data", "text.npy"), "text.npy"),
    "NaN": (("--data", "nan.npy"), "nan.npy"),
    "integers": (("--data", "int.npy"), "int64"),
    "too few rows": (("--data", "few.npy"), "4 rows"),
    "equal rows": (("--data", "equal.npy"), "the rows of activations are equal, all 48 of them"),
    "k below 0": (("--k", "-1"), "k=-1"),
    "k of 0": (("--k", "0"), "k=0"),
    "k above d_sae": (("--k", "17"), "k=17"),
    "no latents": (("--d-sae", "0"), "d-sae=0"),
    "no steps": (("--train-steps", "0"), "train-steps=0"),
    "no seeds": (("--seeds", "0"), "seeds=0"),
    "no depth": (("--train-depths", "0"), "--train-depths '0' must be whole numbers >= 1"),
    "seed below 0": (("--seed", "-1"), "seed=-1"),
    "seed too large": (("--seed", str(2**70)), "seed"),
    "no time": (("--budget", "0"), "--budget 0 must be a number of minutes > 0"),
    "endless time": (("--budget", "inf"), "--budget inf"),
    "unknown part": (("--parts", "depth,deep"), "--parts 'deep' must be of depth, stability"),
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
    np.save(place / "equal.npy", np.ones((60, 8)))
    before = contents(place)
    monkeypatch.setattr(study, "run", lambda *a, **k: pytest.fail("a task was begun"))
    arguments, says = WRONG[case]
    try:
        status = depth(*arguments)
    except SystemExit as stop:  # argparse's own errors
        status = stop.code
    assert status == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    (line,) = told.splitlines()
    assert line.startswith("proxsae: ")
    assert says in line
    assert len(line) < 200
    assert contents(place) == before
    gc.collect()  # a file left open is this test's fault


@pytest.mark.usefixtures("few")
def test_a_disk_that_fills_loses_no_work_and_leaves_no_half_report(place, capsys, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    def last():
        return capsys.readouterr().err.splitlines()[-1]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        assert depth() == 2
    assert last().startswith(
        "proxsae: cannot save to out/saes/topk-train1-seed0: No space left on device; out keeps the 0"
    )
    assert depth() == 0
    for file in (place / "out").glob("*.*"):
        if file.name != FILE:
            file.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        assert depth() == 2
    assert last().startswith("proxsae: cannot write out")
    assert [f.name for f in (place / "out").iterdir() if f.is_file()] == [FILE]
    assert depth() == 0
    assert "resuming: 8 of 8 tasks are done" in capsys.readouterr().err


@pytest.mark.usefixtures("few")
def test_a_small_budget_gets_the_smallest_study(place, capsys):
    small = ["--data", "rows.npy", "--d-sae", "16", "--k", "4", "--out", "out"]
    assert run("depth", *small, "--budget", "1e-7") == 0
    printed, told = capsys.readouterr()
    assert "1 seed, 10 training steps, 12 rows, 2 tasks: about " in told
    assert "one seed: numbers, no verdicts" in told
    assert "There is no smaller study: this one takes longer than 1e-07 min" in told
    assert "for 3 seeds of 100 training steps; doing 1 seed, 10 training steps instead. For the whole study: " in told
    assert (
        "left out, to fit into 1e-07 min: apart, encoders, stability, signs, recovery, bounds, training with 4" in told
    )
    assert {row["part"] for row in table(place, "rows.csv")} == {"depth"}
    assert printed.splitlines()[-2:] == [
        "For the whole study, about 20 min: proxsae depth --data rows.npy --k 4 --d-sae 16 --budget 20 --out out-whole",
        "Your own SAE: proxsae depth --sae my-sae --data my.npy --out my-sae-study",
    ]


@pytest.mark.usefixtures("few")
def test_the_whole_study_has_what_was_asked(place, capsys):
    small = ["--data", "rows.npy", "--d-sae", "16", "--k", "4", "--out", "out", "--budget", "1e-7"]
    assert run("depth", *small, "--seeds", "2", "--train-depths", "1,2") == 0
    told = capsys.readouterr().err
    assert "--budget 20 --parts" not in told
    assert "--k 4 --d-sae 16 --train-depths 1,2 --budget 20 --seeds 2 --out out-whole" in told
    page = (place / "out" / "report.html").read_text()
    assert "To repeat a row" not in page, "the plan has named the parts"


@pytest.mark.parametrize("option", ["--data", "--out", "--sae"])
def test_an_empty_path_is_refused(option, place, capsys):
    assert main(["depth", option, ""]) == 2
    assert capsys.readouterr().err == f"proxsae: {option} is empty, but must be a path\n"


@pytest.mark.usefixtures("few")
def test_too_little_memory_is_one_sentence(place, capsys, monkeypatch):
    message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.\nTraceback"

    def hungry(*args, **kwargs):
        raise RuntimeError(message)

    monkeypatch.setattr("proxsae.studies.parts.depth.measure.train", hungry)
    assert depth() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("proxsae: not enough memory")


def test_all_parts_run_on_other_data(place, capsys, monkeypatch):
    """Every part but recovery, whose problems have sizes of their own; without the l0 penalty, to be short."""
    monkeypatch.setitem(study.PARTS, "recovery", lambda setting: [])
    for name in ("jumprelu", "jumprelu2"):
        monkeypatch.delitem(depth_part.TRAINING, name)
    assert depth("--parts", "depth,stability,apart,encoders,signs,bounds") == 0
    printed = capsys.readouterr().out
    rows = table(place, "rows.csv")
    assert {row["part"] for row in rows} == set(study.PARTS) - {"recovery"}
    assert all(math.isfinite(float(row["nmse"])) for row in rows if row.get("nmse"))
    assert "Signs" in printed


# ---- from Python, and one SAE of the user's --------------------------------------------------------------------------


@pytest.fixture
def sae():
    made = px.SAE(8, 16, px.L0(0.08, nonneg=True, bandwidth=0.2))
    px.train(made, ROWS, 20, batch_size=16, progress=False)
    return made


def test_the_curve_of_an_sae_from_python(sae, place):
    found = px.studies.depth(sae, ROWS, steps=(4, 1), progress=False)
    assert [(row["rule"], row["steps"]) for row in found.rows] == [
        ("lipschitz", 1), ("lipschitz", 4), ("exact", 1), ("exact", 4)
    ]  # fmt: skip
    at_one = px.evaluate(sae, ROWS)
    for row in found.rows:
        assert row["l0"] == pytest.approx(at_one["l0"], rel=0.03), "density is matched"
        if row["steps"] == 1:
            assert row["lam_factor"] == 1
            assert row["nmse"] == pytest.approx(at_one["nmse"], rel=1e-6)
    few, many = (next(row for row in found.rows if row["rule"] == "exact" and row["steps"] == t) for t in (1, 4))
    assert many["nmse"] < few["nmse"]
    lines = found.table().splitlines()
    assert "  over the first  " in lines[0]
    assert len(lines) == 1 + len(found.rows)
    ratio = f"{many['nmse'] / few['nmse']:#.3g}"  # over one step
    assert lines[-1].split()[:6] == ["jumprelu", "1", "exact", "4", f"{many['nmse']:#.3g}", ratio]
    assert found.plot().axes
    assert "report.html" in found.report(place / "mine")
    assert table(place, "rows.csv", "mine")[-1]["nmse"] == str(many["nmse"])


@pytest.mark.parametrize("R", [px.KSparse(4), px.L1(0.1), px.MCP(0.1, gamma=3.0), px.BatchKSparse(4)], ids=repr)
def test_an_sae_of_any_penalty_has_a_curve(R, place):
    made = px.SAE(8, 16, R)
    px.train(made, ROWS, 5, batch_size=16, progress=False)
    found = px.studies.depth(made, "rows.npy", progress=False)
    rules = {"lipschitz"} | ({"exact"} if R.affine else set()) | ({"refit"} if isinstance(R, px.KSparse) else set())
    assert {row["rule"] for row in found.rows} == rules
    assert {row["steps"] for row in found.rows} == set(depth_part.STEPS)
    for row in found.rows:
        assert row["l0"] == pytest.approx(found.rows[0]["l0"], rel=0.05), "density is matched"


def test_many_rows_are_drawn(sae, monkeypatch):
    monkeypatch.setattr("proxsae.studies.depth_study.ROWS", 30)
    found = px.studies.depth(sae, ROWS, steps=(1,), progress=False)
    assert found.rows[0]["rows"] == 30
    assert found.about["rows"] == "30 of 60"


@pytest.mark.usefixtures("few")
def test_the_study_from_python_is_that_of_the_command(place, capsys):
    assert depth("--train-depths", "1") == 0
    printed = capsys.readouterr().out
    given = {"d_sae": 16, "k": 4, "seeds": 2, "train_steps": 3, "parts": ("depth",), "train_depths": (1,)}
    found = px.studies.depth(ROWS, **given, progress=False)
    assert capsys.readouterr().err == ""
    for one, other in zip(found.rows, table(place, "rows.csv"), strict=True):
        assert str(one["nmse"]) == other["nmse"]
    assert found.done == (4, 4)
    (told,) = (section for section in found.sections() if section.anchor == "depth")
    assert told.findings
    assert all(sentence in " ".join(printed.split()) for sentence in told.findings)
    assert px.studies.depth("rows.npy", **given, out="kept", progress=False).rows[0]["nmse"] == found.rows[0]["nmse"]
    assert (place / "kept" / "report.html").exists()


def test_wrong_calls_from_python(sae, place):
    never_fires = px.relu_sae(8, 16, lam=100.0)
    for arguments, options, says in (
        ((ROWS, ROWS), {}, "activations needs an SAE as the first argument, which is ndarray"),
        ((ROWS,), {"steps": (1, 2)}, "steps needs an SAE as the first argument"),
        ((sae, ROWS), {"steps": ()}, "steps is empty"),
        ((sae, ROWS), {"steps": (0,)}, "steps=0"),
        ((sae, ROWS[:, :7]), {}, "(n, 8)"),
        ((sae, ROWS * np.nan), {}, "NaN"),
        ((ROWS,), {"k": 99}, "--k=99 must be between 1 and d_sae=24"),
        ((ROWS,), {"train_depths": (0,)}, "--train-depths=0"),
        ((ROWS[:4],), {}, "4 rows"),
        ((sae, ROWS), {"steps": 4}, "steps=4 must be whole numbers >= 1"),
        ((never_fires, ROWS), {}, "no latent fires on the first 60 rows (l0 = 0)"),
        ((ROWS,), {"train_depths": 4}, "--train-depths=4 must be whole numbers >= 1"),
        ((ROWS,), {"budget": "3"}, "--budget '3' must be a number of minutes > 0"),
        ((ROWS,), {"device": "cuda:99"}, "--device cuda:99 is not there"),
        ((ROWS,), {"parts": "d"}, "--parts 'd' must be of"),
        ((ROWS,), {"parts": 3}, "--parts 3 must be names"),
        ((ROWS,), {"seeds": 0}, "--seeds=0"),
    ):
        with pytest.raises(px.Error) as caught:
            px.studies.depth(*arguments, **options, progress=False)
        assert says in str(caught.value)
    alone = px.studies.depth(ROWS, seeds=1, train_steps=2, parts=("signs",), progress=False)
    with pytest.raises(px.Error, match="no rows of the part depth"):
        alone.plot()
    assert contents(place) == ["rows.npy"]


def test_an_sae_whose_lam_is_0_is_not_said_to_keep_its_density(place):
    made = px.relu_sae(8, 16, lam=0.0)
    found = px.studies.depth(made.unrolled(2, analysis="encoder"), ROWS, steps=(1, 8), progress=False)
    assert {row["lam_factor"] for row in found.rows} == {1}
    answer = found.sections()[0]
    few, many = (next(row["l0"] for row in found.rows if (row["rule"], row["steps"]) == ("exact", t)) for t in (1, 8))
    assert many > 1.05 * few or few > 1.05 * many
    assert f"at densities {few:.1f} and {many:.1f}, so that the errors cannot be compared" in answer.findings[0]
    assert any("lam is 0, so steps without b_enc seek no sparse code" in note for note in answer.notes)
    assert any("The SAE has steps by the learned encoder; here" in note for note in answer.notes)
    of_one_step = px.studies.depth(made, ROWS, steps=(1, 8), progress=False).sections()
    (claimed,) = (section for section in of_one_step if section.anchor == "claims")
    assert claimed.notes == [], "no command repeats a row"


@pytest.mark.usefixtures("few")
def test_other_kinds_of_rows_from_python(sae, place):
    rows = torch.tensor(ROWS)
    half = px.studies.depth(sae, rows.bfloat16(), steps=(1,), progress=False)
    same = px.studies.depth(sae, rows.bfloat16().float(), steps=(1,), progress=False)
    assert [row["nmse"] for row in half.rows] == [row["nmse"] for row in same.rows]
    boxes = px.studies.depth(sae, ROWS.reshape(6, 10, 8), steps=(1,), progress=False)
    assert boxes.notes == ["The data are arrays of 3 axes: all but the last were taken as rows."]
    few = px.studies.depth(sae, rows[:29], steps=(1,), progress=False)
    assert few.notes == [
        "Only 29 rows are measured, and means over so few may be far from those of other rows: 30 say more."
    ]
    assert px.studies.depth(sae, rows[:1], steps=(1,), progress=False).notes[0].startswith("Only 1 row is measured, ")
    small = {"seeds": 1, "train_steps": 2, "parts": "depth", "k": np.int64(4), "train_depths": np.array([1])}
    np.save(place / "boxes.npy", ROWS.reshape(6, 10, 8))
    state = torch.random.get_rng_state()
    whole = px.studies.depth(place / "boxes.npy", **small, progress=False)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's generator stays as it was"
    assert whole.notes[-1:] == boxes.notes
    assert whole.notes[-2].startswith("Only 12 rows are measured, ")
    assert f"--data {place / 'boxes.npy'} " in whole.about["to repeat"]
    assert px.studies.depth(rows.bfloat16(), **small, progress=False).repeat == ""


def test_the_command_takes_an_sae(sae, place, capsys):
    sae.save(place / "mine")
    assert run("depth", "--sae", "mine", "--data", "rows.npy", "--out", "out") == 0
    printed, _ = capsys.readouterr()
    assert "Does the error fall?" in printed
    rows = table(place, "rows.csv")
    assert {(row["penalty"], row["steps"]) for row in rows} == {("jumprelu", str(t)) for t in depth_part.STEPS}
    assert run("depth", "--sae", "mine", "--data", "rows.npy", "--out", "out", "--seeds", "2") == 2
    assert capsys.readouterr().err.startswith("proxsae: --seeds cannot go with --sae")
    assert run("depth", "--sae", "mine", "--out", "other") == 2  # the packaged rows are wider
    assert "have width 384, but this SAE needs 8: give its rows (--data)" in capsys.readouterr().err
    assert not (place / "other").exists()
    (place / "out" / FILE).write_text("")
    before = (place / "out" / "rows.csv").read_bytes()
    assert run("depth", "--sae", "mine", "--data", "rows.npy", "--out", "out") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("proxsae: out holds a study (study.jsonl)")
    assert (place / "out" / "rows.csv").read_bytes() == before
    with held(place / "busy"):
        assert run("depth", "--sae", "mine", "--data", "rows.npy", "--out", "busy") == 2
    assert "busy is in use by another run" in capsys.readouterr().err


@pytest.mark.usefixtures("few")
def test_few_latents_get_few_non_zeros(place, capsys):
    assert run("depth", "--data", "rows.npy", "--train-steps", "2", "--seeds", "1", "--parts", "depth") == 0
    assert json.loads((place / "proxsae-depth" / "rows.json").read_text())["meta"]["k"] == 6

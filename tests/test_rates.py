"""The rates study: every row obeys its theorem, and a wrong step or momentum breaks the rows that exist to see it."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

import proxsae as px
from proxsae import theory
from proxsae.cli import main
from proxsae.statements.descent import variant
from proxsae.studies.rates import measure as study
from proxsae.studies.rates.measure import Rate, holds, rates


@pytest.fixture(scope="module")
def rows():
    return rates()


def test_every_row_obeys_its_theorem(rows):
    assert [row for row in rows if not holds(row)] == []
    assert {row.statement for row in rows} == {
        "thm-ista-descent", "thm-ista-rate", "thm-fista-rate", "thm-stationarity-rate", "thm-linear-phase",
    }  # fmt: skip
    assert {row.kind for row in rows} == {"upper", "tight", "lower"}
    assert all(math.isfinite(row.measured) and row.theory > 0 for row in rows)
    assert {row.t for row in rows} == set(study.TIMES)
    assert len({(row.problem, row.method, row.statement, row.kind, row.t) for row in rows}) == len(rows) > 80


def ratio(rows, problem, statement, t, kind="upper"):
    (row,) = [r for r in rows if (r.problem, r.statement, r.t, r.kind) == (problem, statement, t, kind)]
    return row.measured / row.theory


def test_the_bounds_are_nearly_attained(rows):
    assert ratio(rows, "twins", "thm-ista-rate", 256) == pytest.approx(0.5)
    assert ratio(rows, "twins", "thm-fista-rate", 256) > 0.97
    assert ratio(rows, "one mode", "thm-fista-rate", 256) > 0.33
    assert ratio(rows, "short chain", "thm-fista-rate", 64, "lower") < 3.5
    assert ratio(rows, "dominoes", "thm-stationarity-rate", 64) > 0.85
    assert ratio(rows, "dominoes", "thm-ista-descent", 64, "lower") < 1.15


def test_the_solved_lasso_is_certified():
    import numpy as np

    lasso = study.Lasso.random(np.random.default_rng(5), 40)
    assert 0 <= lasso.gap < 1e-9
    assert lasso.gap == px.duality_gap(lasso.x, lasso.D, lasso.best, lasso.R)
    chain = study.chain(40, 31)
    gradient = chain.D @ (chain.best @ chain.D - chain.x)
    assert np.abs(gradient).max() < 1e-15
    assert 0.5 * ((chain.x - chain.best @ chain.D) ** 2).sum() == pytest.approx(1 / (8 * 32))
    assert chain.L < 1


TWINS = {("twins", "thm-fista-rate", "upper"), ("twins", "thm-fista-rate", "tight")}
# Each planted error, the width at which it is planted, and rows (problem, statement, kind) that must break.
PLANTED = {
    "tau never updated, so no momentum": (variant(coefficient=lambda k: 0.0), 200, TWINS),
    "momentum k/(k+1), more than FISTA's": (
        variant(coefficient=lambda k: k / (k + 1)), 200, {("twins", "thm-fista-rate", "tight")},
    ),
    "momentum (k-1)/(k+2), another method": (
        variant(coefficient=lambda k: (k - 1) / (k + 2)), 200, {("twins", "thm-fista-rate", "tight")},
    ),
    "momentum everywhere": (
        variant(always=True),
        60,
        {("slowest, L1", "thm-linear-phase", "tight"), ("twins", "thm-ista-rate", "tight")},
    ),
    "half the step": (
        variant(scale=0.5),
        60,
        {
            *TWINS,
            ("slowest, L1", "thm-linear-phase", "tight"),
            ("slowest, KSparse", "thm-linear-phase", "tight"),
            ("settled, L1", "thm-linear-phase", "upper"),
            ("twins", "thm-ista-rate", "tight"),
            ("top atom", "thm-ista-descent", "tight"),
        },
    ),
    "a step 1.4 times as long": (
        variant(scale=1.4),
        60,
        {
            ("slowest, L1", "thm-linear-phase", "tight"),
            ("twins", "thm-ista-rate", "tight"),
            ("top atom", "thm-ista-descent", "tight"),
            ("dominoes", "thm-ista-descent", "lower"),
            ("dominoes", "thm-stationarity-rate", "upper"),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_errors_break_the_rows_that_see_them(name):
    wrong, d, expected = PLANTED[name]
    broken = {(r.problem, r.statement, r.kind) for r in rates(d=d, times=(4, 64), iteration=wrong) if not holds(r)}
    assert expected <= broken


def test_the_variant_without_a_mistake_breaks_nothing():
    assert all(map(holds, rates(d=40, times=(4, 64), iteration=variant())))


def test_wrong_momentum_breaks_the_bound_on_the_chain():
    chain = study.chain(200, 199)
    bound = theory.fista_rate(chain.L, chain.distance, 256)
    assert chain.gaps(px.ista, 256, "fista")[256] < 0.25 * bound
    assert chain.gaps(px.ista, 256, None)[256] > 2.5 * bound
    assert chain.gaps(variant(coefficient=lambda k: 1.0), 256, "fista")[256] > 1.5 * bound


@pytest.mark.parametrize(("kind", "right"), [("upper", (0.5, 1)), ("tight", (1,)), ("lower", (1, 2))])
def test_holds_applies_the_inequality_of_its_kind(kind, right):
    row = Rate("p", "m", "s", 1, 1.0, 3.0, kind)
    for measured in (0.5, 1, 2, math.nan):
        assert holds(replace(row, measured=3.0 * measured)) == (measured in right)
    assert holds(replace(row, measured=3.0 * (1 + 1e-12)))
    assert holds(replace(row, measured=3.0 * (1 - 1e-12)))
    assert not holds(replace(row, measured=3.0 * (0.999 if kind == "lower" else 1.001)))


def test_numbers_repeat_and_follow_the_seed():
    first, again, other = (rates(seed, d=24, times=(1, 4)) for seed in (3, 3, 4))
    assert first == again != other
    assert all(map(holds, first + other))


def test_bad_arguments_are_refused():
    with pytest.raises(px.Error, match="seed"):
        rates(-1)
    with pytest.raises(px.Error, match="d=7 must be"):
        rates(d=7)


def test_the_command_prints_a_table_and_writes_three_files(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "rates", lambda seed: rows)
    Path("proxsae-rates").mkdir()
    Path("proxsae-rates/rates.csv").write_text("of an earlier run")
    assert main(["rates"]) == 0
    printed, told = capsys.readouterr()
    assert told == ""
    assert {f.name for f in Path("proxsae-rates").iterdir()} == {"rates.csv", "rates.png", "rates.svg"}
    assert [f.name for f in tmp_path.iterdir()] == ["proxsae-rates"]
    lines = printed.splitlines()
    assert lines[0].split()[:5] == ["problem", "method", "t", "measured", "theory"]
    assert f"{len(rows)} measurements, 0 broken" in lines
    assert "BROKEN" not in printed
    assert len({line.index(" thm-") for line in lines if " thm-" in line}) == 1  # aligned
    saved = list(csv.DictReader(Path("proxsae-rates/rates.csv").read_text().splitlines()))
    assert [(r["problem"], float(r["measured"]), r["verdict"]) for r in saved] == [
        (r.problem, r.measured, "ok") for r in rows
    ]
    assert b"<svg" in Path("proxsae-rates/rates.svg").read_bytes()


def test_a_broken_bound_is_shown_and_exits_with_1(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = replace(rows[-1], measured=math.nan)
    monkeypatch.setattr(study, "rates", lambda seed: [*rows[:-1], wrong])
    monkeypatch.setattr("proxsae.studies.rates.figure.draw", lambda rows, figure: None)
    assert main(["rates"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("BROKEN") == 1
    assert "1 broken" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seed", "-1"], "seed=-1"),
        (["--out", ""], "--out is empty"),
        (["--out", "file"], "cannot write file: a file is in the way"),
        (["--out", "file/below"], "file is in the way"),
    ],
    ids=str,
)
def test_a_wrong_call_ends_in_one_sentence_and_status_2(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert main(["rates", *arguments]) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.startswith("proxsae: ")
    assert says in told
    assert told.count("\n") == 1
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_leaves_nothing(rows, tmp_path, monkeypatch, capsys):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "rates", lambda seed: rows)
    monkeypatch.setattr("proxsae.studies.rates.figure.draw", lambda rows, figure: None)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["rates"]) == 2
    assert capsys.readouterr().err == "proxsae: cannot write proxsae-rates: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["rates", "--help"])
    assert stop.value.code == 0
    assert "example: proxsae rates" in " ".join(capsys.readouterr().out.split())

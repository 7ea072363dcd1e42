"""Rows that stand out are counted, named, warned of once, and dropped or clipped on request."""

import json
import pickle
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.cli import main
from proxsae.conventions import Note
from proxsae.data import open_rows, survey
from proxsae.data.rows import lengths
from proxsae.studies.request import Request
from proxsae.testing import assert_close, assert_same
from proxsae.training import loop, recipe

CLEAN = (px.data.planted(n=400, d_in=16, d_sae=32, k=3, seed=1).x + 0.5).astype(np.float32)
FAR = [7, 8, 120, 399]


def planted(x=CLEAN, far=FAR, factor=100.0):
    """`x` with rows of `factor` times its own at the numbers `far`."""
    x = x.copy()
    x[far] *= factor
    return x


ROWS = planted()


def norms_of(x):
    return np.sqrt((x.astype(np.float64) ** 2).sum(axis=1))


def shards(folder, x=ROWS):
    """Rows in three files of unequal length; the seam lies between two outliers."""
    for name, part in zip("abc", np.split(x, [8, 150]), strict=True):
        np.save(folder / f"{name}.npy", part)
    return folder


SOURCES = {
    "array": lambda folder, x: x,
    "tensor": lambda folder, x: torch.tensor(x),
    "file": lambda folder, x: np.save(folder / "x.npy", x) or folder / "x.npy",
    "folder": shards,
    "float16 file": lambda folder, x: np.save(folder / "x.npy", x.astype(np.float16)) or folder / "x.npy",
}


def fresh(**more):
    torch.manual_seed(0)
    return px.SAE(16, 32, px.KSparse(3), **more)


def trained(rows, **more):
    sae = fresh()
    got = px.train(sae, rows, **{"steps": 20, "batch_size": 64, "progress": False} | more)
    return got, [a.detach().clone() for a in sae.parameters()]


# Treated where they are opened


@pytest.mark.parametrize("source", SOURCES)
def test_dropped_rows_are_not_there(source, tmp_path):
    given = SOURCES[source](tmp_path, ROWS)
    whole, rows = open_rows(given)[:], open_rows(given, outliers="drop")
    want = np.delete(whole, FAR, axis=0)
    assert (rows.shape, len(rows), rows.dtype) == ((396, 16), 396, whole.dtype)
    order = np.random.default_rng(0).integers(-396, 396, 1000)
    for which in (slice(None), slice(5, 10), slice(390, None), order, want[:, 0] > 0.5, 7, -1):
        assert_same(rows[which], want[which])
    assert_same(pickle.loads(pickle.dumps(rows))[:], want)
    assert repr(rows).endswith("4 of 400 rows above 10 times the median norm dropped>")


@pytest.mark.parametrize("source", SOURCES)
def test_clipped_rows_have_ten_times_the_median_norm(source, tmp_path):
    given = SOURCES[source](tmp_path, ROWS)
    whole, rows = open_rows(given)[:], open_rows(given, outliers="clip")
    norms = norms_of(whole)
    most = 10 * np.median(norms)
    want = whole.astype(np.float64) * np.minimum(1, most / norms)[:, None]
    got = rows[:]
    assert_same(np.delete(got, FAR, axis=0), np.delete(whole, FAR, axis=0))
    assert_close(got[FAR], want[FAR].astype(got.dtype), np.finfo(got.dtype).eps)
    assert_same(rows[[399, 0, 8]], got[[399, 0, 8]])
    assert not len(survey(rows, above=10.01).outliers)


def test_other_factors_and_treatments_one_after_another():
    norms = norms_of(ROWS)
    for above in (1.2, 3, 99, 1e9):
        kept = norms <= above * np.median(norms)
        rows = open_rows(ROWS, "drop", above)
        assert_same(rows[:], ROWS[kept])
        again = open_rows(rows, "drop", 1.1)
        assert_same(again[:], rows[:][norms[kept] <= 1.1 * np.median(norms[kept])])
        assert again.outliers.count("dropped") == 2
        both = open_rows(open_rows(rows, "clip", 1.1), "drop", 1.05)
        assert_same(both[:], rows[:][norms[kept] <= 1.05 * np.median(norms[kept])])
    assert_same(open_rows(open_rows(ROWS, "clip", 2), "clip", 10)[:], open_rows(ROWS, "clip", 2)[:])
    assert_same(open_rows(CLEAN, "drop")[:], CLEAN)
    assert open_rows(ROWS).outliers == "kept"


def test_a_row_is_named_by_its_place_in_its_file(tmp_path):
    x = ROWS.copy()
    x[200, 3] = np.nan
    rows = open_rows(shards(tmp_path), "drop")
    assert [rows.where(row) for row in (0, 6, 7, 395)] == ["row 0 of a.npy", "row 6 of a.npy", "row 1 of b.npy",
                                                           "row 248 of c.npy"]  # fmt: skip
    with pytest.raises(px.Error, match=r"row 50 of c.npy holds NaN"):
        open_rows(shards(tmp_path, x), "clip")


def test_a_fingerprint_knows_the_treatment():
    every = [open_rows(ROWS), open_rows(ROWS, "drop"), open_rows(ROWS, "clip"), open_rows(ROWS, "clip", 20)]
    assert len({rows.fingerprint() for rows in every}) == 4
    assert open_rows(ROWS, "drop").fingerprint() == every[1].fingerprint()


@pytest.mark.parametrize("unit", [1e-310, 1e-200, 1e200, 1e300])
def test_no_square_overflows_or_vanishes(unit):
    x = planted(CLEAN.astype(np.float64) * unit, factor=1e5)
    found = survey(x)
    assert found.outliers.tolist() == FAR
    wide = planted(CLEAN.astype(np.longdouble) * unit, factor=1e5)  # 15 bits of exponent
    assert found.median == pytest.approx(float(np.median(np.sqrt((wide**2).sum(axis=1)))))
    assert found.mean == pytest.approx(float(np.sqrt((wide.mean(axis=0) ** 2).sum())))
    assert found.spread == pytest.approx(float(np.sqrt(wide.var(axis=0).sum())))
    assert_same(open_rows(x, "drop")[:], np.delete(x, FAR, axis=0))
    clipped, most = open_rows(x, "clip")[:], 10 * found.median / unit
    want = CLEAN[FAR] * (most / norms_of(CLEAN[FAR]))[:, None]
    assert_close(clipped[FAR] / unit, want, 1e-3 if unit < 1e-300 else 1e-12)  # where numbers have few digits
    largest = np.finfo(np.float64).max
    assert lengths(np.full((1, 4), largest)) == largest


def test_a_survey_of_pieces_is_that_of_the_whole(monkeypatch):
    whole = survey(ROWS)
    monkeypatch.setattr(sys.modules["proxsae.data.survey"], "PIECE", 16 * 7)  # the name is that of the function, too
    parts = survey(ROWS)
    wide = ROWS.astype(np.float64)
    for found in (whole, parts):
        assert found.outliers.tolist() == FAR
        assert found.spread == pytest.approx(np.sqrt(wide.var(axis=0).sum()), rel=1e-12)
        assert found.mean == pytest.approx(np.linalg.norm(wide.mean(axis=0)), rel=1e-12)
        assert found.share == pytest.approx((norms_of(ROWS)[FAR] ** 2).sum() / (wide**2).sum(), rel=1e-12)


def test_rows_are_not_copied_to_be_treated(tmp_path):
    n, d = 2**15, 256  # 32 MiB
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (n, d))
    file[:] = 1
    file[::64] = 50
    del file
    open_rows(tmp_path / "x.npy", "drop")
    tracemalloc.start()
    for how, count in (("drop", n - n // 64), ("clip", n)):
        rows = open_rows(tmp_path / "x.npy", how)
        assert len(rows) == count
        assert norms_of(rows[np.arange(0, count, 64)]).max() == pytest.approx(16 if how == "drop" else 160)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20, peak  # norms, and pieces


BAD = {
    "outliers='remove' must be 'keep', 'drop' or 'clip'": (ROWS, "remove"),
    "above=1 must be finite and > 1: a number of times the median norm": (ROWS, "drop", 1),
    "above=nan must be finite and > 1": (ROWS, "clip", np.nan),
    "above='a' must be finite and > 1": (ROWS, "keep", "a"),
    "row 3 holds NaN or infinite entries": (np.where(np.arange(400)[:, None] == 3, np.nan, ROWS), "drop"),
}


@pytest.mark.parametrize("says", BAD)
def test_what_cannot_be_treated_is_one_sentence(says):
    with pytest.raises(px.Error) as error:
        open_rows(*BAD[says])
    assert says in str(error.value)
    assert len(open_rows(np.eye(5, 2, dtype=np.float32), "drop")) == 5  # most rows are 0, and the median is no measure


# What runs do with them


@pytest.mark.parametrize("source", ["array", "folder"])
def test_a_run_without_the_outliers_is_that_on_the_other_rows_to_the_bit(source, tmp_path):
    kept = np.delete(ROWS, FAR, axis=0)
    got, weights = trained(open_rows(SOURCES[source](tmp_path, ROWS), "drop"))
    want, others = trained(kept)
    assert got == want
    for mine, other in zip(weights, others, strict=True):
        assert_same(mine, other)
    sae = fresh()
    dropped = open_rows(tmp_path if source == "folder" else ROWS, "drop")
    assert px.evaluate(sae, dropped) == px.evaluate(sae, kept)
    with torch.no_grad():
        assert_same(sae.encode(dropped), sae.encode(torch.tensor(kept)))


def test_a_run_goes_on_with_the_same_treatment_only(tmp_path, monkeypatch):
    want = trained(open_rows(ROWS, "clip"))
    step, calls = loop._step, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        trained(open_rows(ROWS, "clip"), checkpoint=tmp_path, every=5)
    for other, says in (("keep", "clipped and not kept"), ("drop", "clipped and not 4 of 400 .* dropped")):
        with pytest.raises(px.Error, match=f"another run, with outliers=4 of 400 rows above 10 times .* {says}: use"):
            trained(open_rows(ROWS, other), checkpoint=tmp_path)
    got = trained(open_rows(ROWS, "clip"), checkpoint=tmp_path)
    assert len(calls) == 12 + 20 - 10  # it did go on
    assert got[0] == want[0]
    for mine, other in zip(got[1], want[1], strict=True):
        assert_same(mine, other)


def test_a_checkpoint_from_before_there_were_treatments_is_of_rows_that_were_kept(tmp_path, monkeypatch):
    kind_of_run = loop.kind_of_run
    before = lambda *given: {name: value for name, value in kind_of_run(*given).items() if name != "outliers"}  # noqa: E731
    monkeypatch.setattr(loop, "kind_of_run", before)
    want = trained(CLEAN, checkpoint=tmp_path)[0]
    monkeypatch.undo()
    assert trained(CLEAN, checkpoint=tmp_path)[0] == want
    with pytest.raises(px.Error, match=r"another run, with outliers=kept and not 0 of 400 rows .* dropped"):
        trained(open_rows(CLEAN, "drop"), checkpoint=tmp_path)


def told(call):
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in found if issubclass(one.category, Note)]


RUNS = {
    "train": lambda rows, folder: trained(rows),
    "evaluate": lambda rows, folder: px.evaluate(fresh(), rows, batch_size=50),
    "depths": lambda rows, folder: px.sae.evaluation.evaluate_depths(fresh(), rows, (1, 2), batch_size=50),
    "study of one": lambda rows, folder: px.studies.depth(fresh(), rows, steps=(1, 2), progress=False),
    "study": lambda rows, folder: Request(rows).rows(),
}


@pytest.mark.parametrize("run", RUNS)
def test_outliers_are_warned_of_once_and_only_where_they_are_and_untreated(run, tmp_path):
    (said,) = told(lambda: RUNS[run](shards(tmp_path), tmp_path))
    assert "4 of 400 rows have a norm above 10 times the median of " in said
    assert "% of all squares (the first is row 7, the largest norm " in said
    assert said.endswith("px.data.open_rows(rows, outliers='drop') leaves them out, and so does --outliers drop")
    for clean in (CLEAN, open_rows(ROWS, "drop"), open_rows(ROWS, "clip"), px.data.packaged()[1][:400, :16].copy()):
        assert not told(lambda: RUNS[run](clean, tmp_path))  # noqa: B023


def test_outliers_that_do_not_matter_are_counted_without_a_warning():
    x = planted(np.tile(CLEAN, (40, 1)), [5], 12.0)
    assert survey(x).outliers.tolist() == [5]
    assert survey(x).share < 0.01
    assert survey(x).warning() is None
    assert survey(px.data.packaged()[0]).warning() is None


def test_normalised_rows_have_no_outliers_to_train_on(capsys):
    assert not told(lambda: px.train(fresh(normalize="constant_norm"), ROWS, steps=2, progress=False))
    assert told(lambda: px.train(fresh(), ROWS, steps=2, progress=False))


@pytest.mark.parametrize(("steps", "looked"), [(2, "1 of 100 rows looked at has"), (40, "4 of 400 rows have")])
def test_all_rows_are_looked_at_where_the_run_reads_as_many(steps, looked, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "SAMPLE", 100)
    rows = planted(far=FAR)
    sample = px.data.Shuffle(400, 0).positions(0, 100)
    first = next(i for i in sorted(sample) if i not in FAR)
    if steps == 2:
        rows = planted(far=[first], factor=100.0)
    (said,) = told(lambda: trained(rows, steps=steps, batch_size=32, progress="lines"))
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("a sample of 100 rows" + (": median" if steps == 2 else ", but norms of all: median"))
    assert said.startswith(looked)
    assert f"(the first is row {first if steps == 2 else 7}," in said


def test_a_large_mean_kills_latents_unless_b_dec_begins_there():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(4096, 32)) + 4).astype(np.float32)  # gamma = 4
    assert survey(x).gamma == pytest.approx(4, rel=0.02)
    torch.manual_seed(0)
    sae = px.topk_sae(32, 256, 4)
    at_zero = px.evaluate(sae, x)["dead"]
    with torch.no_grad():
        sae.b_dec.copy_(torch.tensor(x.mean(axis=0)))
    assert at_zero > 0.5 > 0.1 > px.evaluate(sae, x)["dead"]
    assert recipe.begins_at_mean(fresh())
    assert not recipe.begins_at_mean(sae)


# The commands


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    shards(tmp_path / "rows")
    fresh().save("sae")
    return tmp_path


TRAIN = ["train", "rows", "--out", "out", "--d-sae", "32", "--k", "3", "--steps", "10", "--batch-size", "64"]


def test_train_warns_or_drops(place, capsys):
    assert main(TRAIN) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("note: 4 of 400 rows have a norm above ") for line in lines].count(True) == 1
    assert main([*TRAIN, "--outliers", "drop"]) == 2
    assert "of another run, with outliers=kept and not 4 of 400 rows above" in capsys.readouterr().err
    assert main([*TRAIN, "--outliers", "drop", "--out", "dropped"]) == 0
    first, like, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith("396 rows of 16 (4 of 400 rows above 10 times the median norm dropped); SAE(")
    found = survey(np.delete(ROWS, FAR, axis=0))
    assert like.startswith(
        f"all rows: median norm {found.median:.4g}, largest {found.largest:.4g}; mean {found.mean:.4g} "
    )
    assert f": gamma {found.gamma:.3g}; b_dec begins at the mean" in like
    assert not [line for line in lines if "note" in line]
    assert json.loads((place / "dropped" / "metrics.json").read_text())["outliers"].endswith("dropped")
    capsys.readouterr()
    assert main([*TRAIN, "--init", "dropped/sae", "--out", "again", "--outliers", "clip"]) == 2  # --k cannot go with it
    again = ["train", "rows", "--out", "again", "--init", "dropped/sae", "--steps", "2", "--outliers", "clip"]
    assert main(again) == 0
    assert "b_dec does not begin at the mean: the larger gamma, the more latents are dead" in capsys.readouterr().err


def test_eval_warns_or_drops(place, capsys):
    assert main(["eval", "sae", "rows", "--steps", "1,2"]) == 0
    assert capsys.readouterr().err.startswith("note: 4 of 400 rows have a norm above 10 times the median of ")
    assert main(["eval", "sae", "rows", "--steps", "1", "--outliers", "drop", "--out", "found"]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert "on 396 rows of width 16 (4 of 400 rows above 10 times the median norm dropped)" in out
    assert json.loads((place / "found" / "rows.json").read_text())["meta"]["outliers"].startswith("4 of 400 rows")


def test_depth_takes_the_treatment_and_its_report_says_so(place, capsys):
    command = ["depth", "--data", "rows", "--sae", "sae", "--out", "study", "--outliers", "drop"]
    assert main(command) == 0
    assert "note:" not in capsys.readouterr().err
    report = (place / "study" / "summary.md").read_text()
    assert "4 of 400 rows above 10 times the median norm dropped" in report
    assert f"gamma {survey(open_rows(ROWS, 'drop')).gamma:.3g}" in report
    asked = Request("rows", outliers="drop").checked()
    train, test, facts, _ = asked.rows()
    kept = torch.tensor(np.delete(ROWS, FAR, axis=0))
    assert_same(train, kept[:-79])
    assert_same(test.sort(dim=0).values, kept[-79:].sort(dim=0).values)
    assert facts["outliers"].endswith("dropped")
    assert asked.command() == "proxsae depth --data rows --outliers drop"


def test_a_whole_study_warns_once_and_its_report_says_so():
    made = []
    options = {"parts": ("depth",), "seeds": 1, "train_steps": 1, "train_depths": (1,), "d_sae": 16, "k": 3}
    (said,) = told(lambda: made.append(px.studies.depth(ROWS, **options, progress=False)))
    assert said.startswith("4 of 400 rows have")
    assert made[0].about["outliers"] == "4 of 400 rows above 10 times the median norm, kept"
    assert made[0].about["norms"] == survey(ROWS).told()


def test_inspect_says_what_rows_are_like(place, capsys):
    assert main(["inspect", "rows"]) == 0
    facts = capsys.readouterr().out
    assert "rows      400 of width 16, float32\n" in facts
    assert "outliers  4 above 10 times the median norm (row 7, 8, 120, 399) hold " in facts
    assert f"gamma = {survey(ROWS).gamma:.3g}, their ratio" in facts
    np.save("clean.npy", CLEAN)
    assert main(["inspect", "clean.npy"]) == 0
    assert "outliers  none above 10 times the median norm\n" in capsys.readouterr().out
    assert main(["inspect", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err

"""Encoders side by side: each against plain NumPy, what training leaves alone, and what the report says of them."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.cli import main
from proxsae.penalties.published import PUBLISHED
from proxsae.reference.pursuit import omp
from proxsae.report.section import Picture, Table
from proxsae.studies import study
from proxsae.studies.parts.claims import of_encoders
from proxsae.studies.parts.claims.section import claims
from proxsae.studies.parts.depth.measure import name_of
from proxsae.studies.parts.encoders import measure as encoders
from proxsae.studies.parts.encoders import section as report
from proxsae.studies.parts.encoders.names import ENCODERS, LEARNED, asked, check_encoders, misfit
from proxsae.studies.sections import sections
from proxsae.studies.task import Setting
from tests.test_apart import an_sae, first_code, lasso_by_coordinates, weights

D_IN, D_SAE, N, K = 6, 10, 40, 2
PENALTIES = {"relu": px.L1(0.3, nonneg=True), "topk": px.KSparse(K, nonneg=True), "abstopk": px.KSparse(K)}


def a_setting(folder: Path, **changes) -> Setting:
    x = torch.from_numpy(np.random.default_rng(7).standard_normal((N, D_IN)).astype(np.float32))
    return replace(Setting(x, x, D_SAE, K, (0,), 3, (1,), folder, False, 0.01), **changes)


def one(name, penalty="abstopk", steps=None, train_steps=3, k=K, seed=0):
    """The row of one encoder, and the SAE and the rows that it is of."""
    sae, x = an_sae(PENALTIES[penalty], seed=3), a_setting(Path()).test
    T = (ENCODERS[name].steps or (k,))[0] if steps is None else steps
    return encoders.measured(sae, name, T, x, x, k, train_steps, seed), sae, x


def error(sae, x, z):
    W, x = weights(sae), x.double().numpy()
    return ((x - W["b_dec"] - z @ W["W_dec"]) ** 2).sum() / (x**2).sum()


def pursuit(c, D, k, nonneg):
    """Matching pursuit, one row and one atom at a time."""
    codes = np.zeros((len(c), len(D)))
    for row, z in zip(c, codes, strict=True):
        r = row.copy()
        for _ in range(k):
            scores = D @ r / np.linalg.norm(D, axis=1)
            j = int(np.argmax(scores if nonneg else np.abs(scores)))
            v = D[j] @ r / (D[j] @ D[j])
            if nonneg and v <= 0:
                break
            z[j] += v
            r -= v * D[j]
    return codes


# What is measured ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["topk", "abstopk"])
def test_k_sparse_encoders_are_what_their_papers_write(penalty):
    nonneg = penalty == "topk"
    for name, codes in (
        ("one-step", lambda c, W, x: first_code(penalty, W, x)),
        ("omp", lambda c, W, x: omp(c, W["W_dec"], K, nonneg)),
        ("mp", lambda c, W, x: pursuit(c, W["W_dec"], K, nonneg)),
    ):
        row, sae, x = one(name, penalty)
        W = weights(sae)
        z = codes(x.double().numpy() - W["b_dec"], W, x.double().numpy())
        assert row["nmse"] == pytest.approx(error(sae, x, z), rel=1e-5), name
        assert row["l0"] == pytest.approx((z != 0).sum(axis=1).mean()), name
        assert (row["parameters"], row["lam_factor"], row["rows"]) == (0, 1.0, N)
    assert one("one-step", penalty)[0]["cost"] == 1
    assert one("mp", penalty)[0]["cost"] <= K


@pytest.mark.parametrize(("name", "rule"), [("exact", px.ExactStep()), ("lipschitz", px.Lipschitz())])
def test_computed_steps_start_at_the_learned_encoder_and_are_those_of_ista(name, rule):
    row, sae, x = one(name, steps=4)
    W, x64 = weights(sae), x.double().numpy()
    trace = px.ista(x64 - W["b_dec"], W["W_dec"], PENALTIES["abstopk"], 3, step=rule, z0=first_code("abstopk", W, x64))
    assert row["nmse"] == pytest.approx(error(sae, x, trace.codes), rel=1e-4)
    assert row["steps"] == 4


def test_fista_is_momentum_from_the_encoders_code_at_the_density_of_the_others():
    row, sae, x = one("fista", "relu", steps=6)
    assert row["l0"] == pytest.approx(K, rel=0.02), "matched by its own codes: those of ISTA are less dense here"
    W, x64 = weights(sae), x.double().numpy()
    lam = 0.3 * row["lam_factor"]
    z = np.maximum((x64 - W["b_dec"]) @ W["W_enc"] + W["b_enc"] - lam, 0)
    y, t, L, before = z, 1.0, np.linalg.norm(W["W_dec"], 2) ** 2, z
    for _ in range(5):
        z = np.maximum(y - (y @ W["W_dec"] + W["b_dec"] - x64) @ W["W_dec"].T / L - lam / L, 0)
        t, old = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        y, before = z + (old - 1) / t * (z - before), z
    assert row["nmse"] == pytest.approx(error(sae, x, z), rel=1e-4)


def test_codes_without_end_are_the_optimum():
    row, sae, x = one("inf", "relu")
    W = weights(sae)
    z = lasso_by_coordinates(x.double().numpy() - W["b_dec"], W["W_dec"], 0.3 * row["lam_factor"], True)
    assert row["nmse"] == pytest.approx(error(sae, x, z), rel=1e-3)
    assert row["steps"] is None
    assert row["cost"] > 2


@pytest.mark.parametrize(
    ("name", "penalty"),
    [(name, R) for name in ENCODERS if ENCODERS[name].towards for R in PENALTIES if not misfit(name, PENALTIES[R])],
)
def test_training_an_encoder_leaves_the_sae_alone_and_can_be_repeated(name, penalty):
    sae, x = an_sae(PENALTIES[penalty], seed=3), a_setting(Path()).test
    before = {key: a.detach().clone() for key, a in sae.weights().items()}
    rows = [encoders.measured(sae, name, 2, x, x, K, 3, seed=1) for _ in range(2)]
    assert all(torch.equal(a, before[key]) for key, a in sae.weights().items())
    assert rows[0]["nmse"] == rows[1]["nmse"]
    assert rows[0]["nmse"] != encoders.measured(sae, name, 2, x, x, K, 3, seed=2)["nmse"]
    assert rows[0]["l0"] == pytest.approx(K, rel=0.2)


@pytest.mark.parametrize(
    ("name", "penalty", "added"),
    [("slista", "abstopk", 2), ("learned", "relu", 4), ("lista", "abstopk", D_SAE**2 + 2), ("alista", "abstopk", 2),
     ("lista-cp", "abstopk", 2 * D_SAE * D_IN), ("lista-cp", "relu", 2 * D_SAE * D_IN + 2), ("accumulated", "relu", 0),
     ("tilista", "relu", D_SAE * D_IN + 4), ("tuned", "abstopk", 0), ("distilled", "abstopk", 0)],
)  # fmt: skip
def test_numbers_added_are_those_that_two_layers_learn(name, penalty, added):
    assert one(name, penalty, steps=3)[0]["parameters"] == added


def test_tuning_goes_towards_the_error_and_distilling_towards_the_codes(monkeypatch):
    seen = []

    def spied(sae, deep, rows, steps, batch, lr, seed, towards, progress):
        seen.append((towards, sae.steps, deep.steps, deep.step, steps, seed))

    monkeypatch.setattr(encoders, "distill", spied)
    for name in ("distilled", "tuned", "lista"):
        one(name, steps=2, train_steps=17, seed=5)
    exact = (2, 16, px.ExactStep(), 17, 5)
    assert seen == [("codes", *exact), ("error", *exact), ("error", *exact)]


def test_tasks_are_one_an_encoder_and_long_studies_have_more_saes(tmp_path):
    few = encoders.tasks(a_setting(tmp_path, seeds=(0, 1), train_depths=(1, 4)))
    fits = [name for name in asked(()) if not misfit(name, px.KSparse(K))]
    assert [task.name for task in few[: len(fits)]] == [f"encoders {name} abstopk-train1-seed0" for name in fits]
    assert len({task.name for task in few}) == len(few) == 2 * len(fits)
    assert not any("alista" in task.name.split()[1:2] for task in few)
    many = encoders.tasks(a_setting(tmp_path, train_steps=encoders.MUCH))
    assert {task.name.split()[-1] for task in many} == {f"{p}-train1-seed0" for p in ("abstopk", "topk", "relu")}
    named = encoders.tasks(a_setting(tmp_path, encoders=("lista", "fista", "alista")))
    assert [task.name for task in named] == [
        f"encoders {name} {p}-train1-seed0"
        for p, fista in (("abstopk", ()), ("topk", ()), ("relu", ("fista",)))
        for name in ("one-step", "exact", *fista, "lista", "alista")
    ]  # fmt: skip
    assert encoders.depths(a_setting(tmp_path), "lista") == (2,)
    assert encoders.depths(a_setting(tmp_path, encoders=("lista",)), "lista") == (2, 4)
    assert encoders.depths(a_setting(tmp_path), "omp") == (K,)


def test_a_task_takes_the_sae_of_the_part_on_depth(tmp_path):
    setting = a_setting(tmp_path, train_depths=(4, 1))
    setting.keep(an_sae(PENALTIES["abstopk"], seed=3), name_of("abstopk", 1, 0))
    (row,) = next(task for task in encoders.tasks(setting) if " one-step " in task.name).run()
    same = {"part": "encoders", "penalty": "abstopk", "train_depth": 1, "seed": 0, "encoder": "one-step"}
    assert row.items() >= same.items()
    assert row["nmse"] == pytest.approx(one("one-step")[0]["nmse"])
    json.dumps(row, allow_nan=False)


def test_solving_pays_for_its_refits():
    """As many refit steps, walked from zero, cost what their count says: two products a step is not all of it."""
    from proxsae.pytorch.iteration import iterate

    row, sae, x = one("inf")
    with torch.no_grad():
        steps = px.solve(x - sae.b_dec, sae.W_dec, sae.penalty).steps.double()
        walked = iterate(
            x - sae.b_dec, sae.W_dec, sae.penalty, px.Refit(), None, x.new_zeros(N, D_SAE), px.lipschitz(sae.W_dec)
        )
        spent = [float(point.spent.mean()) for point, _ in zip(walked, range(4), strict=False)]
    assert row["cost"] == pytest.approx(float(steps.mean()) * (spent[-1] - spent[0]) / 3, rel=0.25)
    assert row["cost"] > 2.5 * float(steps.mean())


# Names ---------------------------------------------------------------------------------------------------------------


def test_every_encoder_fits_a_penalty_or_says_why_not():
    for name in ENCODERS:
        for R in PENALTIES.values():
            assert misfit(name, R) == "" or len(misfit(name, R)) > 20
        assert "" in [misfit(name, R) for R in PENALTIES.values()]
    assert asked(("omp",)) == ("one-step", "exact", "omp")
    assert check_encoders(["omp", "mp", "omp"]) == ("omp", "mp")
    assert check_encoders("omp") == ("omp",)
    unknown = r"'lsta' is no encoder of this study: did you mean lista\?"
    for wrong, said in (("lsta", unknown), ("zzzz", "they are one-"), (3, "must be names"), ((3,), "must be names")):
        with pytest.raises(px.Error, match=said):
            check_encoders(wrong)


ROWS = px.data.planted(n=60, d_in=8, d_sae=16, k=4, noise=0.1).x.astype(np.float32)


def test_named_encoders_are_the_part_and_unknown_ones_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("proxsae.studies.parts.depth.measure.TRAINING", {"abstopk": 1.0, "topk": 1.0, "relu": 1.1})
    small = {"d_sae": 16, "k": 4, "seeds": 2, "train_steps": 2, "train_depths": (1,), "progress": False}
    made = px.studies.depth(ROWS, encoders=("omp", "slista"), out=tmp_path / "out", **small)
    rows = [row for row in made.rows if row["part"] == "encoders"]
    assert {row["part"] for row in made.rows} == {"depth", "encoders"}
    assert {row["encoder"] for row in rows} == {"one-step", "exact", "omp", "slista"}
    assert {row["penalty"] for row in rows if row["encoder"] == "omp"} == {"abstopk", "topk"}
    assert "--encoders omp,slista" in made.about["to repeat"]
    assert any("«OMP» takes an atom a step" in note for s in made.sections() for note in s.notes)
    again = px.studies.depth(ROWS, encoders=("omp", "slista"), out=tmp_path / "out", **small)
    assert again.rows == made.rows, "the same call resumes, and finds all tasks done"
    with pytest.raises(px.Error, match="another study"):
        px.studies.depth(ROWS, encoders=("omp",), out=tmp_path / "out", **small)
    with pytest.raises(px.Error, match="--encoders omp is for the part encoders"):
        px.studies.depth(ROWS, encoders=("omp",), parts=("depth",), **small)
    with pytest.raises(px.Error, match=r"encoders=.* is for a study that trains SAEs"):
        px.studies.depth(px.topk_sae(8, 16, 4), ROWS, encoders=("omp",))
    monkeypatch.setattr(sys, "argv", ["proxsae", "depth"])
    assert main(["depth", "--encoders", "lsta", "--out", str(tmp_path / "no")]) == 2
    assert "did you mean lista?" in capsys.readouterr().err


def test_parts_bring_what_they_need():
    assert study.parts_with_needs(("encoders",)) == ("depth", "encoders")


# The report ----------------------------------------------------------------------------------------------------------

# Error, products, density of each: computed ones are the better the more they cost.
PLAIN = {
    ("one-step", 1): (0.4, 1.0), ("exact", 2): (0.36, 4.5), ("exact", 4): (0.3, 13.0), ("exact", 16): (0.2, 47.0),
    ("mp", 4): (0.25, 4.0), ("omp", 4): (0.19, 30.0), ("slista", 2): (0.35, 3.0), ("lista", 2): (0.349, 4.0),
    ("distilled", 1): (0.38, 1.0), ("distilled", 2): (0.34, 4.5), ("tuned", 1): (0.39, 1.0), ("inf", None): (0.2, 90.0),
}  # fmt: skip


def make_rows(seeds=(0, 1, 2), penalties=("abstopk",), wobble=0.001, **changes):
    """Rows like the study's; `changes` gives an encoder, by its name, other keys in all rows."""
    rows = []
    for penalty in penalties:
        for seed in seeds:
            for i, ((name, T), (nmse, cost)) in enumerate(PLAIN.items()):
                rows.append({
                    "part": "encoders", "penalty": penalty, "train_depth": 1, "seed": seed, "encoder": name, "steps": T,
                    "nmse": nmse * (1 + 0.05 * seed) * (1 + wobble * math.sin(7.0 * i * (seed + 1))), "l0": 4.0,
                    "lam_factor": 1.0, "cost": cost, "parameters": 2 if ENCODERS[name].family == LEARNED else 0,
                    "rows": 64, "seconds": 0.1, "train_seconds": 1.0, **changes.get(name, {}),
                })  # fmt: skip
    return rows


def told(rows):
    return " ".join(report.findings(rows))


def test_the_best_encoder_within_each_budget_is_named_with_its_ratio():
    said = told(make_rows())
    assert "of 1 product «distilled towards codes, one step» (×0.949 [0.9" in said
    assert "of 4 products «matching pursuit» (×0.62" in said
    assert "of 64 products «OMP» (×0.47" in said
    assert "not told apart from" not in said
    found = report.best(make_rows(), "abstopk", 4)
    assert found.places[0] == ("mp", 4)
    assert len(found.places) == 6, "of 4 products, and no more"
    assert report.best(make_rows(), "abstopk", 3, (LEARNED,)).places == [("slista", 2)]
    assert report.best(make_rows(), "abstopk", 0.5) is None


def test_what_costs_more_is_denser_or_lacks_a_seed_is_not_compared():
    """A single planted advantage each, which a rule that is left out would let win."""
    assert "of 4 products «matching pursuit»" not in told(make_rows(mp={"cost": 4.1}))
    assert "of 4 products «matching pursuit»" not in told(make_rows(mp={"l0": 4.3}))
    assert "of 4 products «matching pursuit»" in told(make_rows(mp={"l0": 4.1}))
    rows = [row for row in make_rows() if row["encoder"] != "mp" or row["seed"]]
    assert "of 4 products «matching pursuit»" not in told(rows)


def test_encoders_that_seeds_do_not_tell_apart_are_named():
    rows = make_rows(mp={"cost": 5.0})
    for row in rows:  # lista is better in the mean, and not in every seed
        if row["encoder"] in ("lista", "slista"):
            off = 0.05 * (row["seed"] - 0.8) if row["encoder"] == "slista" else 0.0
            row["nmse"] = 0.35 * (1 + 0.05 * row["seed"]) * (1 + off)
    said = told(rows)
    assert "of 4 products «LISTA, 2 steps» (×" in said
    assert "not told apart from «SLISTA, 2 steps»)" in said
    assert "not told apart" not in told(make_rows(seeds=(0,))), "one seed tells nothing apart"


def test_the_share_that_is_learned_is_that_of_the_gain_of_sixteen_steps():
    rows = make_rows(wobble=1e-6)
    for (name, T), share in {("distilled", 1): 0.1, ("tuned", 1): 0.05, ("exact", 2): 0.2, ("exact", 16): 1.0}.items():
        found = report.shares(rows, "abstopk", name, T)
        assert (found.mean, found.n) == (pytest.approx(share, abs=1e-4), 3)
    assert "with one step: 10.0% [10.0%, 10.0%] (the same trained for the error 5.0% [5.0%, 5.0%])" in told(rows)
    assert "with 2 steps: 30.0% [30.0%, 30.0%] (not trained at all 20.0% [20.0%, 20.0%])" in told(rows)
    worse = make_rows(wobble=1e-6, distilled={"nmse": 0.6})
    assert "with one step: -" in told(worse), "what was lost is told as well"


def test_picture_and_tables_have_every_encoder_and_the_front():
    made = report.section(make_rows(penalties=("abstopk", "topk")))
    pictures = {shown.name: shown for shown in made.shown if isinstance(shown, Picture)}
    tables = {shown.name: shown for shown in made.shown if isinstance(shown, Table)}
    data = {(p["penalty"], p["encoder"], p["steps"]): p for p in pictures["encoders-products"].data}
    assert {key[1:] for key in data} == set(PLAIN)
    front = {key[1:] for key, point in data.items() if point["front"]}
    assert front == {("distilled", 1), ("slista", 2), ("mp", 4), ("omp", 4)}
    point = data["topk", "omp", 4]
    assert point["low"] < point["nmse"] < point["high"]
    assert (point["seeds"], point["cost"]) == (3, 30.0)
    assert len(pictures["encoders-products"].figure.axes) == 2
    lines = tables["encoders-table"].lines
    assert len(lines) == 2 * len(PLAIN)
    assert [line[1] for line in lines[:1]] == ["one step"]
    assert all(len(line) == len(table.headings) for table in tables.values() for line in table.lines)
    assert {line[2] for line in tables["encoders-budgets"].lines if line[1] == "64"} == {"OMP"}
    labels = pictures["encoders-products"].figure.legends[0].get_texts()
    assert {text.get_text() for text in labels} >= {ENCODERS[name].title for name, _ in PLAIN}


def test_what_does_not_fit_is_noted():
    every = {name: (0.3, 5.0) for name in ("lipschitz", "inf")}
    rows = make_rows() + [make_rows()[0] | {"encoder": name, "nmse": e, "cost": c} for name, (e, c) in every.items()]
    (left, alista) = report.section(rows).notes
    assert "«FISTA» needs a convex penalty" in left
    assert "ALISTA" in alista
    named = report.section(make_rows(penalties=("abstopk", "relu"), alista={})).notes
    assert "«OMP» takes an atom a step" in named[0]
    assert "FISTA" not in named[0], "it was not asked for"


def test_the_report_survives_what_is_missing():
    for rows in (
        make_rows(seeds=(0,)),
        [row for row in make_rows() if row["encoder"] == "one-step"],
        [row for row in make_rows() if row["encoder"] not in ("exact", "distilled")],
        [row for row in make_rows() if row["encoder"] != "one-step"],
        [row for row in make_rows() if row["seed"] == 0 or row["encoder"] == "one-step"],
    ):
        made = report.section(rows)
        assert made.shown
        assert [section.anchor for section in sections(rows, "")][1:2]


def test_claims_on_encoders_are_judged_by_their_intervals():
    def verdicts(rows):
        return [claim.verdict for claim in claims(rows) if claim.part == "encoders"]

    assert verdicts(make_rows(mp={"cost": 9.0})) == ["holds"] * 0 + ["does not hold", "holds"]
    assert verdicts(make_rows()) == ["does not hold", "does not hold"]
    learned = make_rows(distilled={"nmse": 0.2})
    assert verdicts(learned)[0] == "holds"
    assert verdicts(make_rows(seeds=(0,))) == ["undecided here"] * 2
    assert of_encoders.distilled([row for row in make_rows() if row["encoder"] != "distilled"]) is None
    assert set(PUBLISHED) >= {"abstopk"}

"""Dictionary and inference told apart: gaps against plain solvers that share no code, and what the report says."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.report.section import Picture, Table
from proxsae.studies.parts.apart import measure as apart
from proxsae.studies.parts.apart import section as report
from proxsae.studies.parts.depth.measure import name_of
from proxsae.studies.task import Setting

D_IN, D_SAE, N = 6, 10, 12
PENALTIES = {
    "relu": px.L1(0.3, nonneg=True), "soft": px.L1(0.3), "jumprelu": px.L0(0.1, nonneg=True),
    "jumprelu2": px.L0(0.1), "topk": px.KSparse(2, nonneg=True), "abstopk": px.KSparse(2),
}  # fmt: skip


def an_sae(R, seed=0, **how):
    """An SAE whose every weight differs from where it starts, so that a bias left out shows."""
    torch.manual_seed(seed)
    sae = px.SAE(D_IN, D_SAE, R, **how)
    with torch.no_grad():
        sae.W_enc += 0.2 * torch.randn_like(sae.W_enc)
        sae.b_enc += 0.1 * torch.randn_like(sae.b_enc)
        sae.b_dec += torch.randn_like(sae.b_dec)
    return sae


def a_setting(folder: Path, **changes) -> Setting:
    x = torch.from_numpy(np.random.default_rng(7).standard_normal((N, D_IN)).astype(np.float32))
    return replace(Setting(x, x, D_SAE, 2, (0,), 1, (1,), folder, False, 0.01), **changes)


def weights(sae):
    return {name: getattr(sae, name).detach().double().numpy() for name in ("W_enc", "W_dec", "b_enc", "b_dec")}


def lasso_by_coordinates(c, D, lam, nonneg):
    """Cyclic coordinate descent, one row and one latent at a time."""
    codes = []
    for row in c:
        z = np.zeros(len(D))
        for _ in range(500):
            for j in range(len(D)):
                s = D[j] @ (row - z @ D + z[j] * D[j])
                z[j] = (max(s - lam, 0) if nonneg else math.copysign(max(abs(s) - lam, 0), s)) / (D[j] @ D[j])
        codes.append(z)
    return np.array(codes)


def best_of_all_supports(c, D, k, nonneg):
    """F* of a k-sparse problem: the least-squares fits of all supports of up to k latents, where signs allow."""
    least = [0.5 * row @ row for row in c]
    for size in range(1, k + 1):
        for S in map(list, combinations(range(len(D)), size)):
            for i, row in enumerate(c):
                w = np.linalg.lstsq(D[S].T, row, rcond=None)[0]
                if not nonneg or w.min() >= 0:
                    least[i] = min(least[i], 0.5 * np.sum((row - w @ D[S]) ** 2))
    return np.array(least)


def by_method(rows):
    return {(row["method"], row["steps"]): row for row in rows}


def first_code(name, W, x):
    """The learned encoder, as its papers write it."""
    u = (x - W["b_dec"]) @ W["W_enc"] + W["b_enc"]
    if name == "relu":
        return np.maximum(u - 0.3, 0)
    if name == "soft":
        return np.sign(u) * np.maximum(np.abs(u) - 0.3, 0)
    if name.startswith("jumprelu"):
        return np.where((u if name == "jumprelu" else np.abs(u)) > np.sqrt(0.2), u, 0)
    size = np.maximum(u, 0) if name == "topk" else np.abs(u)
    kept = size >= np.sort(size, axis=1)[:, -2:-1]
    return np.where(kept, np.maximum(u, 0) if name == "topk" else u, 0)


def cost(name, z):
    if name in ("relu", "soft"):
        return 0.3 * np.abs(z).sum(axis=1)
    return 0.1 * (z != 0).sum(axis=1) if name.startswith("jumprelu") else 0.0


@pytest.mark.parametrize("name", PENALTIES)
def test_the_learned_encoder_is_measured_as_it_is(name, tmp_path):
    setting, sae = a_setting(tmp_path), an_sae(PENALTIES[name])
    setting.keep(sae, name_of(name, 1, 0))
    rows = apart.frozen(setting, name, 1, 0)
    assert {(row["part"], row["kind"], row["penalty"], row["train_depth"], row["seed"]) for row in rows} == {
        ("apart", "frozen", name, 1, 0)
    }
    found, W, x = by_method(rows), weights(sae), setting.test.double().numpy()
    z = first_code(name, W, x)
    error = x - W["b_dec"] - z @ W["W_dec"]
    F = np.mean(0.5 * np.sum(error**2, axis=1) + cost(name, z))
    for method in ("encoder", "trained"):
        row = found[method, 1]
        assert row["objective"] == pytest.approx(F, rel=1e-5)
        assert row["nmse"] == pytest.approx(np.sum(error**2) / np.sum(x**2), rel=1e-5)
        assert row["l0"] == pytest.approx(np.mean(np.sum(z != 0, axis=1)))
    nothing, best = found["zero", 0], found["best", None]
    assert nothing["objective"] == pytest.approx(np.mean(0.5 * np.sum((x - W["b_dec"]) ** 2, axis=1)), rel=1e-5)
    assert (nothing["l0"], nothing["share"], best["gap"], best["share"]) == (0, 1, 0, 0)
    exact = px.ista(x - W["b_dec"], W["W_dec"], PENALTIES[name], 4, step=px.ExactStep()).objective.mean(axis=1)
    assert [found["zero", t]["objective"] for t in (1, 2, 4)] == pytest.approx(exact[[1, 2, 4]], rel=1e-4)
    for row in rows:
        assert row["gap"] == pytest.approx(row["objective"] - best["objective"], abs=1e-9)
        assert row["share"] == pytest.approx(row["gap"] / nothing["gap"], abs=1e-9)


# The last leaves so much to be desired that a certificate left out shows.
@pytest.mark.parametrize(("name", "tol"), [("relu", 1e-6), ("soft", 1e-6), ("soft", 0.2)])
def test_gaps_of_l1_lie_within_their_certificate(name, tol, monkeypatch):
    monkeypatch.setattr(apart, "TOL", tol)
    sae = an_sae(PENALTIES[name], seed=1)
    x = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(3))
    W, rows = weights(sae), apart.gaps(sae, x)
    c = x.numpy() - W["b_dec"].astype(np.float32)  # as the SAE sees it
    z = lasso_by_coordinates(c, W["W_dec"], 0.3, name == "relu")
    least = np.mean(0.5 * np.sum((c - z @ W["W_dec"]) ** 2, axis=1) + 0.3 * np.abs(z).sum(axis=1))
    for row in rows:
        true = row["objective"] - least
        assert true >= -1e-9
        assert row["gap"] - 1e-9 <= true <= row["gap"] + row["certificate"] + 1e-9
        assert row["certificate"] <= tol * row["objective"]
    best = by_method(rows)["best", None]
    assert tol < 0.1 or best["objective"] > least + 1e-6
    found = by_method(rows)
    assert found["encoder", 1]["gap"] > 0.01
    assert found["encoder", 64]["gap"] < found["encoder", 4]["gap"] < found["encoder", 1]["gap"]


@pytest.mark.parametrize("name", ["topk", "abstopk"])
def test_gaps_of_k_sparse_codes_are_lower_bounds(name):
    sae = an_sae(PENALTIES[name], seed=2)
    x = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(4))
    W, rows = weights(sae), apart.gaps(sae, x)
    least = best_of_all_supports(x.double().numpy() - W["b_dec"], W["W_dec"], 2, name == "topk").mean()
    found = by_method(rows)
    assert all(0 <= row["gap"] <= row["objective"] - least + 1e-6 for row in rows)  # codes are float32
    assert found["best", None]["objective"] - least < 0.2 * found["encoder", 1]["gap"]
    assert {row["certificate"] for row in rows} == {None}
    for row in rows:  # a k-sparse code has no cost but its error
        assert 2 * N * row["objective"] == pytest.approx(row["nmse"] * float(x.double().square().sum()), rel=1e-5)
        assert row["l0"] <= 2


@pytest.mark.parametrize("name", ["jumprelu", "jumprelu2"])
def test_the_best_known_code_is_the_best_of_all_that_were_found(name):
    rows = apart.gaps(an_sae(PENALTIES[name], seed=5), torch.randn(N, D_IN, generator=torch.Generator().manual_seed(6)))
    assert all(row["gap"] >= 0 and row["certificate"] is None for row in rows)
    found = by_method(rows)
    assert found["encoder", 1]["gap"] > found["encoder", 16]["gap"]
    assert ("omp", None) not in found


def test_an_sae_trained_with_more_steps_and_normalised_rows_is_measured_in_the_units_of_its_rows():
    sae = an_sae(px.KSparse(2), steps=3, step=px.ExactStep(), normalize="layer_norm")
    x = 5 + 3 * torch.randn(N, D_IN, generator=torch.Generator().manual_seed(8))
    found = by_method(apart.gaps(sae, x))
    with torch.no_grad():
        nmse = float((x - sae(x)).square().sum() / x.square().sum())
    assert found["trained", 3]["nmse"] == pytest.approx(nmse, rel=1e-5)
    F0 = 0.5 * (sae.normalized(x).rows - sae.b_dec).square().sum(dim=1).mean().item()
    assert found["zero", 0]["objective"] == pytest.approx(F0, rel=1e-5)
    F = [found[key]["objective"] for key in (("encoder", 2), ("trained", 3), ("encoder", 4))]
    assert F[0] > F[1] > F[2]


def test_small_problems_know_their_optimum():
    rows = apart.small(0)
    assert {row["penalty"] for row in rows} == {"topk", "abstopk"}
    for penalty in ("topk", "abstopk"):
        found = {key: row for key, row in by_method([row for row in rows if row["penalty"] == penalty]).items()}
        assert all(row["gap"] >= -1e-12 and 0 <= row["reached"] <= 1 for row in found.values())
        best = found["best", None]
        assert all(row["gap"] >= best["gap"] and row["reached"] <= best["reached"] for row in found.values())
        assert 0.2 < best["reached"] < 1
        assert found["zero", 1]["gap"] > found["zero", 4]["gap"] > found["zero", 64]["gap"] > 0
        least = {round(row["objective"] - row["gap"], 12) for row in found.values()}
        assert len(least) == 1
        assert 0 < least.pop() < 0.04  # of what noise alone leaves, (8 - 3) / 2 times its variance


def test_tasks_are_one_an_sae_and_one_a_seed(tmp_path):
    tasks = apart.tasks(a_setting(tmp_path, seeds=(0, 1), train_depths=(1, 4)))
    assert len({task.name for task in tasks}) == len(tasks) == 6 * 2 * 2 + 2


# The report ----------------------------------------------------------------------------------------------------------


def make_rows(seeds=(0, 1, 2), depths=(1, 8), best=0.6, dictionary=0.9, l0=4.0, wobble=0.01):
    """Rows like the study's: the best code has `best` times the encoder's error, the other dictionary `dictionary`."""
    rows = []
    for penalty in PENALTIES:
        for depth in depths:
            for seed in seeds:
                scale = (1 + wobble * seed) * (1.0 if depth == depths[0] else dictionary)
                certificate = 1e-9 if penalty in ("relu", "soft") else None
                for method, steps, nmse, share in (
                    ("trained", depth, 0.2 if depth == 1 else 0.2 * best, 0.1), ("best", None, 0.2 * best, 0.0),
                    *(("encoder", t, 0.2 * (best + (1 - best) / t), 0.1 / t**2) for t in apart.STEPS),
                    *(("zero", t, 0.3 * (best + (1 - best) / t), 0.3 / t**2) for t in apart.STEPS),
                ):  # fmt: skip
                    rows.append({
                        "part": "apart", "kind": "frozen", "penalty": penalty, "train_depth": depth, "seed": seed,
                        "rows": 64, "method": method, "steps": steps, "objective": 1 + share, "nmse": nmse * scale,
                        "l0": l0 if method == "best" else 4.0, "gap": share, "share": share * scale,
                        "certificate": certificate,
                    })  # fmt: skip
    for penalty in ("topk", "abstopk"):
        for seed in seeds:
            for method, steps, share in (
                ("zero", 1, 0.2),
                ("zero", 64, 0.05),
                ("omp", None, 0.04),
                ("best", None, 0.02),
            ):
                rows.append({"part": "apart", "kind": "small", "penalty": penalty, "seed": seed, "method": method,
                             "steps": steps, "share": share, "reached": 1 - share, "gap": share,
                             "objective": share})  # fmt: skip
    return rows


def test_the_report_gives_every_gap_and_says_which_are_only_lower_bounds():
    made = report.section(make_rows())
    told = " ".join(made.findings)
    assert "TopK (k-sparse, z ≥ 0), trained with one step" in told
    assert told.count("leaves at least") == 4
    assert "the encoder is worth more than one step from zero, and no more than 2" in told
    assert "98.0%" in told  # of the small problems
    pictures = {shown.name: shown for shown in made.shown if isinstance(shown, Picture)}
    assert set(pictures) == {"apart-gaps", "apart-decomposition", "apart-small"}
    assert len(pictures["apart-gaps"].figure.axes) == 4  # two starts, the fewest and the most training steps
    points = {(r["penalty"], r["train_depth"], r["method"], r["steps"]): r for r in pictures["apart-gaps"].data}
    point = points["topk", 1, "encoder", 4]
    assert point["share"] == pytest.approx(0.1 / 16 * 1.01)
    assert point["low"] < point["share"] < point["high"]
    assert point["seeds"] == 3
    assert all("3 seeds" in picture.caption and "95 %" in picture.caption for picture in pictures.values())
    tables = {shown.name: shown for shown in made.shown if isinstance(shown, Table)}
    assert all(len(line) == len(table.headings) for table in tables.values() for line in table.lines)
    assert {line[-1] for line in tables["apart-gaps-table"].lines} == {
        "the optimum, known up to 1.0e-09 of F", "the best code known"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"best": 0.6, "dictionary": 0.9}, "a better code lowers the error more than the other dictionary"),
        ({"best": 0.9, "dictionary": 0.6}, "the other dictionary lowers the error more than a better code"),
        ({"best": 0.9, "dictionary": 1.2}, "a better code lowers the error more than the other dictionary"),
        ({"best": 0.81, "dictionary": 0.81, "wobble": 0.2}, "3 seeds do not tell which of the two lowers"),
        ({"seeds": (0,)}, "one seed does not tell which of the two is more"),
        ({"l0": 5.0}, "but their densities differ (l0 4.0, 5.0, 5.0), and errors with them"),
    ],
)
def test_the_verdict_follows_the_numbers_and_takes_no_side(changes, verdict):
    rows = make_rows(**changes)
    if changes.get("wobble") == 0.2:  # the same mean effect, with a sign that seeds do not agree on
        for row in rows:
            if row["kind"] == "frozen" and row["train_depth"] == 8:
                row["nmse"] *= (0.8, 1.0, 1.25)[row["seed"]]
    told = [sentence for sentence in report.findings(rows) if "best code against best code" in sentence]
    assert len(told) == 6
    assert all(verdict in sentence for sentence in told)
    assert f"×{changes.get('best', 0.6):.3f}" in told[0]
    if "wobble" not in changes:
        assert f"×{changes.get('dictionary', 0.9):.3f}" in told[0]


def test_the_report_survives_what_is_missing():
    rows = make_rows(seeds=(0,), depths=(1,))
    assert not any("best code against best code" in sentence for sentence in report.findings(rows))
    assert "[" not in " ".join(report.findings(rows))
    for kind in ("frozen", "small"):
        assert report.section([row for row in rows if row["kind"] == kind]).shown
    fewer = [row for row in rows if row["penalty"] != "relu" and (row["method"], row["steps"]) != ("encoder", 16)]
    assert report.section(fewer).shown
    assert report.findings([row for row in make_rows() if row["seed"] or row["method"] != "best"])
    exact = [row | ({"nmse": 0.0} if row.get("method") == "best" else {}) for row in make_rows()]
    assert report.section(exact).findings, "a code without error must not cost the report"

"""Bounds on trained SAEs: what is measured against plain loops, and a wrong bound is seen and said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import theory
from proxsae.report.section import Picture
from proxsae.studies.parts.bounds import measure as bounds
from proxsae.studies.parts.bounds import section as report
from proxsae.studies.parts.depth.measure import name_of
from tests.test_apart import PENALTIES, a_setting, an_sae, first_code, lasso_by_coordinates, weights

LABELS = set(re.findall(r"^\((.+)\)=$", "".join(
    file.read_text(encoding="utf-8") for file in (Path(__file__).parent.parent / "docs/theory").glob("*.md")
), re.M))  # fmt: skip


def kept(folder, name):
    setting, sae = a_setting(folder), an_sae(PENALTIES[name])
    setting.keep(sae, name_of(name, 1, 0))
    return setting, sae


def one(rows, statement, method, steps):
    (row,) = [row for row in rows if (row["statement"], row["method"], row["steps"]) == (statement, method, steps)]
    return row


def objective(c, D, z):
    return 0.5 * np.sum((c - z @ D) ** 2, axis=1) + 0.3 * np.abs(z).sum(axis=1)


@pytest.mark.parametrize("name", ["relu", "soft"])
def test_rates_and_certificates_are_those_of_plain_loops(name, tmp_path):
    setting, sae = kept(tmp_path, name)
    rows = bounds.convex_bounds(setting, name, 1, 0)
    assert all(row["holds"] for row in rows)
    assert {row["statement"] for row in rows} == {
        "thm-ista-rate", "thm-fista-rate", "thm-duality-gap", "thm-linear-phase"
    } < LABELS  # fmt: skip
    W, x = weights(sae), setting.test.double().numpy()
    D, c = W["W_dec"], x - W["b_dec"]
    best = lasso_by_coordinates(c, D, 0.3, name == "relu")
    L, least = np.linalg.norm(D, 2) ** 2, objective(c, D, best)
    z = y = np.zeros_like(best)
    t = 1.0
    for step in range(1, 5):
        u = y - (y @ D - c) @ D.T / L
        new = np.maximum(u - 0.3 / L, 0) if name == "relu" else np.sign(u) * np.maximum(np.abs(u) - 0.3 / L, 0)
        after = (1 + np.sqrt(1 + 4 * t * t)) / 2
        z, y, t = new, new + (t - 1) / after * (new - z), after
        if step == 1:
            ista = one(rows, "thm-ista-rate", "ISTA", 1)
            assert ista["measured"] == pytest.approx(np.mean(objective(c, D, z) - least), rel=1e-6)
            assert ista["theory"] == pytest.approx(np.mean(L * np.sum(best**2, axis=1) / 2), rel=1e-4)
    fista = one(rows, "thm-fista-rate", "FISTA", 4)
    assert fista["measured"] == pytest.approx(np.mean(objective(c, D, z) - least), rel=1e-6)
    assert fista["theory"] == pytest.approx(np.mean(2 * L * np.sum(best**2, axis=1) / 25), rel=1e-4)

    z = first_code(name, W, x)
    r = c - z @ D
    s = r @ D.T
    a = np.maximum(s, 0) if name == "relu" else np.abs(s)
    dual = r * np.minimum(1, 0.3 / a.max(axis=1))[:, None]
    certified = objective(c, D, z) - 0.5 * np.sum(c**2 - (dual - c) ** 2, axis=1)
    row = one(rows, "thm-duality-gap", "encoder", 1)
    assert row["theory"] == pytest.approx(np.mean(certified), rel=1e-5)
    assert row["measured"] == pytest.approx(np.mean(objective(c, D, z) - least), rel=1e-5)
    assert row["median"] <= row["largest"] <= 1


def test_the_linear_phase_is_measured_where_signs_have_settled(tmp_path):
    setting, sae = kept(tmp_path, "soft")
    phase = one(bounds.convex_bounds(setting, "soft", 1, 0), "thm-linear-phase", "ISTA", bounds.PHASE_STEPS)
    W = weights(sae)
    D, c = W["W_dec"], setting.test.double().numpy() - W["b_dec"]
    rates = []
    for z in lasso_by_coordinates(c, D, 0.3, False):
        S = z != 0
        rates.append(1 - np.linalg.eigvalsh(D[S] @ D[S].T)[0] / np.linalg.norm(D, 2) ** 2)
    assert phase["n"] >= 3
    assert min(rates) - 1e-9 <= phase["theory"] <= max(rates) + 1e-9
    assert 0.98 * phase["theory"] < phase["measured"] <= phase["theory"]
    assert 0 < phase["settled"] < bounds.PHASE_STEPS


def test_the_shortest_step_is_that_of_a_plain_loop(tmp_path):
    setting, sae = kept(tmp_path, "abstopk")
    rows = bounds.stationarity(setting, "abstopk", 1, 0)
    assert [row["steps"] for row in rows] == [1, 4, 16, 64, 256]
    assert all(row["holds"] and row["statement"] in LABELS for row in rows)
    W = weights(sae)
    D, c = W["W_dec"], setting.test.double().numpy() - W["b_dec"]
    L = np.linalg.norm(D, 2) ** 2
    shortest, drop = [], []
    for row in c:
        z, moved = np.zeros(len(D)), []
        for _ in range(4):
            u = z - 0.9 / L * D @ (z @ D - row)
            new = np.where(np.abs(u) >= np.sort(np.abs(u))[-2], u, 0)
            moved.append(np.sum((new - z) ** 2))
            z = new
        shortest.append(min(moved))
        drop.append(0.5 * np.sum(row**2) - 0.5 * np.sum((row - z @ D) ** 2))
    assert rows[1]["measured"] == pytest.approx(np.mean(shortest), rel=1e-6)
    assert rows[1]["theory"] == pytest.approx(np.mean(drop) * 2 / ((1 / 0.9 - 1) * L * 4), rel=1e-6)


@pytest.mark.parametrize(
    ("where", "name", "statement"),
    [
        (theory, "ista_rate", "thm-ista-rate"),
        (theory, "fista_rate", "thm-fista-rate"),
        (bounds, "duality_gap", "thm-duality-gap"),
        (theory, "linear_phase_rate", "thm-linear-phase"),
        (theory, "stationarity_rate", "thm-stationarity-rate"),
    ],
)
def test_a_bound_that_is_too_small_is_seen_and_said(where, name, statement, tmp_path, monkeypatch):
    right = getattr(where, name)
    part = 0.99 if name == "linear_phase_rate" else 0.01
    monkeypatch.setattr(where, name, lambda *args: part * right(*args))
    if statement == "thm-stationarity-rate":
        rows = bounds.stationarity(kept(tmp_path, "abstopk")[0], "abstopk", 1, 0)
    else:
        rows = bounds.convex_bounds(kept(tmp_path, "soft")[0], "soft", 1, 0)
    broken = {row["statement"] for row in rows if not row["holds"]}
    assert broken == {statement}
    assert any(f"BROKEN: {statement}" in sentence for sentence in report.findings(rows))


def test_one_row_that_breaks_its_bound_is_enough():
    measured, bound = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 2.0, 3.0])
    assert bounds.judged(measured, bound)["holds"]
    row = bounds.judged(measured + torch.tensor([0, 0, 1e-5]), bound)
    assert not row["holds"]
    assert (row["measured"], row["theory"], row["n"]) == (pytest.approx(2, abs=1e-5), pytest.approx(5), 3)
    assert row["largest"] == pytest.approx(1 + 1e-5 / 3)
    assert row["median"] == 1
    nothing = bounds.judged(torch.full((2,), 1e-14), torch.zeros(2), torch.ones(2))
    assert (nothing["largest"], nothing["median"], nothing["holds"]) == (None, None, True)


def test_the_report_counts_what_holds_and_survives_what_is_missing(tmp_path):
    setting, _ = kept(tmp_path, "soft")
    rows = bounds.convex_bounds(setting, "soft", 1, 0) + bounds.made_problems(0)
    made = report.section(rows)
    assert made.findings[0] == f"{len(rows)} of {len(rows)} comparisons obey their statement."
    assert any("certified to lack no more than" in sentence for sentence in made.findings)
    verdicts, *pictures = made.shown
    assert {line[0] for line in verdicts.lines} <= LABELS
    lines = {(line[0], line[1], line[2]): line[3:] for line in verdicts.lines}
    assert lines["thm-ista-rate", "trained SAEs", "upper"][0] == "5 of 5"
    assert float(lines["thm-linear-phase", "trained SAEs", "upper"][1]) > 0.95
    assert lines["thm-ista-rate", "made problems", "tight"][1].startswith("1 ")
    assert [picture.name for picture in pictures] == ["bounds-rates", "bounds-certificates"]
    assert all(isinstance(picture, Picture) and "intervals" in picture.caption for picture in pictures)
    assert pictures[0].data[0]["measured"] == rows[0]["measured"]
    for source in ("sae", "rates"):
        assert report.section([row for row in rows if row["source"] == source]).findings
    worse = [row | {"holds": row["statement"] != "thm-ista-rate"} for row in rows]
    count = sum(row["statement"] != "thm-ista-rate" for row in rows)
    assert report.findings(worse)[0] == f"{count} of {len(rows)} comparisons obey their statement."


def test_tasks_take_the_first_seed_and_the_fewest_training_steps(tmp_path):
    tasks = bounds.tasks(a_setting(tmp_path, seeds=(3, 4), train_depths=(1, 8)))
    assert [task.name for task in tasks] == ["bounds relu", "bounds soft", "bounds abstopk", "bounds rates"]
    assert tasks[0].run.args[1:] == ("relu", 1, 3)


def test_an_sae_whose_code_is_zero_everywhere_obeys(tmp_path):
    setting = a_setting(tmp_path)
    setting.keep(px.SAE(6, 10, px.L1(100.0)), name_of("soft", 1, 0))
    rows = bounds.convex_bounds(setting, "soft", 1, 0)
    assert rows
    assert all(row["holds"] for row in rows)
    assert report.section([row | {"problem": "soft"} for row in rows]).shown

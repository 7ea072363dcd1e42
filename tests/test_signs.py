"""The part on signs: planted concepts whose answers are known, and every statistic against its definition in loops."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from proxsae.data import Contrast
from proxsae.report.section import Picture, Table
from proxsae.sae import abstopk_sae, topk_sae
from proxsae.studies.parts.signs import measure as signs
from proxsae.studies.parts.signs import section as report
from proxsae.studies.parts.signs.concepts import (
    FLIPS,
    Pairs,
    auc,
    balanced_accuracy,
    best_latent,
    by_words,
    difference_in_means,
    most_opposite,
    opposite,
    pseudo_values,
    reading,
    sides,
    sign_flip_p,
    wins,
)
from proxsae.studies.parts.signs.findings import mean_of, pick, selectivity
from proxsae.studies.parts.signs.steering import Probe, clamped, ridge, steered
from proxsae.studies.statistics import holm
from proxsae.studies.task import Setting

CONCEPTS = ("heat", "size", "music")


def slow_auc(positive, negative):
    """Mann-Whitney, as it is defined."""
    won = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    return won / (len(positive) * len(negative))


def contrast(positive, negative, name="heat", two_sided=True, words=4, held=2):
    """Rows in equal blocks of words, the last `held` of which are held out."""
    n = len(positive)
    word = np.arange(n) * words // n
    rows = (np.asarray(side, dtype=np.float32) for side in (positive, negative))
    return Contrast(name, two_sided, *rows, word, word >= words - held, (("", ""),) * n)


def unit_sae(make, atoms, k=1):
    """An SAE with these atoms, a tied encoder and no biases: its codes can be worked out by hand."""
    atoms = torch.tensor(atoms, dtype=torch.float32)
    sae = make(atoms.shape[1], atoms.shape[0], k)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T)
    return sae


# Telling two sides apart


def test_auc_is_its_definition_with_ties():
    rng = np.random.default_rng(0)
    positive, negative = (rng.integers(0, 4, (n, 6)).astype(float) for n in (9, 7))
    expected = [slow_auc(positive[:, j], negative[:, j]) for j in range(6)]
    np.testing.assert_allclose(auc(positive, negative), expected)
    assert float(auc(np.zeros(5), np.zeros(5))) == 0.5


def test_best_latent_is_chosen_free_of_sign_and_turned():
    positive = np.array([[1.0, -2, 0], [1, -3, 0], [0, -2, 0], [0, 0, 0]])
    negative = np.array([[0.0, 2, 0], [1, 3, 0], [0, 1, 0], [0, 0, 0]])
    assert best_latent(positive, negative) == (1, -1.0)
    assert best_latent(negative, positive) == (1, 1.0)
    twins = np.ones((3, 2)), np.zeros((3, 2))
    assert best_latent(*twins) == (0, 1.0), "a tie takes the lowest index"


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_threshold_is_the_best_of_all(sign):
    rng = np.random.default_rng(1)
    positive, negative = rng.integers(0, 6, 12).astype(float) + 1, rng.integers(0, 6, 10).astype(float)
    how = reading(sign * positive, sign * negative, sign)
    best = max(((positive > t).mean() + (negative <= t).mean()) / 2 for t in np.arange(-1, 8, 0.25))
    assert balanced_accuracy(sign * positive, sign * negative, how) == pytest.approx(best)
    assert how.threshold % 1 == 0.5, "half-way between two integers that occur"


def test_signs_are_counted_on_both_sides():
    shares = sides(np.array([1.0, 2, 0, -1]), np.array([-1.0, 0, 0, 3]))
    assert shares == {
        "positive_up": 0.5, "positive_zero": 0.25, "positive_down": 0.25,
        "negative_up": 0.25, "negative_zero": 0.5, "negative_down": 0.25,
    }  # fmt: skip


def test_most_opposite_latent_is_found_either_way_round():
    positive = np.array([[1.0, -1, 1], [1, -1, 1], [0, -1, 1]])
    negative = np.array([[-1.0, 1, 0], [0, 1, 0], [-1, 0, 0]])
    assert opposite(positive, negative).tolist() == [1 / 3, 0, 0]
    assert most_opposite(positive, negative) == (1, -1.0)
    assert most_opposite(negative, positive) == (1, 1.0)
    assert most_opposite(positive[:, ::2], negative[:, ::2]) == (0, 1.0)


def planted(fires, n=16):
    """Rows +-d along the first axis; where not `fires`, another axis is louder, so that k = 1 leaves it out."""
    loud = np.where(np.arange(n) % 4 < fires, 0.0, 5.0)
    positive, negative = np.zeros((2, n, 3))
    positive[:, 0], negative[:, 0] = 1, -1
    positive[:, 1] = negative[:, 1] = loud
    return contrast(positive, negative)


def test_one_signed_latent_carries_both_sides():
    row = signs.concept(unit_sae(abstopk_sae, np.eye(3)), planted(fires=4))
    assert (row["latent"], row["auc"], row["accuracy"], row["opposite"]) == (0, 1.0, 1.0, 1.0)
    assert (row["opposite_best"], row["both"], row["both_opposite"]) == (1, 1, 1)
    assert (row["pairs"], row["words"], row["low"], row["high"]) == (8, 2, 1.0, 1.0)


@pytest.mark.parametrize("fires", [1, 2, 3])
def test_one_non_negative_latent_is_held_back_by_its_ties(fires):
    # A share p of the positive rows is above all negative rows and the rest is tied with them: AUC = p + (1 - p) / 2.
    # The signed latent has p of both sides apart: 1 - (1 - p)^2 / 2 of the comparisons.
    p = fires / 4
    two = unit_sae(topk_sae, [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 1]])
    row = signs.concept(two, planted(fires))
    assert row["auc"] == pytest.approx(p + (1 - p) / 2)
    assert row["opposite"] == 0
    assert (row["positive_up"], row["negative_zero"]) == (p, 1.0)
    one = signs.concept(unit_sae(abstopk_sae, np.eye(3)), planted(fires))
    assert one["auc"] == pytest.approx(1 - (1 - p) ** 2 / 2)
    assert one["opposite"] == one["opposite_best"] == one["both_opposite"] == p
    assert one["both"] == 1, "where the concept is left out, what is louder is on both sides"
    assert (row["both"], row["both_opposite"]) == (1 - p, 0)


def test_held_out_rows_choose_nothing():
    rng = np.random.default_rng(2)
    sae = unit_sae(abstopk_sae, np.linalg.qr(rng.standard_normal((6, 6)))[0], k=3)
    sides_of = rng.standard_normal((2, 40, 6))
    pair = contrast(*sides_of)
    turned = sides_of.copy()
    turned[0, pair.held_out] += 3
    other = contrast(*turned)
    (j, _, how), (k, _, where) = (signs._chosen(signs._codes(sae, p), p) for p in (pair, other))
    assert (j, how) == (k, where)
    assert signs.concept(sae, pair)["auc"] != signs.concept(sae, other)["auc"], "but they are what is measured"
    one, two = (signs.steering(sae, [p], "abstopk") for p in (pair, other))
    assert [row["norm"] for row in one] != [row["norm"] for row in two]
    for key in ("concept", "by", "direction"):
        assert [row[key] for row in one] == [row[key] for row in two]


def test_a_latent_that_only_the_held_out_words_would_choose_is_not_chosen():
    positive, negative = np.zeros((2, 8, 2))
    positive[:3, 0], negative[:3, 0] = 1, -1
    positive[3:, 1], negative[3:, 1] = 3, -3
    row = signs.concept(unit_sae(abstopk_sae, np.eye(2)), contrast(positive, negative, words=8, held=5))
    assert (row["latent"], row["auc"], row["accuracy"]) == (0, 0.5, 0.5)
    assert (row["opposite"], row["opposite_best"]) == (0, 0)


def test_training_rows_hold_both_sides_and_no_held_out_word():
    pair = contrast(np.arange(8.0)[:, None], -np.arange(8.0)[:, None])
    rows = signs.training_rows(torch.full((2, 1), 99.0), [pair])
    assert rows[:, 0].tolist() == [99, 99, 0, 1, 2, 3, 0, -1, -2, -3]
    assert signs.training_rows(torch.ones(2, 1), []).tolist() == [[1], [1]]


# How sure it is


@pytest.fixture
def scored():
    rng = np.random.default_rng(3)
    words = np.array([4, 4, 4, 7, 7, 9, 9, 9, 9, 2])
    return Pairs(rng.integers(0, 3, 10).astype(float), rng.integers(-1, 2, 10).astype(float), words)


def test_wins_add_up_to_the_auc_by_word(scored):
    table = wins(*scored)
    assert table.shape == (4, 4)
    assert table.sum() / 100 == pytest.approx(slow_auc(scored.positive, scored.negative))
    of = {word: scored.words == word for word in (2, 4, 7, 9)}
    for (i, a), (j, b) in itertools.product(enumerate(of.values()), repeat=2):
        expected = slow_auc(scored.positive[a], scored.negative[b]) * a.sum() * b.sum()
        assert table[i, j] == pytest.approx(expected)


def test_pseudo_values_leave_a_word_out(scored):
    whole = slow_auc(scored.positive, scored.negative)
    expected = []
    for word in (2, 4, 7, 9):
        kept = scored.words != word
        expected.append(4 * whole - 3 * slow_auc(scored.positive[kept], scored.negative[kept]))
    np.testing.assert_allclose(pseudo_values(wins(*scored), scored.words), expected)


def test_bootstrap_draws_words_with_all_their_rows(scored):
    found = by_words(wins(*scored), scored.words)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(500):
        rows = np.concatenate([np.flatnonzero(scored.words == w) for w in rng.choice([2, 4, 7, 9], 4)])
        drawn.append(slow_auc(scored.positive[rows], scored.negative[rows]))
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert (found.mean, found.n) == (pytest.approx(slow_auc(scored.positive, scored.negative)), 4)
    assert found.low == pytest.approx(low, abs=0.05)
    assert found.high == pytest.approx(high, abs=0.05)


def test_sign_flips_are_those_of_all_signs():
    values = np.array([0.4, 0.1, 0.3, -0.2, 0.5, 0.2, 0.05, 0.3])
    sums = [abs(np.dot(s, values)) for s in itertools.product((1, -1), repeat=8)]
    expected = np.mean([s >= abs(values.sum()) - 1e-12 for s in sums])
    assert sign_flip_p(values) == pytest.approx(expected, abs=4 * np.sqrt(expected / FLIPS))
    assert sign_flip_p(-values) == sign_flip_p(values)
    assert sign_flip_p(np.zeros(5)) == 1.0
    assert sign_flip_p(np.array([0.0, 0.0, 0.7, 0.0])) == 1.0, "one word is no evidence"
    assert sign_flip_p(np.full(30, 0.1)) == 1 / (1 + FLIPS)


# Signs and fragments


def test_fragments_are_counted_pair_by_pair():
    rng = np.random.default_rng(4)
    atoms = rng.standard_normal((12, 5))
    atoms[3], atoms[7], atoms[9] = -2 * atoms[0], -atoms[5] + 0.3 * atoms[1], atoms[5]
    least = []
    for i in range(12):
        cosines = [atoms[i] @ b / np.linalg.norm(atoms[i]) / np.linalg.norm(b) for b in atoms]
        least.append(min(cosines))
    number, mean = signs.fragments(torch.tensor(atoms))
    assert number == sum(c < -0.9 for c in least) == 5
    assert mean == pytest.approx(np.mean(least))
    assert signs.fragments(torch.tensor(atoms[:1])) == (0, None)


def test_latents_are_counted_from_codes():
    rng = np.random.default_rng(6)
    atoms = rng.standard_normal((9, 4))
    atoms[1], atoms[8] = -atoms[0], 0
    sae = unit_sae(abstopk_sae, atoms / np.maximum(np.linalg.norm(atoms, axis=1), 1e-9)[:, None], k=2)
    x = torch.tensor(rng.standard_normal((60, 4)), dtype=torch.float32)
    with torch.no_grad():
        z = sae.encode(x).numpy()
        error = float((sae(x) - x).square().sum() / x.square().sum())
    balance = []
    for column in z.T:
        up, down = sum(column > 0), sum(column < 0)
        if up + down:
            balance.append(min(up, down) / max(up, down))
    row = signs.latents(sae, x)
    assert (row["live"], row["latents"], row["dead"]) == (len(balance), 9, pytest.approx(1 - len(balance) / 9))
    assert row["live"] == 8, "the latent without an atom is dead"
    assert row["balance"] == pytest.approx(np.mean(balance))
    assert row["balance_q25"] == pytest.approx(np.quantile(balance, 0.25))
    assert row["two_sided"] == pytest.approx(np.mean([b >= 0.1 for b in balance]))
    number = signs.fragments(torch.tensor(atoms))[0]
    assert (row["fragments"], row["fragments_all"]) == (number, number)
    assert (row["fragmented"], row["fragmented_all"]) == (pytest.approx(number / 8), pytest.approx(number / 9))
    assert (row["nmse"], row["l0"]) == (pytest.approx(error, rel=1e-5), 2.0)


def test_a_dead_partner_is_no_live_fragment():
    sae = unit_sae(topk_sae, [[1, 0], [-1, 0], [0, 1]])
    row = signs.latents(sae, torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]]))
    assert (row["live"], row["fragments"], row["fragments_all"]) == (2, 0, 2)


def test_an_sae_that_never_fires_has_no_balance():
    sae = unit_sae(topk_sae, np.eye(2))
    row = signs.latents(sae, torch.tensor([[-1.0, -2.0]]))
    assert (row["live"], row["dead"], row["balance"], row["two_sided"], row["fragmented"]) == (0, 1.0, None, None, None)


# Steering


def test_ridge_solves_its_least_squares():
    rng = np.random.default_rng(7)
    positive, negative = rng.standard_normal((8, 12)) + 0.5, rng.standard_normal((6, 12))
    X, y = np.vstack([positive, negative]), np.array([1.0] * 8 + [-1.0] * 6)
    X, y = X - X.mean(axis=0), y - y.mean()
    a = np.mean([row @ row for row in X])
    expected = np.linalg.lstsq(np.vstack([X, np.sqrt(a) * np.eye(12)]), np.append(y, np.zeros(12)), rcond=None)[0]
    probe = ridge(positive, negative)
    np.testing.assert_allclose(probe.weights, expected)
    step = difference_in_means(positive, negative)
    assert float(probe.shift(step)) == pytest.approx(1), "the difference in means carries one mean to the other"


def test_shift_and_damage_in_closed_form():
    own, others = Probe(np.array([1.0, 0, 0]), 4.0), [Probe(np.array([0.0, 2, 0]), 1.0), Probe(np.ones(3), 6.0)]
    change, direction = np.array([1.0, 3.0]), np.array([2.0, 0.5, 0])
    found = steered(change, direction, own, others)
    assert found["shift"] == pytest.approx(2 * 2 / 4)  # mean change times w . d over the distance
    squares = [(c * e) ** 2 for c in change for e in (2 * 0.5 / 1, 2.5 / 6)]
    assert found["damage"] == pytest.approx(np.sqrt(np.mean(squares)))
    assert found["selectivity"] == pytest.approx(found["shift"] / found["damage"])
    assert found["norm"] == pytest.approx(np.sqrt(np.mean([(c**2) * 4.25 for c in change])))
    assert steered(change, direction, own, [])["selectivity"] is None


@pytest.mark.parametrize(
    ("sign", "nonneg", "plus", "minus"),
    [(1.0, False, 2.0, -2.0), (-1.0, False, -2.0, 2.0), (1.0, True, 2.0, 0.0), (-1.0, True, 0.0, 2.0)],
)
def test_a_latent_is_clamped_to_the_sides_of_its_concept(sign, nonneg, plus, minus):
    score = np.array([0.0, 0.5, 3.0])
    found = clamped(score, 2.0, nonneg, sign)
    np.testing.assert_allclose(found["+"], plus - score)
    np.testing.assert_allclose(found["-"], minus - score)


@pytest.mark.parametrize("flip", [1, -1])
def test_steering_moves_rows_along_the_atom_and_keeps_the_rest(flip):
    rng = np.random.default_rng(8)
    z = rng.uniform(1, 2, (2, 24))
    positive, negative = rng.standard_normal((2, 24, 4)) * 0.1
    positive[:, 0] += z[0]
    negative[:, 0] -= z[1]
    positive[::5, 3] = 9  # louder than the concept, whose latent is then 0
    pair, other = contrast(positive, negative), contrast(positive[:, ::-1], negative[:, ::-1], "size")
    rows = signs.steering(unit_sae(abstopk_sae, flip * np.eye(4)), [pair, other], "abstopk")
    learn, held = ~pair.held_out, pair.held_out
    probe, far = (ridge(p.positive[learn].astype(float), p.negative[learn].astype(float)) for p in (pair, other))
    up, down = (np.where(np.abs(x).argmax(axis=1) == 0, x[:, 0], 0) for x in (pair.positive, pair.negative))
    codes, seen = np.concatenate([up[held], down[held]]), np.concatenate([up[learn], down[learn]])
    q = np.mean([abs(z) for z in seen if z])
    mean = difference_in_means(pair.positive[learn].astype(float), pair.negative[learn].astype(float))
    for side, level in (("+", q), ("-", -q)):
        moves = np.zeros((len(codes), 4))
        moves[:, 0] = level - codes
        latent, dim = (pick(rows, concept="heat", by=by, direction=side)[0] for by in ("latent", "dim"))
        assert latent["shift"] == pytest.approx(np.mean(moves @ probe.weights) / probe.distance, rel=1e-5)
        assert latent["damage"] == pytest.approx(np.sqrt(np.mean((moves @ far.weights / far.distance) ** 2)), rel=1e-5)
        assert dim["norm"] == pytest.approx(latent["norm"], rel=1e-5)
        along = moves[:, :1] * mean / np.linalg.norm(mean)
        assert dim["shift"] == pytest.approx(np.mean(along @ probe.weights) / probe.distance, rel=1e-5)
        assert np.sign(latent["shift"]) == np.sign(dim["shift"]) == (1 if side == "+" else -1)


def test_controls_are_not_steered_but_can_be_damaged():
    rng = np.random.default_rng(9)
    one, two = rng.standard_normal((2, 16, 4)), rng.standard_normal((2, 16, 4))
    pairs = [contrast(*one, "heat"), contrast(*two, "music", two_sided=False)]
    rows = signs.steering(unit_sae(abstopk_sae, np.eye(4), k=2), pairs, "abstopk")
    assert {row["concept"] for row in rows} == {"heat"}
    assert all(row["damage"] > 0 for row in rows)


# The whole part


def make_setting(folder, packaged=True, seeds=(0, 1)):
    rng = np.random.default_rng(10)
    train, test = (torch.tensor(rng.standard_normal((n, 8)), dtype=torch.float32) for n in (200, 80))
    return Setting(train, test, 12, 3, seeds, 12, (1,), folder, packaged, 0.001)


def make_pairs():
    rng = np.random.default_rng(11)
    made = []
    for i, name in enumerate(CONCEPTS):
        rows = rng.standard_normal((2, 24, 8))
        rows[0, :, i] += 2
        rows[1, :, i] -= 2 * (name != "music")
        made.append(contrast(*rows, name, name != "music", words=12, held=6))
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    setting, pairs = make_setting(tmp_path_factory.mktemp("signs")), make_pairs()
    with pytest.MonkeyPatch.context() as patch:  # as many resamples as a report needs would take most of the time
        patch.setattr("proxsae.studies.statistics.RESAMPLES", 100)
        patch.setattr(signs, "contrasts", lambda: tuple(pairs))
        rows = [row for task in signs.tasks(setting) for row in task.run()]
    return setting, pairs, rows


def test_tasks_are_named_once_and_cost_time(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(signs, "contrasts", lambda: tuple(make_pairs()))
    found = signs.tasks(make_setting(tmp_path))
    assert len({task.name for task in found}) == len(found) == 2 * 4 + 1
    assert all(task.seconds > 0 for task in found)
    twice = signs.tasks(replace(make_setting(tmp_path), seconds=0.002))
    assert sum(task.seconds for task in twice) > sum(task.seconds for task in found)


def test_rows_are_flat_and_those_of_every_seed(run):
    setting, _, rows = run
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert {row["part"] for row in rows} == {"signs"}
    assert [len(pick(rows, kind=kind)) for kind in ("latents", "concept", "steering", "mean", "comparison")] == [
        2 * 4, 2 * 5 * 3, 2 * 4 * 2 * 4, 3 * 7, 3 * 3,
    ]  # fmt: skip
    wide = {row["latents"] for row in pick(rows, kind="latents", sae="topk2")}
    assert wide == {2 * setting.d_sae}
    for name in ("topk", "topk2", "jumprelu"):
        assert all(row["balance"] == 0 == row["two_sided"] for row in pick(rows, kind="latents", sae=name))
        assert all(row["opposite"] == 0 for row in pick(rows, kind="concept", sae=name))


def test_jumprelu_is_brought_to_the_density_of_the_others(run):
    setting, _, _ = run
    for seed in setting.seeds:
        with torch.no_grad():
            codes = setting.kept(f"signs-jumprelu-seed{seed}").encode(setting.test)
        assert float((codes != 0).sum()) / len(codes) == pytest.approx(setting.k, rel=0.03)


def test_means_over_seeds_are_those_of_the_rows(run):
    _, _, rows = run
    for row in pick(rows, kind="mean"):
        if row["sae"] in ("dim", "ridge"):
            assert row["auc"] > 0.8, "the concepts are there to be found"
            continue
        seeds = [r["auc"] for r in pick(rows, kind="concept", sae=row["sae"], concept=row["concept"])]
        assert row["auc"] == pytest.approx(np.mean(seeds))
        assert row["low"] <= row["auc"] <= row["high"]


def test_comparisons_are_paired_and_adjusted_over_all(run):
    _, _, rows = run
    compared = pick(rows, kind="comparison")
    for row in compared:
        one, other = (
            np.mean([r["auc"] for r in pick(rows, kind="concept", sae=name, concept=row["concept"])])
            for name in ("abstopk", row["peer"])
        )
        assert row["difference"] == pytest.approx(one - other)
        assert row["low"] <= row["difference"] + 1e-12
        assert row["high"] >= row["difference"] - 1e-12
    assert [row["p_holm"] for row in compared] == holm([row["p"] for row in compared])


def test_a_kept_sae_gives_its_rows_again(run):
    setting, pairs, rows = run
    sae = setting.kept("signs-abstopk-seed1")
    for pair, row in zip(pairs, pick(rows, kind="concept", sae="abstopk", seed=1), strict=True):
        again = signs.concept(sae, pair)
        assert all(again[key] == row[key] for key in ("concept", "latent", "auc", "accuracy", "opposite"))
    shallow, deep = (pick(rows, kind="concept", sae=name, seed=1) for name in ("abstopk", "abstopk16"))
    assert [row["auc"] for row in shallow] != [row["auc"] for row in deep], "further steps change codes"


def test_other_rows_than_the_packaged_have_no_concepts(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(signs, "contrasts", lambda: pytest.fail("the pairs are of another model"))
    tasks = signs.tasks(make_setting(tmp_path, packaged=False, seeds=(3,)))
    rows = [row for task in tasks for row in task.run()]
    assert [(row["kind"], row["seed"]) for row in rows] == [("latents", 3)] * 4
    section = report.section(rows)
    assert [shown.name for shown in section.shown] == ["signs-latents"]
    assert "states of the packaged model" in section.findings[-1]


# Report


def test_report_draws_what_the_rows_say(run):
    _, _, rows = run
    section = report.section(rows)
    shown = {part.name: part for part in section.shown}
    assert list(shown) == [
        "signs-latents", "signs-concepts", "signs-auc", "signs-comparisons", "signs-sides", "signs-steering",
        "signs-steering-means",
    ]  # fmt: skip
    for part in section.shown:
        assert "2 seeds" in part.caption
        assert "intervals are" in part.caption
        assert isinstance(part, Picture) or {len(line) for line in part.lines} == {len(part.headings)}
    for point in shown["signs-latents"].data:
        values = [row[point["measure"]] for row in pick(rows, kind="latents", sae=point["sae"])]
        assert point["mean"] == pytest.approx(np.mean(values))
    drawn = {(row["sae"], row["concept"]): row["auc"] for row in shown["signs-concepts"].data}
    ax = shown["signs-concepts"].figure.axes[0]
    lines = [bars.lines[0] for bars in ax.containers]
    assert sorted(y for line in lines for y in line.get_ydata()) == pytest.approx(sorted(drawn.values()))
    for point in shown["signs-steering"].data:
        which = {key: point[key] for key in ("concept", "sae", "by", "direction")}
        values = [row["shift"] for row in pick(rows, kind="steering", **which)]
        assert point["shift"] == pytest.approx(np.mean(values))


def make_row(kind, **values):
    return {"part": "signs", "kind": kind, "two_sided": 1, **values}


def compared(concept, difference, p_holm):
    return make_row("comparison", sae="abstopk", peer="topk", seed=None, concept=concept, difference=difference,
                    low=difference - 0.1, high=difference + 0.1, p=p_holm / 9, p_holm=p_holm)  # fmt: skip


def test_findings_take_no_side():
    rows = [compared("heat", 0.2, 0.01), compared("size", -0.3, 0.02), compared("age", -0.1, 0.3)]
    rows += [make_row("concept", sae="abstopk", seed=0, concept="heat", auc=0.7, opposite=0.2, opposite_best=0.3,
                      positive_zero=0.5, negative_zero=0.75, both=7.0, both_opposite=0.5)]  # fmt: skip
    said = " ".join(report.findings(rows))
    assert "higher on 1 of 3 two-sided concepts and lower on 2" in said
    assert "all 3 comparisons (with controls), it is higher for heat and lower for size." in said
    assert "opposite signs on the two sides of 20.0%" in said
    assert "more than half of them for none" in said
    assert "instead of for its AUC, has them in 30.0%" in said
    assert "of a two-sided concept, 7.00 AbsTopK latents fire on both, and 0.500 of them with opposite signs" in said


def test_one_seed_has_no_interval(run):
    _, _, rows = run
    one = [row for row in rows if row["seed"] in (0, None)]
    section = report.section(one)
    assert "one seed;" in section.shown[0].caption
    assert all(np.isnan(point["low"]) for point in section.shown[0].data)
    assert "nan" not in " ".join(section.findings)
    tables = [part for part in section.shown if isinstance(part, Table)]
    assert not any("nan" in cell for part in tables for line in part.lines for cell in line)


def test_report_survives_missing_parts(run):
    _, _, rows = run
    for kinds in (("latents", "comparison"), ("concept", "mean"), ("steering", "mean")):
        assert report.section([row for row in rows if row["kind"] in kinds]).findings
    assert report.section([]).shown == []


def test_selectivity_is_a_ratio_of_sums():
    rows = [make_row("steering", sae="abstopk", seed=s, shift=shift, damage=damage)
            for s, shift, damage in ((0, 1.0, 2.0), (0, -3.0, 2.0), (1, 0.5, 0.25))]  # fmt: skip
    found = selectivity(rows, sae="abstopk")
    assert (found.mean, found.n) == (pytest.approx((4 / 4 + 2) / 2), 2)
    assert mean_of(rows, "shift", kind="steering").mean == pytest.approx((-1 + 0.5) / 2)

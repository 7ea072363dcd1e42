"""The depth study's frame: equal density, resumption, what fits into a budget, and how sure a mean is."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import proxsae as px
from proxsae.studies import statistics as intervals
from proxsae.studies import study
from proxsae.studies.density import matched, with_lam
from proxsae.studies.journal import FILE, Journal, planned
from proxsae.studies.parts.depth import measure as depth
from proxsae.studies.task import Setting, Task

D, P, K = 12, 24, 4
DATA = px.data.planted(n=400, d_in=D, d_sae=P, k=K, noise=0.1, seed=1).x.astype(np.float32)


def setting(tmp_path, **changes):
    x = torch.tensor(DATA)
    made = Setting(x[:300], x[300:], P, K, (0, 1), 30, (1, 3), tmp_path, False, 0.001)
    return replace(made, **changes)


# ---- equal density ---------------------------------------------------------------------------------------------------


def an_sae(R, steps=1, step=None):
    torch.manual_seed(0)
    return px.SAE(D, P, R, steps=steps, step=step)


def test_lam_is_changed_in_a_twin_only():
    x = torch.tensor(DATA[:50])
    for R in (px.L1(0.4, nonneg=True), px.L0(0.08, bandwidth=0.1)):
        sae = an_sae(R)
        before = sae.encode(x)
        twin = with_lam(sae, 2.25)
        u = sae.pre_activations(x)
        expected = (u - 0.9).clamp(min=0) if isinstance(R, px.L1) else torch.where(u.abs() > 0.6, u, 0)
        torch.testing.assert_close(twin.encode(x), expected)
        assert torch.equal(sae.encode(x), before)
        assert twin.W_dec is sae.W_dec


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", depth.TRAINING)
def test_densities_are_matched(name, steps):
    x = torch.tensor(DATA)
    R = depth.penalties(K, 0.5)[name]
    sae = an_sae(R).unrolled(steps, px.ExactStep())
    found, factor = matched(sae, x, K)
    density = float((found.encode(x) != 0).float().sum(dim=1).mean())
    if isinstance(R, px.KSparse):
        assert (found is sae, factor) == (True, 1.0)
        assert density <= K
    else:
        assert density == pytest.approx(K, rel=0.04)
        assert factor != 1


def test_a_density_that_no_lam_gives_is_come_near_to():
    x = torch.tensor(DATA)
    sae = an_sae(px.L1(0.5))
    found, factor = matched(sae, x, 10 * P)  # more than there are latents
    assert factor < 1e-3
    assert (found.encode(x) != 0).float().sum(dim=1).mean() > 0.99 * P
    found, factor = matched(sae, x, 1e-9)
    assert not (found.encode(x) != 0).any() or factor > 1e3


@pytest.mark.parametrize("R", [px.L1(0.0, nonneg=True), px.L0(0.0), px.KSparse(4)], ids=repr)
def test_an_sae_without_a_lam_to_change_is_left_as_it_is(R):
    sae = an_sae(R).unrolled(5)
    found, factor = matched(sae, torch.tensor(DATA), 1.0)
    assert found is sae
    assert factor == 1


# ---- the depth part --------------------------------------------------------------------------------------------------


def test_a_task_trains_keeps_and_measures(tmp_path):
    made = setting(tmp_path, seeds=(3,), train_steps=12)
    tasks = depth.tasks(made)
    assert [task.name for task in tasks[:3]] == [
        "depth abstopk-train1-seed3", "depth abstopk-train3-seed3", "depth topk-train1-seed3"
    ]  # fmt: skip
    assert len(tasks) == 6 * 2
    for task in (tasks[1], tasks[-1]):
        rows = task.run()
        name = task.name.removeprefix("depth ")
        sae = made.kept(name)
        assert name.startswith(rows[0]["penalty"])
        assert sae.steps == rows[0]["train_depth"]
        assert isinstance(sae.step, px.ExactStep if name.startswith("abstopk") else px.Lipschitz) or sae.steps == 1
        assert {row["rule"] for row in rows} == set(depth.rules(sae.penalty))
        assert [row["steps"] for row in rows] == list(depth.STEPS) * len(depth.rules(sae.penalty))
        assert len({row["nmse"] for row in rows if row["steps"] == 1}) == 1
        for row in rows:
            assert row["part"] == "depth"
            assert row["seed"] == 3
            assert row["l0"] == pytest.approx(K, rel=0.05)
            assert (row["support_change"] is None) == (row["steps"] == 1)
            deep = with_lam(sae.unrolled(row["steps"], depth.RULES[row["rule"]]), row["lam_factor"])
            with torch.no_grad():
                z = deep.encode(made.test)
                x, xhat = made.test.double().numpy(), (z @ deep.W_dec + deep.b_dec).double().numpy()
            assert row["nmse"] == pytest.approx(((x - xhat) ** 2).sum() / (x**2).sum(), rel=1e-3)
            assert row["two_sided"] == 0 or not sae.penalty.nonneg
        if isinstance(R := sae.penalty, px.KSparse):
            for rule in depth.rules(R):
                errors = [row["nmse"] for row in rows if row["rule"] == rule]
                for before, after in itertools.pairwise(errors):
                    assert after <= before * (1 + 1e-6), "no step raises the error of k-sparse codes"
    json.dumps(rows)


def test_the_rows_of_an_sae_do_not_hang_on_the_other_tasks(tmp_path):
    made = setting(tmp_path, train_steps=5)
    tasks = depth.tasks(made)
    torch.manual_seed(77)
    late = [{k: v for k, v in row.items() if "seconds" not in k} for row in tasks[5].run()]
    tasks[0].run()
    assert late == [{k: v for k, v in row.items() if "seconds" not in k} for row in tasks[5].run()]


# ---- resumption ------------------------------------------------------------------------------------------------------


def counted(calls):
    def rows(name):
        calls.append(name)
        return [{"part": "p", "name": name, "value": 1 / 3, "none": None}]

    return [Task(name, 1.0, lambda name=name: rows(name)) for name in ("a", "b", "c")]


def test_a_study_goes_on_where_it_was_interrupted(tmp_path):
    calls = []
    tasks = counted(calls)

    def stop(*_):
        raise KeyboardInterrupt

    broken = [tasks[0], Task("b", 1.0, stop), tasks[2]]
    with pytest.raises(KeyboardInterrupt):
        study.run(broken, Journal(tmp_path, {"k": 3}))
    assert calls == ["a"]
    rows = study.run(tasks, Journal(tmp_path, {"k": 3}))
    assert calls == ["a", "b", "c"]
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert study.run(tasks, Journal(tmp_path, {"k": 3})) == rows
    assert calls == ["a", "b", "c"]
    assert planned(tmp_path) == {"k": 3}


def test_a_journal_that_a_kill_tore_loses_no_more_than_the_last_task(tmp_path):
    calls = []
    study.run(counted(calls), Journal(tmp_path, {"k": 3}))
    whole = (tmp_path / FILE).read_bytes()
    firsts = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in range(0, len(whole), 3):
        (tmp_path / FILE).write_bytes(whole[:size])
        calls.clear()
        journal = Journal(tmp_path, {"k": 3})
        assert len(journal.done) == max(0, sum(end <= size for end in firsts) - 1)
        study.run(counted(calls), journal)
        assert len(calls) == 3 - max(0, sum(end <= size for end in firsts) - 1)
        assert Journal(tmp_path, {"k": 3}).done.keys() == {"a", "b", "c"}


def test_no_journal_is_not_an_empty_one(tmp_path):
    assert planned(tmp_path) is None
    (tmp_path / FILE).write_bytes(b'{"study": {}}\n')
    assert planned(tmp_path) == {}
    with pytest.raises(px.Error, match=r"another study \(k is unknown, not 3\)"):
        Journal(tmp_path, {"k": 3})
    assert (tmp_path / FILE).read_bytes() == b'{"study": {}}\n'


def test_the_name_of_a_new_journal_is_flushed_once(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("proxsae.studies.journal.flush", flushed.append)
    Journal(tmp_path, {"k": 3}).add("a", [], 1.0)
    assert flushed == [tmp_path]


def test_another_study_and_a_foreign_file_are_refused(tmp_path):
    Journal(tmp_path, {"k": 3, "seeds": [0, 1]})
    with pytest.raises(px.Error, match=r"another study \(k is 3, not 4\): one folder holds one study"):
        Journal(tmp_path, {"k": 4, "seeds": [0, 1]})
    for foreign in (b"hello\n", b"hello", b"[1]\n", b'{"study": 3}\n', b'{"a": {}}\n'):
        (tmp_path / FILE).write_bytes(foreign)
        with pytest.raises(px.Error, match="not the journal of a study"):
            Journal(tmp_path, {"k": 3})
        assert (tmp_path / FILE).read_bytes() == foreign
    for damaged in (b"no JSON\n", b"{}\n", b'{"task": "a", "rows": []}\n', b"[1]\n"):
        (tmp_path / FILE).write_bytes(b'{"study": {"k": 3}}\n' + damaged)
        with pytest.raises(px.Error, match=r"study.jsonl is damaged"):
            Journal(tmp_path, {"k": 3})


# ---- budget ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def priced(monkeypatch):
    def tasks(setting):
        return [Task("a", 0.01 * len(setting.seeds) * setting.train_steps, list)]

    monkeypatch.setattr(study, "PARTS", {"depth": tasks, "apart": tasks})


def test_a_larger_budget_buys_more(priced, tmp_path):
    made = setting(tmp_path)
    plans = [study.plan(made, ("depth",), budget / 60, None, None) for budget in (1, 2, 10, 100, 1e9)]
    for plan, budget in zip(plans, (1, 2, 10, 100, 1e9), strict=True):
        assert plan.seconds == 0.01 * plan.seeds * plan.train_steps <= study.HEADROOM * budget
    sizes = [(plan.seeds, plan.train_steps) for plan in plans]
    assert sizes == [(3, 25), (3, 50), (4, 200), (8, 1000), study.LADDER[-1][:2]]
    assert plans[-1] == study.Plan(*study.LADDER[-1][:2], 100, 0.01 * math.prod(study.LADDER[-1][:2]))
    twice = study.plan(made, ("depth", "apart"), 10 / 60, None, None)
    assert twice.seeds * twice.train_steps < plans[2].seeds * plans[2].train_steps


def test_what_is_given_stays_and_nothing_is_too_small(priced, tmp_path):
    made = setting(tmp_path)
    assert study.plan(made, ("depth",), 10 / 60, 7, None) == study.Plan(7, 100, 100, pytest.approx(7.0))
    assert study.plan(made, ("depth",), 10 / 60, None, 40) == study.Plan(10, 40, 100, 4.0)
    assert study.plan(made, ("depth",), 1e-9, 3, 7) == study.Plan(3, 7, 100, pytest.approx(0.21))
    least = study.plan(made, ("depth",), 1e-9, None, None)
    assert least == study.Plan(*study.LADDER[0][:2], 100, pytest.approx(0.1))
    assert not study.fits(least, 1e-9)


def test_without_a_budget_a_first_answer_is_planned(priced, tmp_path, monkeypatch):
    made = setting(tmp_path)
    assert study.plan(made, ("depth",), None, None, None) == study.plan(made, ("depth",), study.BUDGET, None, None)
    monkeypatch.setattr(study, "BUDGET", 0.001)
    assert study.plan(made, ("depth",), None, None, None) == study.Plan(1, 10, 100, pytest.approx(0.1))


def test_a_smaller_budget_leaves_out_what_answers_least_first(tmp_path, monkeypatch):
    def tasks(setting):
        return [Task("a", 0.01 * len(setting.seeds) * setting.train_steps * len(setting.train_depths), list)]

    monkeypatch.setattr(study, "PARTS", dict.fromkeys(study.PARTS, tasks))
    made = setting(tmp_path)  # one part with one depth in training takes 3 s for 3 seeds of 100 steps

    def chosen(seconds, parts=(), depths=(), seeds=None, train_steps=None):
        return study.choose(made, parts, depths, seconds / 60 / study.HEADROOM, seeds, train_steps)

    whole = chosen(42.1)
    assert (set(whole.parts), whole.train_depths, whole.seeds, whole.train_steps) == (set(study.PARTS), (1, 4), 3, 100)
    names = tuple(study.PARTS)
    for seconds, left in ((36, {"bounds"}), (30, {"bounds", "recovery"}), (12, set(names) - {"depth", "apart"})):
        fewer = chosen(seconds + 0.1)
        assert set(names) - set(fewer.parts) == left
        assert (fewer.train_depths, fewer.seeds, fewer.train_steps) == ((1, 4), 3, 100)
    assert (chosen(6.1).parts, chosen(6.1).train_depths) == (("depth", "apart"), (1,))
    assert chosen(3.1).parts == ("depth",)
    for seconds, size in ((2.5, (3, 75)), (0.5, (1, 50)), (1e-9, (1, 10))):
        least = chosen(seconds)
        assert (least.parts, least.train_depths, least.seeds, least.train_steps) == (("depth",), (1,), *size)
    assert chosen(1e-9, parts=("signs",)).parts == ("signs",)
    assert chosen(1e-9, depths=(2, 8)).train_depths == (2, 8)
    assert chosen(1e-9, seeds=2, train_steps=7) == study.Plan(2, 7, 100, pytest.approx(1.96), names, (1, 4))
    assert chosen(1e-9, seeds=2).seeds == 2
    assert chosen(1e-9, train_steps=7).train_steps == 7


def test_the_part_that_answers_most_is_done_first(tmp_path, monkeypatch):
    parts = {name: lambda setting, name=name: [Task(name, 1.0, list)] for name in study.PARTS}
    monkeypatch.setattr(study, "PARTS", parts)
    tasks = study.all_tasks(setting(tmp_path), study.parts_with_needs(("stability", "apart")))
    assert [task.name for task in tasks] == ["depth", "apart", "stability"]


def test_the_whole_study_is_sized_for_what_was_asked(priced, tmp_path):
    made = setting(tmp_path)
    assert study.minutes_of_the_whole(made, (), (), None, None) == 20
    for seeds, steps in ((1000, None), (None, 50_000)):
        seconds = 0.02 * (seeds or study.WHOLE[0]) * (steps or study.WHOLE[1])
        least = seconds / study.HEADROOM / 60
        assert least <= study.minutes_of_the_whole(made, (), (), seeds, steps) < least + 10
    assert study.minutes_of_the_whole(made, ("depth",), (), 1000, None) < 2 / 3 * (
        study.minutes_of_the_whole(made, (), (), 1000, None)
    )


def test_parts_bring_what_they_need():
    assert study.parts_with_needs(()) == tuple(study.PARTS)
    assert study.parts_with_needs(("apart", "signs")) == ("depth", "apart", "signs")
    assert study.parts_with_needs(("recovery",)) == ("recovery",)
    with pytest.raises(px.Error, match="'nonsense' must be of depth, stability"):
        study.parts_with_needs(("nonsense",))


# ---- how sure a mean is ----------------------------------------------------------------------------------------------


def test_intervals_over_seeds_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5):
        found = [intervals.over_seeds(rng.normal(1.0, 2.0, n)) for _ in range(2000)]
        held = np.mean([low <= 1 <= high for _, low, high, _ in found])
        assert 0.935 < held < 0.965
    values = rng.normal(size=6)
    low, high = stats.t.interval(0.95, 5, values.mean(), stats.sem(values))
    assert intervals.over_seeds(values) == pytest.approx((values.mean(), low, high, 6))
    alone = intervals.over_seeds([3.0])
    assert alone.mean == 3
    assert math.isnan(alone.low)
    assert (str(alone), str(intervals.Interval(0.123456, 0.1, 0.2, 3))) == ("3.00", "0.123 [0.100, 0.200]")
    share = intervals.over_seeds([0.0, 0.1, 0.9], share=True)
    assert (share.low, share.high) == (0, 1)
    row = {"seed": 0, "dead": 0.0}, {"seed": 1, "dead": 0.1}
    assert intervals.grouped(row, (), "dead")[()].low == intervals.mean_of(row, "dead").low == 0
    assert intervals.over_seeds([]).n == 0


def test_a_bootstrap_draws_clusters_whole():
    rng = np.random.default_rng(0)
    words = rng.normal(size=30)
    values, clusters = np.repeat(words, 8), np.repeat(np.arange(30), 8)
    low, high = intervals.bootstrap(clusters, lambda i: float(values[i].mean()))
    one, other = intervals.bootstrap(np.arange(240), lambda i: float(values[i].mean()))
    exact = 1.96 * words.std() / math.sqrt(30)
    assert (high - low) / 2 == pytest.approx(exact, rel=0.1)
    assert other - one == pytest.approx((high - low) / math.sqrt(8), rel=0.1), "eight copies are not eight values"
    assert intervals.bootstrap(clusters, lambda i: float(values[i].mean())) == (low, high)


def test_holm_by_hand():
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.5, 0.9]) == [1.0, 1.0]
    assert intervals.holm([]) == []


def test_paired_p():
    a = [0.1, 0.2, 0.4]
    assert intervals.paired_p(a) == pytest.approx(stats.ttest_1samp(a, 0).pvalue)
    assert (intervals.paired_p([1.0]), intervals.paired_p([0.0, 0.0]), intervals.paired_p([2.0, 2.0])) == (1, 1, 0)


def test_means_are_taken_in_a_seed_before_they_are_taken_over_seeds():
    rows = [{"seed": 0, "a": 1, "v": 1.0}, {"seed": 0, "a": 2, "v": 3.0}, {"seed": 1, "a": 1, "v": 5.0}]
    found = intervals.mean_of(rows, "v")
    assert (found.mean, found.n) == (3.5, 2)
    assert intervals.mean_of(rows, "v", a=1).mean == 3
    assert intervals.pick(rows, a=1, seed=1) == rows[2:]


def test_rows_are_put_together_by_seed():
    rows = [{"a": a, "seed": seed, "v": a + seed, "w": None} for seed in (0, 1, 2) for a in (1, 2)]
    found = intervals.grouped(rows, ("a",), "v")
    assert {key: (value.mean, value.n) for key, value in found.items()} == {(1,): (2, 3), (2,): (3, 3)}
    assert intervals.grouped(rows, ("a",), "w") == {}
    assert intervals.by_seed(rows, "v", a=2) == {0: 2, 1: 3, 2: 4}
    ratio = intervals.ratio_over_seeds({0: 1.0, 1: 4.0, 9: 7.0}, {0: 2.0, 1: 2.0})
    assert (ratio.mean, ratio.n) == (pytest.approx(1.0), 2)
    assert ratio.low == pytest.approx(1 / ratio.high)

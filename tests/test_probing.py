"""Probes on few latents, perturbation and absorption: planted codes whose answer is known, and plain loops."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

import proxsae as px
from proxsae.models import absorption, dense_probes, probe, scr, split, tpp

P = 12


def mirror(signs=None):
    """An SAE whose codes are its rows, times a sign for each latent: the atoms are the axes, and nothing is lost."""
    signs = torch.ones(P) if signs is None else torch.as_tensor(signs, dtype=torch.float32)
    sae = px.SAE(P, P, px.L1(0.0))
    with torch.no_grad():
        sae.W_dec.copy_(torch.diag(signs))
        sae.W_enc.copy_(torch.diag(signs))
    return sae


FLIPPED = [1.0, -1.0] * (P // 2)


def sparse_rows(n, seed=0, fires=0.3):
    """Rows (n, P) of which each entry is 0 but for some."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, P)) * (rng.random((n, P)) < fires)).astype(np.float32)


def planted(n=300, latent=3, seed=0):
    """Rows and labels: one latent is 2 or more where the label is 1, and 0 elsewhere; the others know nothing."""
    x, y = sparse_rows(n, seed), np.arange(n) % 2
    x[:, latent] = y * (2 + np.abs(x[:, latent]))
    return x, y


# the split


@pytest.mark.parametrize(
    ("how", "sizes", "first", "held"),
    [  # what sae-probes 0.4.2 draws for the labels 0, 1, 0, 1, ... of 400 rows
        ({}, (300, 99), [356, 16, 18, 304, 87, 73], [261, 364, 104, 377, 316, 300]),
        ({"train": 10}, (10, 389), [242, 191, 352, 317, 204, 66], [318, 240, 362, 211, 266, 168]),
        ({"train": 10, "seed": 7}, (10, 389), [23, 12, 391, 240, 130, 232], [201, 261, 325, 300, 140, 104]),
        ({"positive": 0.05}, (110, 100), [182, 336, 154, 248, 98, 272], [250, 320, 292, 2, 170, 14]),
        ({"positive": 0.95}, (110, 100), [19, 137, 255, 355, 273, 237], [145, 43, 315, 47, 57, 314]),
    ],
)
def test_splits_are_those_of_sae_probes(how, sizes, first, held):
    train, test = split(np.arange(400) % 2, **how)
    assert (len(train), len(test)) == sizes
    assert train[:6].tolist() == first
    assert test[:6].tolist() == held
    assert not set(train) & set(test)


def test_a_split_of_unequal_classes_is_balanced_as_far_as_rows_reach():
    labels = ["no"] * 260 + ["yes"] * 140
    train, test = split(labels, train=200)
    for part, count in ((train, 100), (test, 40)):
        assert sum(labels[i] == "yes" for i in part) == count
        assert abs(len(part) - 2 * count) <= 1
    for positive in (0.05, 0.2, 0.95):
        parts = split(labels, positive=positive)
        for part in parts:
            assert sum(labels[i] == "yes" for i in part) == int(np.ceil(positive * len(part)))
        assert [len(part) for part in parts] == [len(part) for part in split(labels, positive=0.5)]


# k-sparse probes


def test_the_latent_that_is_the_label_is_found_and_its_sign_does_not_matter():
    x, y = planted()
    for signs in (None, FLIPPED):
        (found,) = probe(mirror(signs), x, y, ks=(1,))
        assert found == {"k": 1, "auc": 1.0, "accuracy": 1.0, "f1": 1.0, "latents": (3,)}
    both = [probe(mirror(signs), sparse_rows(300, 5), y, ks=(1, 4, 12)) for signs in (None, FLIPPED)]
    for one, other in zip(*both, strict=True):
        assert one["latents"] == other["latents"]
        assert one["auc"] == pytest.approx(other["auc"], abs=1e-6)


def test_latents_are_ranked_as_plain_loops_rank_them():
    x, y = sparse_rows(300, 2) * np.logspace(-2, 2, P, dtype=np.float32), np.arange(300) % 2
    train, test = split(y)
    score = []
    for j in range(P):
        column = [float(v) for v in x[train, j]]
        on = [abs(v) for v in column if v != 0]
        size = sum(on) / len(on)
        means = [sum(v for v, c in zip(column, y[train], strict=True) if c == k) / sum(y[train] == k) for k in (0, 1)]
        score.append((-abs(means[1] - means[0]) / size, j))
    (found,) = probe(mirror(), x, y, (train, test), ks=(P,))
    assert list(found["latents"]) == [j for _, j in sorted(score)]


def test_codes_without_the_label_leave_a_probe_at_chance():
    y = np.arange(900) % 2
    for row in probe(mirror(), sparse_rows(900, 3), y, ks=(1, 12)):
        assert abs(row["auc"] - 0.5) < 0.2  # 99 rows are tested: 3.5 deviations
    with_label = planted(900)[0]
    for row in probe(mirror(), with_label, np.random.default_rng(0).permutation(y), ks=(1, 12)):
        assert abs(row["auc"] - 0.5) < 0.2


@pytest.mark.parametrize("count", [3, 6, 60, 200])
def test_the_regression_is_the_protocols(count):
    rng = np.random.default_rng(count)
    y = np.arange(320) % 2
    x = (sparse_rows(320, 4, 0.8) + 0.6 * y[:, None] * rng.random(P)).astype(np.float32)
    train, test = split(y, train=count)
    X, held = x[train].astype(float), x[test].astype(float)
    if count <= 3:
        folds = []
    elif count <= 12:
        pairs = itertools.combinations(range(count), 2)
        folds = [([i for i in range(count) if i not in pair], list(pair)) for pair in pairs]
    elif count < 128:
        folds = list(StratifiedKFold(6, shuffle=True, random_state=42).split(X, y[train]))
    else:
        folds = [(list(range(count - count // 5)), list(range(count - count // 5, count)))]
    best, strength = -1.0, 1.0
    for C in 10.0 ** np.linspace(5, -5, 10) if folds else []:
        scores = []
        for fit, out in folds:
            t, v = y[train][fit], y[train][out]
            if len(set(v)) == 2:
                model = (
                    LogisticRegression(C=C, random_state=42, max_iter=1000).fit(X[fit], t) if len(set(t)) == 2 else 0
                )
                scores.append(roc_auc_score(v, model.predict_proba(X[out])[:, 1]) if model else 0.5)
        if np.mean(scores) > best:
            best, strength = np.mean(scores), C
    order = np.random.RandomState(42).permutation(count)
    model = LogisticRegression(C=strength, random_state=42, max_iter=1000).fit(X[order], y[train][order])
    (found,) = probe(mirror(), x, y, (train, test), ks=(P,))
    columns = list(found["latents"])
    assert sorted(columns) == list(range(P))
    assert found["accuracy"] == pytest.approx((model.predict(held) == y[test]).mean(), abs=0.01)
    assert found["auc"] == pytest.approx(roc_auc_score(y[test], model.decision_function(held)), abs=2e-3)
    assert found["f1"] == pytest.approx(f1_score(y[test], model.predict(held), average="weighted"), abs=0.01)


def test_dense_probes_are_a_regression_and_a_difference_of_means():
    x, y = planted(seed=8)
    x = x + np.float32(0.5) * y[:, None] * np.arange(P, dtype=np.float32)
    train, test = split(y)
    found = dense_probes(torch.from_numpy(x), y, (train, test))
    assert list(found) == ["logistic regression", "difference in means"]
    means = [np.mean([x[i] for i in train if y[i] == c], axis=0) for c in (0, 1)]
    nearer = [  # along the line through both means
        2 * float((x[i].astype(float) - (means[0] + means[1]) / 2) @ (means[1] - means[0])) for i in test
    ]
    assert found["difference in means"]["accuracy"] == pytest.approx(
        np.mean([(s > 0) == y[i] for s, i in zip(nearer, test, strict=True)])
    )
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, i in zip(nearer, test, strict=True)
        if y[i]
        for b, j in zip(nearer, test, strict=True)
        if not y[j]
    ]
    assert found["difference in means"]["auc"] == pytest.approx(np.mean(pairs))
    assert found["logistic regression"]["auc"] == 1.0


def test_more_steps_are_probed_as_one_step_is():
    x, y = planted()
    torch.manual_seed(0)
    sae = px.abstopk_sae(P, 40, k=3)
    deep = sae.unrolled(4, px.ExactStep())
    z = deep.encode(torch.from_numpy(x)).detach().numpy()
    (found,) = probe(deep, x, y, ks=(2,))
    twin = px.SAE(40, 40, px.L1(0.0))
    with torch.no_grad():
        twin.W_dec.copy_(torch.eye(40))
        twin.W_enc.copy_(torch.eye(40))
    (want,) = probe(twin, z, y, ks=(2,))
    assert found == want


# targeted perturbation


def classes(n=300, count=5, seed=0):
    """Rows of five classes, each with a latent of its own, that is 4 or more there; latents 5 to 7 tell nothing."""
    rng = np.random.default_rng(seed)
    y, x = np.arange(n) % count, np.zeros((n, P), np.float32)
    x[np.arange(n), y] = 4 + rng.random(n)
    x[:, 5:8] = sparse_rows(n, seed)[:, 5:8]
    return x, y


def test_disjoint_latents_take_half_of_their_own_accuracy_and_nothing_of_others():
    x, y = classes()
    for signs in (None, FLIPPED):
        first, last = tpp(mirror(signs), x, y, ns=(1, 12))
        assert first == {"n": 1, "tpp": 0.5, "intended": 0.5, "unintended": 0.0, "accuracy": 1.0}
        assert last["n"] == 12


def test_latents_that_all_classes_share_are_not_targeted():
    x, y = classes()
    mix = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0].astype(np.float32)
    x[:, :5] = x[:, :5] @ mix
    found = tpp(mirror(), x, y, ns=(5,))[0]
    assert found["accuracy"] == 1.0
    assert found["tpp"] < 0.45


def test_perturbation_is_that_of_plain_loops():
    rng = np.random.default_rng(3)
    x, y = classes(150, 3)
    x = x + rng.standard_normal(x.shape).astype(np.float32)
    torch.manual_seed(0)
    sae = px.abstopk_sae(P, 30, k=4)
    parts = (np.arange(90), np.arange(90, 150))
    z = sae.encode(torch.from_numpy(x)).detach().double().numpy()
    atoms = sae.W_dec.detach().double().numpy()
    train, test = parts
    middle, spread = x[train].astype(float).mean(0), x[train].astype(float).std(0)
    models = [
        LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000).fit(
            (x[train] - middle) / spread, y[train] == c
        )
        for c in range(3)
    ]

    def accuracy(rows, c):
        said, own = models[c].predict((rows - middle) / spread), y[test] == c
        return 0.5 * (said[own].mean() + (~said[~own]).mean())

    intended, unintended = [], []
    for c in range(3):
        own = y[train] == c
        effects = []
        for j in range(30):
            more = np.abs(z[train][own, j]).mean() > np.abs(z[train][~own, j]).mean()
            along = float(models[c].coef_[0] / spread @ atoms[j])
            effects.append((z[train][own, j].mean() - z[train][~own, j].mean()) * along if more else 0.0)
        gone = sorted((j for j in range(30) if effects[j]), key=lambda j: -effects[j])[:4]
        rows = np.array([x[i] - sum(z[i, j] * atoms[j] for j in gone) for i in test])
        for other in range(3):
            (intended if other == c else unintended).append(accuracy(x[test], other) - accuracy(rows, other))
    (found,) = tpp(sae, x, y, parts, ns=(4,))
    assert found["intended"] == pytest.approx(np.mean(intended))
    assert found["unintended"] == pytest.approx(np.mean(unintended))
    assert found["intended"] > 0.05


def test_a_normalised_sae_is_perturbed_in_the_units_of_its_rows():
    x, y = classes()
    x[:, 11] = 1
    sae = px.SAE(P, P, px.L1(0.0), normalize="constant_norm")
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(P))
        sae.W_enc.copy_(torch.eye(P))
    assert tpp(sae, x, y, ns=(1,)) == tpp(mirror(), x, y, ns=(1,))


# spurious correlation


def biased(n=400, seed=0):
    """Rows with a wanted attribute in latent 0, and a spurious one in latents 1 and 2."""
    rng = np.random.default_rng(seed)
    a, b = np.arange(n) % 2, np.arange(n) // 2 % 2
    x = np.zeros((n, P), np.float32)
    x[:, 0] = 2 * a - 1 + 0.4 * rng.standard_normal(n)
    x[:, 1:3] = (4 * b - 2)[:, None] + 0.4 * rng.standard_normal((n, 2))
    return x, a, b


def test_a_bias_is_gone_with_its_latents_and_stays_with_others():
    x, a, b = biased()
    for signs in (None, FLIPPED):
        one, two, all_of_them = scr(mirror(signs), x, a, b, ns=(1, 2, 12))
        assert one["biased"] == two["biased"] < 0.7
        assert one["scr"] < two["scr"]
        assert two["scr"] == pytest.approx(1, abs=0.05)
        assert two["unbiased"] > 0.97
        assert all_of_them["ablated"] == 0.5
    before = px.abstopk_sae(P, P, k=1)  # with atoms that hold nothing of either
    with torch.no_grad():
        before.W_dec.copy_(torch.roll(torch.eye(P), 5, 0))
        before.W_enc.copy_(before.W_dec.T)
        before.W_enc[:3] = 0
        before.W_dec[:, :3] = 0
    (found,) = scr(before, x, a, b, ns=(2,))
    assert found["scr"] == 0


def test_without_harm_there_is_no_share():
    x, a, b = biased()
    x[:, 0] *= 100
    x[:, 1:3] = 0.01 * x[:, 5:7]
    (found,) = scr(mirror(), x, a, b, ns=(1,))
    assert found["scr"] is None
    assert found["biased"] == found["unbiased"]


# absorption


def absorbing(sign=1.0):
    """An SAE and rows of four classes: latent 0 tells "s", but on six words of it another one fires alone.

    Atom 0 is the axis of "s"; atoms 1 to 6 are that axis and one of their own, 7 to 9 those of other classes.
    """
    atoms = torch.eye(P)
    atoms[1:7, 0] = 1
    atoms[:7] *= sign / atoms[:7].norm(dim=1, keepdim=True)
    sae = px.SAE(P, P, px.L0(0.005))
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(torch.linalg.inv(atoms))
    rng, number = np.random.default_rng(0), np.arange(480) % 240
    label, word = np.array(list("stuv"))[number % 4], number // 4
    z = np.zeros((480, P), np.float32)
    for j, c in ((0, "s"), (7, "t"), (8, "u"), (9, "v")):
        z[label == c, j] = 4 + rng.random((label == c).sum())
    taken = (label == "s") & (word < 6)  # of sixty, in either part
    z[taken, 0], z[taken, 1 + word[taken]] = 0, 6
    z[:, 10:] = rng.random((480, 2)) < 0.3
    z[:, :7] *= sign
    parts = (np.arange(240), np.arange(240, 480))
    return sae, (torch.from_numpy(z) @ atoms).numpy(), label, taken, parts


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_planted_absorbers_are_found_on_their_rows(sign):
    sae, x, label, _, parts = absorbing(sign)
    table = absorption(sae, x, label, parts)
    assert [row["label"] for row in table] == list("stuv")
    assert (table[0]["latents"], table[0]["rows"], table[0]["f1"]) == ((0,), 60, 1)
    assert table[0]["full"] == pytest.approx(0.1)
    assert table[0]["fraction"] == pytest.approx(0.1)
    for row, latent in zip(table[1:], (7, 8, 9), strict=True):
        assert (row["latents"], row["f1"], row["full"], row["fraction"]) == ((latent,), 1, 0, 0)


def test_where_the_latent_fires_a_little_the_row_is_absorbed_in_part():
    sae, x, label, taken, parts = absorbing()
    x[taken] += sae.W_dec[0].detach().numpy()  # the latent of the class fires with 1 there, and the absorber with 6
    found = absorption(sae, x, label, parts)[0]
    absorbed = 6 / np.sqrt(2)  # on the axis of "s", near which the probe is
    assert (found["latents"], found["full"]) == ((0,), 0)
    assert found["fraction"] == pytest.approx(0.1 * absorbed / (1 + absorbed), rel=0.1)


def test_a_class_that_needs_two_latents_has_them():
    sae, _, label, _, parts = absorbing()
    z = np.zeros((480, P), np.float32)
    half = np.arange(480) // 4 % 2 == 0
    for j, rows in ((10, (label == "s") & half), (11, (label == "s") & ~half), (7, label == "t"), (8, label == "u")):
        z[rows, j] = 4
    found = absorption(sae, z @ sae.W_dec.detach().numpy(), label, parts)[0]
    assert sorted(found["latents"]) == [10, 11]
    assert (found["full"], found["fraction"]) == (0, 0)


def test_a_latent_that_hardly_helps_is_none_of_the_class():
    sae, _, label, _, parts = absorbing()
    z, row = np.zeros((480, P), np.float32), np.arange(480)
    rare = (label == "s") & ((row < 40) | (row == 240))  # ten of sixty in training, and one in the test
    for j, rows in ((10, (label == "s") & ~rare), (11, rare), (7, label == "t"), (8, label == "u"), (9, label == "v")):
        z[rows, j] = 4
    assert absorption(sae, z @ sae.W_dec.detach().numpy(), label, parts)[0]["latents"] == (10,)


# bad input

X, Y = planted(60)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probe(mirror(), X, Y[:9]), r"labels has shape \(9,\), but 60 rows need one label each"),
        (lambda: probe(mirror(), X, np.zeros(60)), r"labels has 1 classes \(0.0\), but needs two"),
        (lambda: probe(mirror(), X, np.arange(60)), r"60 classes \(0, 1, 2, ...\), but needs two: px.models.tpp takes"),
        (lambda: probe(mirror(), X, [None, "a"] * 30), r"labels holds values that cannot be sorted, such as None"),
        (lambda: probe(mirror(), X, np.where(Y, np.nan, 1)), r"labels holds NaN or infinity"),
        (lambda: probe(mirror(), X[:, :5], Y), r"activations has shape \(60, 5\), but this SAE needs \(n, 12\)"),
        (lambda: probe(mirror(), X, Y), r"30 rows of one class and 30 of the other are too few to train on at least 2"),
        (lambda: probe(mirror(), X, Y, ([0, 1, 2], [2, 3])), r"parts share row 2"),
        (lambda: probe(mirror(), X, Y, ([0, 1], [2, 4])), r"the test part of parts lacks class 1"),
        (lambda: probe(mirror(), X, Y, ([0, 1], [60])), r"two arrays of row numbers in \[0, 60\)"),
        (lambda: probe(mirror(), X, Y, 3), r"parts=3 must be two arrays of row numbers"),
        (lambda: probe(mirror(), X, Y, split(Y, 20), ks=(13,)), r"k=13 exceeds the 12 latents"),
        (lambda: probe(mirror(), X, Y, split(Y, 20), ks=()), r"ks is empty"),
        (lambda: probe(None, X, Y), r"sae"),
        (lambda: probe(mirror(), X, Y, split(Y, 20), seed=-1), r"seed=-1 must be"),
        (lambda: dense_probes(X * np.nan, Y), r"rows of shape \(60, 12\) and torch.float32 must be finite floats"),
        (lambda: dense_probes(Y, Y), r"must be finite floats"),
        (lambda: split(Y, positive=0.01), r"positive=0.01 must be a share in \[0.05, 0.95\]"),
        (lambda: split(Y, train=59), r"30 rows of one class and 30 of the other are too few to train on 59"),
        (lambda: split(Y[:, None]), r"labels has shape"),
        (lambda: tpp(mirror(), X, np.arange(60) // 2), r"labels has a class with 2 rows, but one in 3 is held out"),
        (lambda: tpp(mirror(), X, Y, ns=[-1]), r"ns"),
        (lambda: tpp(mirror(), X, Y, seed="a"), r"seed='a' must be"),
        (lambda: scr(mirror(), X, Y, Y), r"groups of 30, 0, 0, 30 rows, but each of the four needs 3"),
        (lambda: scr(mirror(), X, Y, np.arange(60)), r"spurious has 60 classes"),
        (lambda: scr(mirror(), X, Y, Y, seed=-1), r"seed=-1 must be"),
        (lambda: absorption(mirror(), X, ["a"] * 60), r"labels has 1 classes \('a'\), but needs two or more"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(px.Error, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(px.Error, match=r"sklearn is missing: pip install 'proxsae\[sklearn\]'"):
        probe(mirror(), X, Y, split(Y, 20), ks=(1,))

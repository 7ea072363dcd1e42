"""Measures against values worked out by hand; a latent fires where z != 0, whatever its sign."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import metrics
from proxsae.sae.evaluation import Spread, evaluate_depths
from proxsae.testing import assert_close

Z = torch.tensor([[-1.0, -2.0, -3.0, 0.0], [5.0, 0.0, -1.0, 0.0], [0.0, 0.0, -1.0, -0.0], [2.0, -1.0, 0.0, 0.0]])


def test_a_latent_fires_where_it_is_not_zero_whatever_its_sign():
    assert metrics.l0(Z[:1]) == 3  # all negative
    assert metrics.l0(Z) == (3 + 2 + 1 + 2) / 4
    assert metrics.l0(Z.reshape(2, 2, 4)) == 2
    assert metrics.dead_fraction(Z) == 1 / 4
    assert metrics.dead_fraction(Z[2:3]) == 3 / 4
    assert metrics.dead_fraction(-Z) == metrics.dead_fraction(Z)
    assert metrics.l0(Z[:0]) == 0


def test_sign_balance_is_the_rarer_sign_over_the_commoner():
    z = torch.tensor([[1.0, 1, -1, 0, 1], [-1, 1, -1, 0, 1], [1, 1, 0, 0, -1], [0, 1, 0, 0, 1]])
    want = torch.tensor([1 / 2, 0, 0, 0, 1 / 3])
    assert_close(metrics.sign_balance(z), want, 1e-7)
    assert_close(metrics.sign_balance(-z.reshape(2, 2, 5)), want, 1e-7)
    assert_close(metrics.sign_balance(torch.tensor([[1.0], [-3.0]])), torch.ones(1), 1e-7)


@pytest.mark.parametrize(
    ("before", "after", "distance"),
    [
        ([[1.0, 1, 0, 0]], [[0, 1.0, 1, 0]], 2 / 3),
        ([[1.0, 1, 0, 0]], [[-5.0, 2, 0, 0]], 0),
        ([[1.0, 1, 0, 0]], [[0, 0, 1.0, 1]], 1),
        ([[0.0, 0, 0, 0]], [[0.0, 0, 0, 0]], 0),
        ([[0.0, 0, 0, 0]], [[0.0, 1, 0, 0]], 1),
        ([[1.0, 1, 0, 0], [1, 0, 0, 0]], [[0, 1.0, 1, 0], [1, 0, 0, 0]], 1 / 3),
    ],
)
def test_support_change_is_the_mean_jaccard_distance(before, after, distance):
    assert metrics.support_change(torch.tensor(before), torch.tensor(after)) == pytest.approx(distance, abs=1e-7)


def test_nmse_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    x, xhat = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[3.0, 3.0], [0.0, 0.0]])
    assert metrics.nmse(x, xhat) == pytest.approx(2 / 26)
    assert metrics.nmse(x, x) == 0
    assert metrics.nmse(x, 0 * x) == 1
    assert metrics.nmse(0 * x, 0 * x) == 0
    assert metrics.nmse(0 * x, x) == math.inf


def test_explained_variance_is_a_ratio_of_sums_about_the_mean_row():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])  # mean (3, 2): 4 + 4 + 0 + 4 + 4 + 16 = 32
    xhat = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]])  # 4 + 4 = 8
    assert metrics.explained_variance(x, xhat) == pytest.approx(3 / 4)
    assert metrics.explained_variance(x, x.mean(dim=0).expand(3, 2)) == pytest.approx(0, abs=1e-7)
    assert metrics.explained_variance(x + 100, xhat + 100) == pytest.approx(3 / 4)


def test_cosine_is_a_mean_over_rows():
    x, xhat = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert metrics.cosine(x, xhat) == pytest.approx((1 + math.sqrt(0.5) - 1) / 3)


def test_no_measure_hangs_on_the_unit_of_the_rows():
    """Also where squares leave float64's range: a power of two changes no bit, another factor hardly one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    xhat = x + 0.3 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    D, z = x[:20], (x[20:] > 0.5) * x[20:]
    for measure, one, other in (
        *((m, x, xhat) for m in (metrics.nmse, metrics.explained_variance, metrics.cosine)),
        *((m, D, xhat[:20]) for m in (metrics.recovery, metrics.support_f1, metrics.coefficient_error)),
        (metrics.support_change, z, xhat[20:]),
    ):
        want = measure(one, other)
        for unit in (2.0**-800, 2.0**900):
            assert measure(unit * one, unit * other) == want, measure
        for unit in (1e-300, 1e-10, 1e200, 1e300):
            assert measure(unit * one, unit * other) == pytest.approx(want, rel=1e-12), measure
    rows = 10.0 ** torch.linspace(-300, 300, 40, dtype=torch.float64)[:, None] * x
    assert metrics.cosine(rows, x) == pytest.approx(1, rel=1e-12)
    assert metrics.cosine(rows, rows) == pytest.approx(1, rel=1e-12)
    assert metrics.cosine(0 * x, x) == 0
    assert metrics.nmse(torch.full((1, 1), 5e-324, dtype=torch.float64), torch.zeros(1, 1).double()) == 1


@pytest.mark.parametrize(
    "measure", ["nmse", "explained_variance", "cosine", "support_change", "support_f1", "coefficient_error"]
)
@pytest.mark.parametrize("shape", [(4, 1, 8), (8,), (1, 8), (8, 4), (4, 1), ()])
def test_shapes_that_differ_are_refused_and_not_broadcast(measure, shape):
    for one, other in ((torch.ones(4, 8), torch.ones(shape)), (torch.ones(shape), torch.ones(4, 8))):
        with pytest.raises(px.Error, match=r"need one shape, row by row|is a single number"):
            getattr(metrics, measure)(one, other)


@pytest.mark.parametrize("other", [torch.ones(3, 5), torch.ones(4), torch.full((3, 4), torch.nan)])
def test_dictionaries_that_do_not_fit_are_not_matched(other):
    for one, two in ((torch.ones(3, 4), other), (other, torch.ones(3, 4))):
        with pytest.raises(px.Error, match=r"of one width|must be finite"):
            metrics.match(one, two)


def test_recovery_sees_through_order_sign_and_length():
    generator = torch.Generator().manual_seed(0)
    D = torch.randn(12, 8, generator=generator)
    scales = torch.linspace(-3, 3, 12)[:, None]
    assert metrics.recovery((scales * D)[torch.randperm(12, generator=generator)], D) == pytest.approx(1)
    assert metrics.recovery(D[:5], D) == pytest.approx(1)
    assert metrics.recovery(torch.randn(12, 8, generator=generator), D) < 0.9


def test_recovery_matches_one_to_one():
    truth = torch.eye(2)
    assert metrics.recovery(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), truth) == pytest.approx(1 / 2)
    greedy = torch.tensor([[0.8, 0.6], [1.0, 0.0]])  # the first would take the atom that the second needs
    assert metrics.recovery(greedy, truth) == pytest.approx((0.6 + 1) / 2)


def best_sum(similarity):
    """The largest sum over one-to-one matchings, by trying all of them."""
    if len(similarity) > len(similarity[0]):
        similarity = [list(column) for column in zip(*similarity, strict=True)]
    columns = range(len(similarity[0]))
    return max(
        sum(row[j] for row, j in zip(similarity, order, strict=True))
        for order in itertools.permutations(columns, len(similarity))
    )


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("P", "others"), [(5, 5), (3, 6), (6, 3), (1, 4)])
def test_a_match_is_the_best_of_all_matchings(P, others, signed):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        D, truth = rng.standard_normal((P, 3)), rng.standard_normal((others, 3))
        cosines = (D @ truth.T) / np.linalg.norm(D, axis=1)[:, None] / np.linalg.norm(truth, axis=1)
        found = metrics.match(torch.tensor(D), torch.tensor(truth), signed)
        assert len(found.own) == len(set(found.own.tolist())) == len(set(found.true.tolist())) == min(P, others)
        assert_close(found.cosine, torch.tensor(cosines[found.own.numpy(), found.true.numpy()]), 1e-12)
        reached = found.cosine.abs() if signed else found.cosine
        best = best_sum((np.abs(cosines) if signed else cosines).tolist())
        assert float(reached.sum()) == pytest.approx(best, abs=1e-12)


def flipped_copy(P=12, d=8):
    """A dictionary and codes, and the same with another order and other signs: D, z, and theirs."""
    generator = torch.Generator().manual_seed(0)
    D = torch.nn.functional.normalize(torch.randn(P, d, generator=generator), dim=1)
    z = torch.randn(50, P, generator=generator) * (torch.rand(50, P, generator=generator) < 0.3)
    order, signs = torch.randperm(P, generator=generator), torch.tensor([1.0, -1.0, -1.0]).repeat(P // 3)
    return D, z, signs[:, None] * D[order], signs * z[:, order]


def test_permuted_and_flipped_dictionaries_recover_everything():
    D, z, other, theirs = flipped_copy()
    matched = metrics.match(other, D)
    assert_close(matched.cosine.abs(), torch.ones(12, dtype=torch.float64), 1e-6)
    moved = metrics.aligned(theirs, matched, 12)
    assert_close(moved, z, 0)
    assert metrics.support_f1(moved, z) == 1
    assert metrics.coefficient_error(moved, z) == 0
    assert metrics.code_iou(theirs, z, matched) == 1
    assert metrics.support_f1(theirs, z) < 0.6
    assert metrics.code_iou(z, z, matched) < 0.6  # these codes are not of the atoms that were matched


def test_codes_of_fewer_atoms_are_aligned_and_of_more_refused():
    D, _, _, _ = flipped_copy()
    z = torch.tensor([[1.0, 2.0]], dtype=torch.float16)
    moved = metrics.aligned(z, metrics.match(-D[[7, 3]], D), 12)
    assert_close(moved, torch.tensor([[0, 0, 0, -2.0, 0, 0, 0, -1, 0, 0, 0, 0]], dtype=torch.float16), 0)
    with pytest.raises(px.Error, match="z has 12 latents, but 2 matches"):
        metrics.aligned(torch.ones(1, 12), metrics.match(D, D[:2]), 2)


def test_support_f1_counts_entries_of_one_sign():
    truth = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    z = torch.tensor([[5.0, 1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]])  # one hit; 3 entries and 3 true ones
    assert metrics.support_f1(z, truth) == pytest.approx(2 / 6)
    assert metrics.support_f1(-z, truth) == pytest.approx(2 / 6)
    assert metrics.support_f1(truth, truth) == 1
    assert metrics.support_f1(-truth, truth) == 0
    assert metrics.support_f1(0 * z, truth) == 0
    assert metrics.support_f1(0 * z, 0 * z) == 0


def test_coefficient_error_is_a_ratio_of_norms_over_all_rows():
    truth, z = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 8.0]])
    assert metrics.coefficient_error(z, truth) == pytest.approx(1)
    assert metrics.coefficient_error(0 * z, truth) == 1
    assert metrics.coefficient_error(1.5 * truth, truth) == pytest.approx(0.5)
    assert metrics.coefficient_error(1.5 * truth[:1].half(), truth[:1].half()) == pytest.approx(0.5)


def test_code_iou_is_a_mean_over_rows_that_signs_do_not_touch():
    matched = metrics.match(torch.eye(4)[[1, 0, 2, 3]], torch.eye(4))
    z = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    other = torch.tensor([[-1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert metrics.code_iou(z, other, matched) == pytest.approx((1 / 3 + 1 + 1) / 3)


def sae_of_eye():
    """Four latents on two coordinates: +e1, +e2, and two that read nothing."""
    sae = px.abstopk_sae(2, 4, k=1)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]))
        sae.W_enc.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]))
    return sae


def test_evaluate_measures_what_the_parts_measure():
    x = torch.tensor([[2.0, 1.0], [-2.0, 0.0], [-4.0, 0.0], [0.0, 3.0]])
    for batch_size in (1, 3, 4096):
        found = px.evaluate(sae_of_eye(), x.numpy(), batch_size=batch_size)
        want = {
            "nmse": 1 / 34,
            "explained_variance": 1 - 1 / (34 - 16 / 4 - 16 / 4),
            "cosine": (2 / math.sqrt(5) + 3) / 4,
            "l0": 1.0,
            "dead": 1 / 2,
            "two_sided": 1 / 2,  # latent 0 fires +, -, -; latent 1 only +
            "sign_balance": (1 / 2 + 0) / 2,
        }
        assert found.keys() == want.keys()
        assert all(type(value) is float for value in found.values())
        for key, value in want.items():
            assert found[key] == pytest.approx(value, abs=1e-6), key


@pytest.mark.parametrize("make", [px.topk_sae, px.abstopk_sae, px.relu_sae, px.jumprelu_sae], ids=lambda m: m.__name__)
@pytest.mark.parametrize("batch_size", [1, 7, 50, None])
def test_batches_give_the_measures_of_all_rows_at_once(make, batch_size):
    torch.manual_seed(0)
    sae = make(8, 24, *([3] if "topk" in make.__name__ else [0.3]))
    with torch.no_grad():
        sae.b_dec.normal_()
    x = torch.randn(50, 8) * torch.linspace(0.1, 10, 50)[:, None] + 5
    z = sae.encode(x).detach()
    xhat, live = sae.decode(z).detach(), (z != 0).any(dim=0)
    balance = metrics.sign_balance(z)[live]
    want = {
        "nmse": metrics.nmse(x, xhat), "explained_variance": metrics.explained_variance(x, xhat),
        "cosine": metrics.cosine(x, xhat), "l0": metrics.l0(z), "dead": metrics.dead_fraction(z),
        "two_sided": float((balance > 0).double().mean()), "sign_balance": float(balance.double().mean()),
    }  # fmt: skip
    found = px.evaluate(sae, x, batch_size)
    assert found.keys() == want.keys()
    for key, value in want.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key  # products of other batches round differently


def test_evaluate_holds_one_batch_and_counters(tmp_path):
    """The codes of all rows would be 125 MiB of float32."""
    pytest.importorskip("resource")
    code = """
import resource, sys
import numpy as np
import proxsae as px
from proxsae.sae.evaluation import evaluate_depths
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
rows = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
topk, relu = px.topk_sae(8, 16384, k=4), px.relu_sae(8, 16384, lam=0.1)
for sae in (topk, relu):
    for measure in (px.evaluate, lambda sae, x, batch_size: evaluate_depths(sae, x, [1], batch_size=batch_size)):
        measure(sae, rows[:128], batch_size=64)
        before = peak()
        measure(sae, rows, batch_size=64)
        assert peak() - before < 80, peak() - before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_equal_rows_have_no_variance_to_explain():
    for value in (0.1, 1e-24, 1e25):
        for dtype in (np.float32, np.float64):
            x = np.tile((value * np.random.default_rng(0).standard_normal((1, 9))).astype(dtype), (49, 1))
            spread = Spread(9)
            for part in np.split(x, 7):
                spread.add(torch.tensor(part))
            assert spread.centred == 0
            assert spread.square * spread.unit**2 == pytest.approx(float((x.astype(float) ** 2).sum()))


def test_evaluations_do_not_hang_on_the_unit_of_the_rows():
    x = torch.tensor([[2.0, 1.0], [-2.0, 0.0], [-4.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    sae, want = sae_of_eye().double(), (2 / math.sqrt(5) + 3) / 4
    for unit in (2.0**-700, 2.0**700):  # whose squares are 0, and infinite
        assert px.evaluate(sae, unit * x, batch_size=3) == px.evaluate(sae, x, batch_size=3)
    for unit in (1e-120, 1e-10, 1e120):
        assert px.evaluate(sae, unit * x)["cosine"] == pytest.approx(want, abs=1e-12)
        (row,) = evaluate_depths(sae, unit * x, steps=[1])
        assert row["cosine"] == pytest.approx(want, abs=1e-12)
        assert row["nmse"] == pytest.approx(1 / 34, abs=1e-12)


def test_evaluate_converts_the_dtype_of_the_rows():
    x = np.array([[2.0, 1.0], [-2.0, 0.0]])
    assert px.evaluate(sae_of_eye(), x.astype(np.float16)) == px.evaluate(sae_of_eye(), x)
    assert px.evaluate(sae_of_eye().double(), x.astype(np.float32))["nmse"] == pytest.approx(1 / 9)


def test_evaluate_of_codes_that_are_all_zero_has_no_nan():
    found = px.evaluate(sae_of_eye(), np.zeros((3, 2)))
    assert (found["l0"], found["dead"], found["two_sided"], found["nmse"]) == (0, 1, 0, 0)
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((0, 2)), "n >= 1"),
        (np.array([[np.nan, 1.0]]), "NaN"),
        (np.array([[np.inf, 1.0]]), "infinite"),
        (np.ones((3, 5)), "5"),
        (np.ones((3, 2), dtype=int), "int64"),
        (np.ones(2), r"shape \(2,\)"),
        (np.ones((2, 3, 3)), r"shape \(2, 3, 3\)"),
    ],
    ids=["no rows", "NaN", "infinity", "width", "integers", "one axis", "three axes"],
)
def test_evaluate_refuses_bad_rows_in_one_sentence(rows, says):
    with pytest.raises(px.Error, match=says) as error:
        px.evaluate(sae_of_eye(), rows)
    assert "\n" not in str(error.value)


def test_half_precision_is_measured_in_float64():
    x = 300 * torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    xhat = x + torch.randn(500, 16, generator=torch.Generator().manual_seed(1))
    for name in ("nmse", "explained_variance", "cosine"):
        measure = getattr(metrics, name)
        exact = measure(x.half().double(), xhat.half().double())
        assert measure(x.half(), xhat.half()) == pytest.approx(exact, rel=1e-9)

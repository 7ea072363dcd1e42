"""Greedy pursuit in torch against its reference in NumPy, its gradients, and SAEs that encode by it."""

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.pytorch.greedy import pursue
from proxsae.reference.pursuit import mp, omp
from proxsae.testing import assert_close, assert_same
from tests.test_learned import stopped_at_its_second_checkpoint

SIGNS = pytest.mark.parametrize("nonneg", [False, True])
RULES = pytest.mark.parametrize("rule", [px.MatchingPursuit(), px.OMP()], ids=repr)


def problem(n=40, d=10, P=30, seed=0, norms=True):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((P, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    if norms:
        D *= rng.uniform(0.2, 5, (P, 1))
    return rng.standard_normal((n, d)), D


def codes(rule, x, D, k, nonneg):
    found = []
    for _, point in zip(
        range(k), pursue(rule, torch.from_numpy(x), torch.from_numpy(D), px.KSparse(k, nonneg)), strict=False
    ):
        found.append(point)
    return found


@SIGNS
@pytest.mark.parametrize("norms", [False, True])
def test_matching_pursuit_is_that_of_numpy(nonneg, norms):
    x, D = problem(norms=norms)
    for t, point in enumerate(codes(px.MatchingPursuit(), x, D, 8, nonneg), start=1):
        assert_close(point.z.numpy(), mp(x, D, t, nonneg), 1e-9)
        assert_close(point.residual().numpy(), point.z.numpy() @ D - x, 1e-9)
        assert_same(point.spent.numpy(), np.full(len(x), float(t)))


def test_orthogonal_matching_pursuit_is_that_of_numpy():
    x, D = problem()
    for t, point in enumerate(codes(px.OMP(), x, D, 6, False), start=1):
        assert_close(point.z.numpy(), omp(x, D, t), 1e-8)


def test_non_negative_pursuit_keeps_signs_and_never_raises_the_error():
    """Its least squares stops at the first sign change: it is near the textbook's, and no further off than MP."""
    x, D = problem(norms=False)
    errors = [np.square(x).sum(axis=1)]
    for point in codes(px.OMP(), x, D, 6, True):
        assert float(point.z.min()) >= 0
        errors.append(point.residual().square().sum(dim=1).numpy())
        assert bool((errors[-1] <= errors[-2] + 1e-12).all())
    textbook = np.square(omp(x, D, 6, True) @ D - x).sum(axis=1)
    greedy = np.square(mp(x, D, 6, True) @ D - x).sum(axis=1)
    assert errors[-1].mean() < greedy.mean()
    assert np.median(errors[-1] - textbook) < 1e-9


@SIGNS
@RULES
def test_a_zero_atom_is_never_chosen(rule, nonneg):
    x, D = problem()
    D[7] = 0
    *_, last = codes(rule, x, D, 6, nonneg)
    assert not last.z[:, 7].any()
    assert bool(last.z.isfinite().all())


@SIGNS
@RULES
def test_a_row_that_is_fitted_stays_as_it_is(rule, nonneg):
    _, D = problem(norms=False)
    x = np.stack([2 * D[3], np.zeros(10), -D[4] if not nonneg else D[4]])
    *_, last = codes(rule, x, D, 5, nonneg)
    want = np.zeros((3, 30))
    want[0, 3], want[2, 4] = 2, 1 if nonneg else -1
    assert_close(last.z.numpy(), want, 1e-12)


@SIGNS
@RULES
@pytest.mark.parametrize("norms", [False, True])
def test_gradients_are_those_of_the_chosen_atoms(rule, nonneg, norms):
    x, D = problem(n=4, seed=3, norms=norms)
    x, D = torch.from_numpy(x).requires_grad_(), torch.from_numpy(D).requires_grad_()
    R = px.KSparse(3, nonneg)

    def run(x, D):
        for _, point in zip(range(3), pursue(rule, x, D, R), strict=False):
            last = point
        return last.z, last.residual()

    assert torch.autograd.gradcheck(run, (x, D), atol=1e-6)


@SIGNS
@RULES
def test_an_sae_encodes_by_pursuit_is_trained_and_comes_back(rule, nonneg, tmp_path):
    data = px.data.planted(n=300, d_in=10, d_sae=30, k=3, signed=not nonneg, seed=1).x
    torch.manual_seed(0)
    sae = px.SAE(10, 30, px.KSparse(3, nonneg), 3, rule).double()
    with torch.no_grad():
        sae.b_dec.normal_(0, 0.1)
        sae.W_enc.normal_()  # which pursuit does not use
    x = torch.from_numpy(data)
    textbook = mp if rule == px.MatchingPursuit() else omp
    if not nonneg or textbook is mp:
        want = textbook(data - sae.b_dec.detach().numpy(), sae.W_dec.detach().numpy(), 3, nonneg)
        assert_close(sae.encode(x).detach().numpy(), want, 1e-8)
    assert_same(sae.encode_sparse(x).to_dense().detach(), sae.encode(x).detach())
    assert_same(sae.refine(x, torch.zeros(300, 30).double()).detach(), sae.encode(x).detach())
    before = px.evaluate(sae, data)["nmse"]
    px.train(sae, data, steps=60, batch_size=100, progress=False)
    assert px.evaluate(sae, data)["nmse"] < 0.7 * before
    assert_same(sae.W_enc.detach(), sae.W_dec.detach().T)
    assert not sae.b_enc.any()
    assert sae.W_enc.requires_grad
    sae.save(tmp_path / "sae")
    assert_same(px.load(tmp_path / "sae").encode(x).detach(), sae.encode(x).detach())


@RULES
def test_a_run_by_pursuit_goes_on_to_the_bit(rule, tmp_path):
    data = px.data.planted(n=200, d_in=10, d_sae=30, k=3, seed=1).x

    def trained(steps, folder=None):
        torch.manual_seed(0)
        sae = px.SAE(10, 30, px.KSparse(3), 3, rule)
        px.train(sae, data, steps, 50, progress=False, checkpoint=folder, every=2)
        return sae.state_dict()

    whole = trained(6)
    with pytest.raises(px.Error, match="the checkpoint of step 2 stays"), stopped_at_its_second_checkpoint():
        trained(6, tmp_path / "run")
    for name, a in trained(6, tmp_path / "run").items():
        assert_same(a, whole[name])


def test_what_cannot_be_is_one_sentence():
    for made in (
        lambda: px.SAE(10, 30, px.KSparse(3), 4, px.OMP()),
        lambda: px.SAE(10, 30, px.L1(0.1), 3, px.MatchingPursuit()),
        lambda: px.topk_sae(10, 30, 2).unrolled(3, px.OMP()),
    ):
        with pytest.raises(px.Error, match=r"takes an atom a step, so it needs KSparse\(k\) with k >= steps="):
            made()
    with pytest.raises(px.Error, match="b_enc='every': it knows no linear term"):
        px.SAE(10, 30, px.KSparse(3), 3, px.OMP(), b_enc="every")
    with pytest.raises(px.Error, match=r"step=OMP\(\) cannot be exported"):
        px.SAE(10, 30, px.KSparse(3), 1, px.OMP()).export("nowhere")
    with pytest.raises(px.Error, match="frozen is for k-sparse steps by the dictionary"):
        px.SAE(10, 30, px.KSparse(3), 3, px.OMP()).frozen(10)

"""Planted rows of kind "synthsae" fire, exclude each other and scale as `planted` says; parents by another formula."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import norm

import proxsae as px
from proxsae.data.synthetic import Synthetic, spread_atoms
from proxsae.testing import assert_close, assert_same

N, P, K = 40000, 127, 2  # one tree of 85 latents, and 42 latents in none
PARENTS = {child: (child - 1) // 4 for child in range(1, 85)}  # breadth first: those of j are 4 j + 1 ... 4 j + 4


@pytest.fixture(scope="module")
def data():
    return px.data.planted(N, 24, P, K, kind="synthsae", seed=3)


@pytest.fixture(scope="module")
def fires(data):
    return data.z > 0


def near(rates, want, errors=5):
    """Rates (P,) of N rows lie within so many standard errors of `want`."""
    np.testing.assert_array_less(np.abs(rates - want), errors * np.sqrt(want * (1 - want) / N) + 1e-12)


def rates_by_counting(p, means, deviations):
    """How often each latent fires when drawn with probabilities p: every draw of siblings, one by one."""
    shows = p * norm.sf(0, means, deviations)
    rates = shows.copy()
    for parent in sorted(set(PARENTS.values())):
        siblings = [child for child, its in PARENTS.items() if its == parent]
        wins = dict.fromkeys(siblings, 0.0)
        for draw in itertools.product([False, True], repeat=4):
            chance = np.prod([shows[c] if drawn else 1 - shows[c] for c, drawn in zip(siblings, draw, strict=True)])
            for child, drawn in zip(siblings, draw, strict=True):
                wins[child] += chance * drawn / max(1, sum(draw))
        for child in siblings:
            rates[child] = rates[parent] * wins[child]
    return rates


def asked_by_formula():
    """Probabilities to draw with, up to the scale of those that have no parent."""
    law = np.arange(1, P + 1) ** -0.5
    p = 5e-4 + (0.4 - 5e-4) * (law - law[-1]) / (law[0] - law[-1])
    asked = p.copy()
    for child, parent in PARENTS.items():
        others = sum(p[c] for c, its in PARENTS.items() if its == parent and c != child)
        asked[child] = min(1, p[child] / p[parent] * (1 + others / p[parent]))
    return asked


def test_rows_are_codes_times_atoms_and_a_bias(data):
    assert (data.x.shape, data.D.shape, data.z.shape, data.bias.shape) == ((N, 24), (P, 24), (N, P), (24,))
    assert_same(data.x, data.z @ data.D + data.bias)
    assert_close(np.linalg.norm(data.D, axis=1), np.ones(P), 1e-14)
    assert np.linalg.norm(data.bias) == pytest.approx(0.5)
    assert data.z.min() == 0
    assert not np.signbit(data.z).any()


def test_a_child_fires_with_its_parent_only_and_without_its_siblings(fires):
    for child, parent in PARENTS.items():
        assert not (fires[:, child] & ~fires[:, parent]).any()
    siblings = fires[:, 1:85].reshape(N, 21, 4).sum(axis=-1)
    assert siblings.max() == 1
    assert (fires[:, :21] & (siblings == 0)).any()  # and now and then a parent without children


def test_latents_fire_as_often_as_all_draws_of_siblings_say(fires):
    problem = Synthetic(24, P, K)
    asked = asked_by_formula()
    free = np.setdiff1d(np.arange(P), list(PARENTS))
    asked[free] *= problem.asked[0] / asked[0]
    assert_close(problem.asked, asked, 1e-12)
    want = rates_by_counting(asked, problem.means, problem.deviations)
    assert want.sum() == pytest.approx(K)
    assert_close(problem.expected(), want, 1e-12)
    near(fires.mean(axis=0), want)


def test_k_non_zeros_a_row_on_average():
    for d_sae, k in ((1024, 8), (40, 1), (3, 1), (16, 0)):
        z = px.data.planted(10000, 4, d_sae, k, kind="synthsae", D=np.ones((d_sae, 4))).z
        count = (z != 0).sum(axis=1)
        assert count.mean() == pytest.approx(k, abs=5 * count.std() / 100 + 1e-9)


def test_the_size_of_the_benchmark_has_its_density():
    """34.5 of 16,384, of which 25 are of the first 4096: as published."""
    problem = Synthetic(8, 16384, 10)
    rates = problem.expected()
    rates *= 0.4 / problem.asked[0]  # where the commonest is asked for with probability 0.4
    assert rates.sum() == pytest.approx(34.5, abs=0.5)
    assert rates[:4096].sum() == pytest.approx(25, abs=0.5)


def test_magnitudes_scale_with_the_parent(data, fires):
    problem = Synthetic(24, P, K)
    means = 5 - np.arange(P) / (P - 1)
    assert_close(problem.means, means, 1e-12)
    for latent in (0, 1, 2, 90, 100):
        own = data.z[fires[:, latent], latent]
        if latent in PARENTS:
            parent = PARENTS[latent]
            own = own / (data.z[fires[:, latent], parent] / means[parent])
        spread = problem.deviations[latent]
        assert own.mean() == pytest.approx(means[latent], abs=5 * spread / np.sqrt(len(own)))
        assert own.std() == pytest.approx(spread, rel=5 / np.sqrt(2 * len(own)))
    many = Synthetic(24, 4000, 1).deviations
    assert many.mean() == pytest.approx(0.5 * (2 * norm.cdf(1) - 1) + 2 * 0.5 * norm.pdf(1), rel=0.03)


def test_supports_correlate_as_their_scores_do(fires):
    """To first order the covariance of two firings is rho phi(t) phi(t'), t the threshold of each score."""
    problem = Synthetic(24, P, K)
    free = np.setdiff1d(np.arange(P), list(PARENTS))
    rho = (problem.loadings @ problem.loadings.T)[np.ix_(free, free)]
    assert_close(np.diagonal(rho) + problem.own[free] ** 2, np.ones(len(free)), 1e-12)
    pairs = np.triu_indices(len(free), 1)
    assert rho[pairs].std() == pytest.approx(0.05, rel=0.15)
    density = norm.pdf(norm.isf(problem.asked[free]))
    want = (rho * np.outer(density, density))[pairs]
    found = np.cov(fires[:, free].T.astype(float))[pairs]
    assert (found @ want) / (want @ want) == pytest.approx(1, abs=0.15)


def test_atoms_are_spread_as_adam_spreads_them():
    rng = np.random.default_rng(0)
    D = rng.standard_normal((40, 8))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    W = torch.tensor(D, requires_grad=True)
    adam = torch.optim.Adam([W], lr=3e-4)
    for _ in range(100):
        gram = W @ W.T
        apart = gram - torch.diag(gram.diagonal())
        loss = apart.square().sum() + 40 * (gram.diagonal() - 1).square().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    want = torch.nn.functional.normalize(W.detach(), dim=1).numpy()
    found = spread_atoms(D)
    assert_close(found, want, 1e-9)
    flat, spread = (px.data.planted(1, 8, 40, 1, kind=kind, seed=5).D for kind in ("flat", "synthsae"))
    assert_close(spread, spread_atoms(flat), 1e-12)
    assert np.linalg.norm(found @ found.T) < 0.99 * np.linalg.norm(D @ D.T)


def test_another_seed_gives_fresh_rows_of_the_same_problem(data):
    fresh, again = (px.data.planted(50, 24, P, K, kind="synthsae", seed=seed, D=data.D) for seed in (4, 3))
    assert_same(fresh.D, data.D)
    assert_same(fresh.bias, data.bias)
    assert not np.array_equal(fresh.z, again.z)
    signed = px.data.planted(500, 24, P, K, kind="synthsae", seed=4, signed=True)
    positive = (signed.z > 0).sum() / (signed.z != 0).sum()
    assert 0.4 < positive < 0.6
    assert not np.signbit(signed.z[signed.z == 0]).any()
    assert px.data.planted(0, 24, P, K, kind="synthsae").x.shape == (0, 24)


@pytest.mark.parametrize(
    ("wrong", "says"), [({"k": 5}, "k=5 must be at most 4.345"), ({"dynamic_range": 2.0}, "dynamic_range=2 must be 1")]
)
def test_problems_that_cannot_be_are_refused_in_one_sentence(wrong, says):
    with pytest.raises(px.Error, match=says) as error:
        px.data.planted(**({"n": 4, "d_in": 8, "d_sae": P, "k": 1, "kind": "synthsae"} | wrong))
    assert "\n" not in str(error.value)

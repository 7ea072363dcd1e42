"""Measures of benchmarks in which true latents are known, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

import proxsae as px
from proxsae import metrics

TRUE_D = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
D = torch.tensor([[0.9, 0.1, 0.0], [-3.0, 0.2, 0.1], [0.1, 0.0, -0.5], [1.0, 0.9, 0.0]])  # nearest: 0, 0, 2, 0


def test_uniqueness_counts_the_true_atoms_that_are_some_atoms_nearest():
    assert metrics.uniqueness(D, TRUE_D) == 2 / 4
    assert metrics.uniqueness(D[1:3], TRUE_D) == 1
    assert metrics.uniqueness(TRUE_D.repeat(5, 1), TRUE_D) == 3 / 15


def test_f1_judges_each_latent_as_a_sign_of_its_nearest_true_one():
    truth = torch.tensor([[2.0, 0, 0], [1, 5, 0], [0, 5, 1], [0, 0, 1], [3, 0, 0]])  # atom 0 on 3 rows, atom 2 on 2
    z = torch.tensor([
        [1.0, -2, 0, 0],
        [0.0, -1, 9, 0],
        [7.0, 0, -9, 0],
        [0.0, 0, 9, 0],
        [0.0, -1, 0, 0],
    ])  # fmt: skip
    # latent 0: one hit of 2 firings; latent 1: all 3; latent 2: two hits of 3 firings; latent 3 is dead
    want = [2 / (2 + 3), 1, 2 * 2 / (3 + 2), 0]
    assert metrics.latent_f1(z, truth, D, TRUE_D) == pytest.approx(np.mean(want))
    assert metrics.latent_f1(z[None], truth[None], D, TRUE_D) == pytest.approx(np.mean(want))
    assert metrics.latent_f1(0 * z, 0 * truth, D, TRUE_D) == 0
    assert metrics.latent_f1(truth, truth, TRUE_D, TRUE_D) == 1


def test_f1_refuses_codes_that_are_not_of_these_atoms_or_rows():
    for z, truth in ((torch.ones(5, 3), torch.ones(5, 3)), (torch.ones(5, 4), torch.ones(4, 3))):
        with pytest.raises(px.Error, match="need the same rows, and as many latents as D and true_D have atoms: 4 and"):
            metrics.latent_f1(z, truth, D, TRUE_D)
    for one, other in ((D[:0], TRUE_D), (D, TRUE_D[:0])):
        with pytest.raises(px.Error, match="need 1 or more of each"):
            metrics.uniqueness(one, other)


def test_shrinkage_is_a_mean_of_ratios_and_not_a_ratio_of_means():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
    xhat = torch.tensor([[3.0, 0.0], [1.0, 1.0], [2.0, 0.0]])  # the row of zeros is left out
    assert metrics.shrinkage(x, xhat) == pytest.approx((3 / 5 + 2) / 2)
    assert metrics.shrinkage(x, 0 * x) == 0
    assert metrics.shrinkage(2.0**700 * x.double(), 2.0**700 * xhat.double()) == pytest.approx((3 / 5 + 2) / 2)
    with pytest.raises(px.Error, match="need one shape, row by row"):
        metrics.shrinkage(x, xhat[:1])


def test_code_correlation_matches_latents_whatever_their_order_sign_scale_and_offset():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(200, 6, generator=generator) * (torch.rand(200, 6, generator=generator) < 0.4)
    scales = torch.tensor([1.0, -2, 3, 1e-9, -5, 6])
    assert metrics.code_correlation((truth * scales + 1e-9)[:, torch.randperm(6)], truth) == pytest.approx(1, abs=1e-6)
    noisy = truth + torch.randn(200, 6, generator=generator)
    want = np.mean([abs(pearsonr(a, b).statistic) for a, b in zip(noisy.T.numpy(), truth.T.numpy(), strict=True)])
    assert metrics.code_correlation(noisy, truth) == pytest.approx(want, rel=1e-5)


def test_code_correlation_leaves_out_true_latents_that_are_constant_and_counts_dead_ones_as_0():
    truth = torch.tensor([[1.0, 0.1, 0.0], [2.0, 0.1, 1.0], [4.0, 0.1, -1.0], [8.0, 0.1, 0.0]])
    assert metrics.code_correlation(truth, truth) == pytest.approx(1)
    assert metrics.code_correlation(truth[:, :2], truth) == pytest.approx(1 / 2)  # of two that vary one is found
    assert metrics.code_correlation(0.1 + 0 * truth, truth) == 0
    assert math.isfinite(metrics.code_correlation(1e200 * truth.double(), truth))
    with pytest.raises(px.Error, match="no latent that varies"):
        metrics.code_correlation(truth, 0 * truth + 0.1)
    with pytest.raises(px.Error, match="z has 3 rows, but truth has 4"):
        metrics.code_correlation(truth[:3], truth)

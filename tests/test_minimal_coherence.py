"""Weights of least generalised coherence, against linear programs, and their two bounds."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import proxsae as px
from proxsae.minimal_coherence import _known


def atoms(P, d, seed=1, unit=True):
    D = np.random.default_rng(seed).standard_normal((P, d))
    return D / np.linalg.norm(D, axis=1, keepdims=True) if unit else D


def by_linear_program(D, i):
    """min t  subject to  |w^T d_j| <= t for j != i  and  w^T d_i = 1."""
    P, d = D.shape
    others, t = np.delete(D, i, 0), -np.ones((P - 1, 1))
    A = np.block([[others, t], [-others, t]])
    bounds = [(None, None)] * d + [(0, None)]
    cost = np.r_[np.zeros(d), 1]
    return linprog(cost, A_ub=A, b_ub=np.zeros(2 * P - 2), A_eq=np.r_[D[i], 0][None], b_eq=[1], bounds=bounds).fun


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize(("P", "d"), [(3, 2), (12, 6), (8, 8), (5, 8), (20, 5), (2, 1), (1, 4)])
def test_both_bounds_hold_and_are_near(P, d, unit):
    D = atoms(P, d, seed=P, unit=unit)
    if (P, d) == (2, 1):
        with pytest.raises(px.Error, match="atoms 0 and 1 of D are parallel"):
            px.minimal_coherence(D)
        return
    W, upper, lower = px.minimal_coherence(D, tol=1e-6)
    products = W @ D.T
    assert np.abs(np.diag(products) - 1).max() < 1e-10
    off = np.abs(products - np.diag(np.diag(products)))
    assert (off.max(axis=1) <= upper).all()
    assert (upper - lower <= 1e-6).all()
    for i in range(P if P > 1 else 0):
        least = by_linear_program(D, i)
        assert lower[i] - 1e-9 <= least <= upper[i] + 1e-9


def test_atoms_outside_the_span_of_the_others_have_none():
    D = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [0.6, 0, 0.8]])
    _, upper, lower = px.minimal_coherence(D)
    assert (upper < 1e-14).all()
    assert not lower.any()


def test_it_is_below_the_coherence_and_the_surrogate_of_least_squares():
    D = atoms(40, 20)
    _, upper, lower = px.minimal_coherence(D)
    M = np.linalg.inv(D.T @ D)
    frobenius = D @ M / np.einsum("id,de,ie->i", D, M, D)[:, None]
    of_frobenius = np.abs(frobenius @ D.T - np.eye(40)).max()
    assert upper.max() < of_frobenius < 1
    assert upper.max() < px.coherence(D)
    assert (lower > 0).all()


def test_a_dictionary_is_solved_once_and_what_comes_back_is_the_callers():
    _known.clear()
    D = atoms(12, 6)
    W, upper, _ = px.minimal_coherence(D)
    assert len(_known) == 1
    W[:] = 0
    again, *_ = px.minimal_coherence(torch.from_numpy(D))
    assert isinstance(again, torch.Tensor)
    assert len(_known) == 1
    assert float((again @ torch.from_numpy(D).T).diagonal().min()) > 0.99
    assert px.minimal_coherence(D)[1].max() == upper.max()
    for seed in range(9):
        px.minimal_coherence(atoms(4, 3, seed))
    assert len(_known) == 4


def test_what_cannot_be_is_one_sentence():
    D = atoms(6, 4)
    zero, twice, opposite = D.copy(), D.copy(), D.copy()
    zero[2], twice[4], opposite[3] = 0, D[1], -2 * D[0]
    for bad, message in (
        (zero, "atom 2 of D is zero, but weights need"),
        (twice, "atoms 1 and 4 of D are parallel"),
        (opposite, "atoms 0 and 3 of D are parallel"),
        (D[0], "D has shape"),
        (D * np.nan, "NaN"),
    ):
        with pytest.raises(px.Error, match=message):
            px.minimal_coherence(bad)
        if bad.ndim == 2 and np.isfinite(bad).all():
            with pytest.raises(px.Error, match=message):
                px.Unrolled(torch.from_numpy(bad), px.L1(0.1), 3, px.ALISTA())
    with pytest.raises(px.Error, match=r"left the bounds .* give a larger tol"):
        px.minimal_coherence(D, tol=1e-300)

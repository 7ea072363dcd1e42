"""Greedy and exhaustive k-sparse codes, against plain loops, and against what is proved about matching pursuit."""

from itertools import combinations

import numpy as np
import pytest
from scipy.linalg import hadamard
from scipy.optimize import nnls

from proxsae.conventions import Error
from proxsae.reference.pursuit import best_k_sparse, omp


def problem(n, d, P, seed=0, norms=True):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((P, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    if norms:  # a score that forgets the norm of an atom picks others
        D *= rng.uniform(0.2, 5, (P, 1))
    return rng.standard_normal((n, d)), D


def non_negative_fit(A, x):
    """Non-negative least squares on few columns: the best least-squares fit, of all subsets, that has the signs."""
    best = (x @ x, np.zeros(A.shape[1]))
    for size in range(1, A.shape[1] + 1):
        for S in map(list, combinations(range(A.shape[1]), size)):
            w = np.linalg.lstsq(A[:, S], x, rcond=None)[0]
            error = np.sum((x - A[:, S] @ w) ** 2)
            if w.min() >= 0 and error < best[0]:
                full = np.zeros(A.shape[1])
                full[S] = w
                best = (error, full)
    return best[1]


def plain_omp(x, D, k, nonneg):
    """As a textbook has it, one row, one atom at a time."""
    z, S = np.zeros(len(D)), []
    for _ in range(k):
        r = x - D.T @ z
        best, score = None, 1e-10
        for j in range(len(D)):
            here = D[j] @ r / np.sqrt(D[j] @ D[j])
            here = here if nonneg else abs(here)
            if j not in S and here > score:
                best, score = j, here
        if best is None:
            break
        S.append(best)
        A = D[S].T
        z[S] = non_negative_fit(A, x) if nonneg else np.linalg.lstsq(A, x, rcond=None)[0]
    return z


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize(("d", "P", "k"), [(12, 30, 5), (6, 10, 6), (5, 4, 9)])
def test_omp_is_the_textbooks(nonneg, d, P, k):
    x, D = problem(20, d, P, seed=d)
    codes = omp(x.reshape(4, 5, d), D, k, nonneg).reshape(20, P)
    for row, code in zip(x, codes, strict=True):
        np.testing.assert_allclose(code, plain_omp(row, D, k, nonneg), atol=1e-8)


@pytest.mark.parametrize("nonneg", [False, True])
def test_omp_recovers_any_dynamic_range_below_the_coherence_bound(nonneg):
    D = np.vstack([np.eye(64), hadamard(64) / 8])  # coherence 1/8: k < (1 + 8) / 2
    rng = np.random.default_rng(1)
    z = np.zeros((50, 128))
    for row in z:
        row[rng.permutation(128)[:4]] = 10.0 ** rng.uniform(-3, 3, 4) * (1 if nonneg else rng.choice([-1, 1], 4))
    np.testing.assert_allclose(omp(z @ D, D, 4, nonneg), z, rtol=1e-6, atol=1e-9)


def test_ties_go_to_the_lowest_index_and_nothing_is_chosen_without_need():
    D = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])  # a zero atom; two of one direction
    x = np.array([[3.0, 0.0], [0.0, 0.0], [-3.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(omp(x, D, 4), [[0, 3, 0, 0], [0] * 4, [0, -3, 0, 0], [0, 1, 0, 1]])
    np.testing.assert_array_equal(omp(x, D, 4, nonneg=True)[2], [0] * 4)
    np.testing.assert_array_equal(omp(x, D, 1)[3], [0, 1, 0, 0])
    assert not omp(x, D, 0).any()


def test_nearly_parallel_and_very_short_atoms_are_chosen_once():
    D = np.array([[1.0, 0.0, 0.0], [1.0, 1e-7, 0.0], [0.0, 0.0, 1e-20]])
    x = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    np.testing.assert_allclose(omp(x, D, 5) @ D, x, atol=1e-8)
    np.testing.assert_allclose(omp(x, D, 5, nonneg=True) @ D, [[1, 1e-7, 1], [1, 1e-7, 0]], atol=1e-8)


@pytest.mark.parametrize("function", [omp, best_k_sparse])
def test_dtype_is_kept_and_inputs_are_not_written(function):
    x, D = (a.astype(np.float32) for a in problem(3, 5, 7))
    x.setflags(write=False)
    D.setflags(write=False)
    codes = function(x, D, 2)
    assert codes.dtype == np.float32
    np.testing.assert_allclose(codes, function(x.astype(float), D.astype(float), 2), rtol=1e-6)


@pytest.mark.parametrize("nonneg", [False, True])
def test_brute_force_is_the_best_of_all_supports(nonneg):
    x, D = problem(25, 5, 9, seed=3)
    codes = best_k_sparse(x, D, 3, nonneg)
    assert ((codes != 0).sum(axis=1) <= 3).all()
    assert not nonneg or (codes >= 0).all()
    for row, code in zip(x, codes, strict=True):
        fits = []
        for S in map(list, combinations(range(9), 3)):
            A = D[S].T
            w = nnls(A, row)[0] if nonneg else np.linalg.lstsq(A, row, rcond=None)[0]
            fits.append(np.sum((row - A @ w) ** 2))
        assert np.sum((row - code @ D) ** 2) == pytest.approx(min(fits), rel=1e-9)


@pytest.mark.parametrize("nonneg", [False, True])
def test_brute_force_is_not_misled_by_dependent_atoms(nonneg):
    D = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    x = np.array([[2.0, 1.0, 0.0], [-2.0, 3.0, 0.0]])
    np.testing.assert_allclose(best_k_sparse(x, D, 2, nonneg) @ D, x, atol=1e-12)


def test_brute_force_uses_fewer_atoms_where_signs_ask_for_it_and_where_there_are_no_more():
    x, D = np.array([1.0, -0.1]), np.array([[1.0, 0.0], [0.6, 0.8]])
    np.testing.assert_allclose(best_k_sparse(x, D, 2, nonneg=True), [1, 0])
    np.testing.assert_allclose(best_k_sparse(x, D, 5) @ D, x)


def test_greed_is_beaten_by_search_somewhere_and_never_beats_it():
    x, D = problem(40, 6, 12, seed=5)
    for nonneg in (False, True):
        greedy, best = (np.sum((x - f(x, D, 3, nonneg) @ D) ** 2, axis=1) for f in (omp, best_k_sparse))
        assert (best <= greedy + 1e-9).all()
        assert (best < greedy - 1e-6).any()


def test_what_cannot_be_done_is_refused_in_a_sentence():
    x, D = problem(2, 8, 60)
    with pytest.raises(Error, match="k=4 of 60 latents makes 487635 supports, but 20000 is the most"):
        best_k_sparse(x, D, 4)
    for function in (omp, best_k_sparse):
        with pytest.raises(Error, match="k=-1"):
            function(x, D, -1)
        with pytest.raises(Error, match="shape"):
            function(x, D[:, 1:], 2)
        with pytest.raises(Error, match="NaN"):
            function(x * np.nan, D, 2)

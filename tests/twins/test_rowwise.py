"""All rows together against the oracle that takes them one by one: codes, objectives, counted products, solutions."""

import numpy as np
import pytest

import proxsae as px
from tests import rowwise
from tests.twins.test_iteration import CASES, CURVED, PENALTIES, problem


def assert_same(got, want, dtype):
    """Up to rounding, which a product of many rows does in another order than that of one."""
    eps = {np.float16: 0.02, np.float32: 2e-4, np.float64: 1e-11}[dtype]
    for mine, theirs in zip(got.steps, want.steps, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=eps * max(1, np.abs(theirs).max()))
    np.testing.assert_allclose(got.objective, want.objective, rtol=eps)
    assert got.codes.dtype == got.objective.dtype == dtype
    # a row that has arrived moves by rounding alone, and so does whether such a move is safe
    far = np.abs(np.diff(want.steps, axis=0)).max(axis=2) > eps
    assert far[0].any()
    np.testing.assert_array_equal(np.diff(got.products, axis=0)[far], np.diff(want.products, axis=0)[far])


@pytest.mark.parametrize(("R", "rule"), CASES)
def test_ista(R, rule):
    x, D, b = problem()
    at_0 = x.copy()
    at_0[1] = b  # a row whose code stays 0
    some = np.abs(problem(n=6, d=40)[0] / 5) * (np.arange(6) % 2)[:, None]
    extrapolated = R.convex and not isinstance(rule, (px.ExactStep, px.Refit))
    for momentum in (None, "fista", "restart") if extrapolated else (None,):
        for rows, z0 in ((at_0, None), (x, some)):
            got, want = (f(rows, D, R, 12, rule, momentum, z0, b, "all") for f in (px.ista, rowwise.ista))
            assert_same(got, want, np.float64)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("rule", [px.Lipschitz(), px.Backtracking(), px.ExactStep(), px.Refit()], ids=repr)
@pytest.mark.parametrize("R", [px.L1(0.5), px.L0(0.3, nonneg=True), px.KSparse(4)], ids=repr)
def test_ista_in_other_dtypes(R, rule, dtype):
    x, D, _ = (a.astype(dtype) for a in problem(seed=3))
    got, want = (f(x, D, R, 4, rule, keep="all") for f in (px.ista, rowwise.ista))
    assert_same(got, want, dtype)


def test_one_row_and_none():
    x, D, _ = problem()
    for rows in (x[0], x[:0], x.reshape(2, 3, -1)):
        for rule in (px.ExactStep(), px.Refit(), px.Backtracking()):
            got, want = (f(rows, D, px.KSparse(3), 5, rule) for f in (px.ista, rowwise.ista))
            assert got.codes.shape == want.codes.shape == (*rows.shape[:-1], 40)
            assert got.products.shape == want.products.shape == (6, *rows.shape[:-1])
        assert px.solve(rows, D, px.L1(0.5)).gap.shape == rows.shape[:-1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("R", PENALTIES.values(), ids=PENALTIES)
def test_solve(R, dtype):
    x, D, _ = (a.astype(dtype) for a in problem(n=4, d=8, P=40))
    few = {"max_steps": 300} if isinstance(R, CURVED) else {}
    got, want = (f(x, D, R, tol=1e-4, **few) for f in (px.solve, rowwise.solve))
    if isinstance(R, px.L1):  # by another way, so that D z alone is the same: 1/2 ||D z - D z*||^2 <= F(z) - F(z*)
        assert got.converged.all()
        assert want.converged.all()
        apart = np.linalg.norm((got.codes.astype(float) - want.codes) @ D, axis=1)
        assert (apart <= np.sqrt(2 * got.gap) + np.sqrt(2 * want.gap)).all()
        return
    np.testing.assert_allclose(got.codes, want.codes, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(got.converged, want.converged)
    np.testing.assert_allclose(got.steps, want.steps, rtol=0.05, atol=2)

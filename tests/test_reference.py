"""Edges of the oracle that laws and the comparison with torch do not reach; a mutation run of its code found them."""

import numpy as np
import pytest

import proxsae as px
from proxsae import testing as pt
from proxsae.reference import iteration as reference
from proxsae.reference import lasso_path

f16, f32 = np.float16, np.float32


def problem(n=6, d=16, P=40):
    rng = np.random.default_rng(0)
    D = rng.standard_normal((P, d))
    return 3 * rng.standard_normal((n, d)), D / np.linalg.norm(D, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", [f32, np.float64])
@pytest.mark.parametrize("R", [px.L1(0.5), px.KSparse(4), px.ElasticNet(0.5, 0.5)], ids=repr)
def test_a_solution_has_the_shape_of_its_batch(R, dtype):
    x, D = problem()
    s = px.solve(x.reshape(2, 3, -1).astype(dtype), D.astype(dtype), R)
    assert s.codes.shape == (2, 3, 40)
    assert s.codes.dtype == dtype
    assert s.gap.shape == s.steps.shape == s.converged.shape == (2, 3)
    assert s.steps.dtype.kind == "i"
    assert s.converged.dtype == bool
    assert s.converged.all()


def test_max_steps_is_the_number_of_steps():
    x, D = problem()
    for most in (0, 3):
        s = px.solve(x, D, px.L1(0.5), max_steps=most)
        assert s.steps.tolist() == [most] * 6
        assert not s.converged.any()
        assert (s.gap > 0).all()
    assert not px.solve(x, D, px.L1(0.5), max_steps=0).codes.any()


def test_default_tolerance_and_restarts():
    x, D = problem()
    R = px.L1(0.5)
    s = px.solve(x, D, R)
    assert (s.gap <= 1e-6 * (0.5 * ((x - s.codes @ D) ** 2).sum(-1) + R.value(s.codes))).all()
    s = px.solve(x[:2], D, px.L1(0.1), tol=1e-10, max_steps=1500)  # without restarts it takes more than that
    assert s.converged.all()
    assert s.steps.max() < 1200


def test_float32_codes_stop_where_rounding_is_all_that_is_left():
    x, D = (a.astype(f32) for a in problem())
    s = px.solve(x, D, px.L1(0.5), tol=1e-12, max_steps=5000)
    assert not s.converged.any()
    assert s.steps.max() < 5000
    for R in (px.KSparse(4), px.L0(0.5)):
        assert px.solve(x, D, R).converged.all()
        assert px.solve(x, D, R, tol=1e-9, max_steps=300).steps.max() < 300


@pytest.mark.parametrize("R", ["l1", px.L1, px.BatchKSparse(2), px.L1(np.ones(3))], ids=repr)
def test_solve_refuses_what_is_no_penalty_of_rows(R):
    with pytest.raises(px.Error):
        px.solve(*problem(), R)


def test_certify_asks_for_a_last_move_that_is_short_and_accepts_the_bound():
    x, D = problem()
    L, R = px.lipschitz(D), px.KSparse(4)
    z = px.solve(x, D, R, tol=1e-10).codes
    assert reference.certify(x, D, z, z, R, 1e-6, L)[1].all()
    assert not reference.certify(x, D, z, z + 1e-4 * (z != 0), R, 1e-6, L)[1].any()
    gap, good, _ = reference.certify(0 * x, D, 0 * z, 0 * z, R, 1e-6, L)  # a gap of 0 is <= 0
    assert good.all()
    assert not gap.any()
    assert reference.certify(np.zeros((1, 2)), np.eye(2), np.zeros((1, 2)), np.zeros((1, 2)), px.L1(1.0), 1e-6, 1.0)[1]


def test_products_are_counted_at_a_fixed_point():
    D = np.eye(4, 3) + 0.1
    for rule in (px.Backtracking(), px.ExactStep(), px.Refit()):
        assert px.ista(np.zeros(3), D, px.KSparse(2), 3, rule).products.tolist() == [0, 2, 4, 6]


def test_an_exact_step_that_keeps_the_support_and_flips_a_sign_costs_no_trial():
    D, start = np.array([[1.0, 0], [0, 2]]), np.array([1.0, 0])
    trace = px.ista(np.array([-3.0, 0]), D, px.KSparse(1), 1, px.ExactStep(), z0=start)
    assert trace.products.tolist() == [0, 3]
    assert trace.codes.tolist() == [-3.0, 0]


def test_an_exact_step_of_l1_over_a_sign_change_descends():
    x, D, start = np.array([4.9, 2.1]), np.array([[-2.4, 2.8], [-1.8, 1.2]]), np.array([-0.2, -0.5])
    objective = px.ista(x, D, px.L1(0.5), 1, px.ExactStep(), z0=start).objective
    assert objective[1] <= objective[0]


def test_no_start_is_a_start_at_zero():
    x, D = (a.astype(f32) for a in problem())
    for R in (px.L1(0.5), px.KSparse(4)):
        pt.assert_same(px.ista(x, D, R, 5).codes, px.ista(x, D, R, 5, z0=np.zeros((6, 40), f32)).codes)
    with pytest.raises(px.Error, match="z0 has shape"):
        px.ista(np.ones((2, 3)), np.eye(3), px.L1(0.1), 1, z0=np.zeros((3, 3)))
    assert px.ista(np.ones(3), np.eye(3), px.L1(0.1), 2).steps is None


def test_half_precision_adds_up_wide():
    assert px.ElasticNet(0.0, 0.5).value(np.array([300.0], f16)) == 22500
    trace = px.ista(np.full(4096, 4, f16), np.full((1, 4096), 0.5, f16), px.L1(1.0), 0)
    assert trace.objective.tolist() == [32768]
    px.ista(np.ones(3, f16), (np.eye(4, 3) + 0.1).astype(f16), px.KSparse(2), 2, px.Refit())


def test_small_print_of_the_penalties():
    assert px.SCAD(0.5, 2.5).prox(np.array([1.97]), 4.4)[0] == 1.97
    assert px.L1(1.0).prox(np.array([3.0])).tolist() == [2.0]  # the step is 1 by default
    assert len({hash(px.L1(1.0)), hash(px.L0(1.0)), hash(px.L1(1.0, True))}) == 3


def test_an_exact_step_of_l1_accepts_a_trial_at_equality():
    D, start = np.diag([1.0, 2]), np.array([1.0, 0])
    trace = px.ista(np.array([-3.0, 0]), D, px.L1(0.5), 1, px.ExactStep(), z0=start)
    assert trace.codes.tolist() == [-2.5, 0]
    assert trace.products.tolist() == [0, 4]


def test_a_refit_compares_atoms_by_direction():
    x, R = np.array([1.0, 1]), px.KSparse(2)
    short = px.ista(x, np.array([[1.0, 0], [0, 1e-7]]), R, 1, px.Refit()).codes
    pt.assert_close(short, np.array([1, 1e7]), 1e-9)
    nearly_parallel = px.ista(x, np.array([[1.0, 0], [1, 1e-7]]), R, 1, px.Refit()).codes
    assert np.abs(nearly_parallel).max() < 2
    zero = px.ista(x, np.array([[1.0, 0], [0, 0]]), R, 2, px.Refit(), z0=np.array([0.0, 5])).codes
    assert np.isfinite(zero).all()
    assert zero[0] == 1


def test_solve_restarts_its_momentum_as_torch_does():
    import torch

    x, D = problem()
    R = px.ElasticNet(0.5, 0.5)
    ours, theirs = px.solve(x, D, R).steps, px.solve(torch.tensor(x), torch.tensor(D), R).steps
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("R", [px.L1(0.5), px.KSparse(4)], ids=repr)
def test_the_certificate_is_good_up_to_its_tolerance_row_by_row(R):
    x, D = problem()
    x, L = x * np.geomspace(0.01, 10, len(x))[:, None], px.lipschitz(D)
    z = px.ista(x, D, R, 6 if R.convex else 60, px.ExactStep()).codes  # gaps above what rounding may hide
    gap, _, _ = reference.certify(x, D, z, z, R, 1.0, L)
    if isinstance(R, px.L1):
        size = 0.5 * ((x - z @ D) ** 2).sum(-1) + R.value(z)
        floor = 1e-12 * size  # rows of which 0 is the code have no gap, but for rounding
    else:
        size, floor = np.linalg.norm(z, axis=-1), np.full(len(x), 1e-300)
    assert (gap > floor).sum() >= (4 if R.convex else 0)
    gap = np.maximum(gap, floor)
    for i in range(len(x)):
        row = (x[i : i + 1], D, z[i : i + 1], z[i : i + 1], R)
        assert reference.certify(*row, 1.01 * gap[i] / size[i], L)[1].all()
        assert not reference.certify(*row, 0.99 * gap[i] / size[i], L)[1].any() or gap[i] == floor[i] or gap[i] < 1e-200
    if isinstance(R, px.KSparse):
        before = z.copy()
        before[0] += 1
        good = reference.certify(x, D, px.solve(x, D, R, tol=1e-10).codes, before * 0 + 1, R, 1e-6, L)[1]
        assert not good.any()


def test_one_row_outside_the_domain_costs_only_itself():
    R = px.L1(1.0, nonneg=True)
    assert R.value(np.array([[1.0, 2], [-1, 0]])).tolist() == [3, np.inf]


def test_groups_at_their_threshold_go_to_zero():
    assert px.GroupL2(0.0, 2).prox(np.array([0.0, 0, 3, 4])).tolist() == [0, 0, 3, 4]
    assert not px.GroupL2(1 / 3, 2).prox(np.array([np.float32(1 / 3), 0], f32)).any()


def test_dtypes_stay():
    x, D = (a.astype(f32) for a in problem())
    R = px.L1(np.full(40, 0.5))
    trace = px.ista(x, D, R, 3)
    assert trace.codes.dtype == trace.objective.dtype == R.value(trace.codes).dtype == R.slope(trace.codes).dtype == f32


def test_parameters_are_kept_as_plain_numbers_or_read_only_float64():
    families = [px.L1, px.L0, lambda lam: px.ElasticNet(lam, 1), px.MCP, px.SCAD, px.SortedL1]
    for make in families:
        assert type(make(1).lam) is float
        for lam in ([2, 1], np.array([2, 1], f32)):
            R = make(lam)
            assert R.lam.dtype == np.float64
            assert not R.lam.flags.writeable
    assert type(px.GroupL2(1, 2).lam) is float
    for number in (px.ElasticNet(1, 1).alpha, px.MCP(1, 2).gamma, px.SCAD(1, 3).a):
        assert type(number) is float
    for R in (px.KSparse(np.int64(2)), px.BatchKSparse(np.int64(2))):
        assert type(R.k) is int
    assert type(px.GroupL2(1, np.int64(2)).size) is int
    with pytest.raises(px.Error, match="bandwidth=inf"):
        px.L0(1.0, bandwidth=np.inf)


def test_values_beyond_the_floats_are_infinite_or_nan_and_warn_nobody():
    assert px.ElasticNet(1.0, 1.0).value(np.array([1e200])) == np.inf
    assert np.isnan(px.L1(0.0).value(np.array([np.inf])))
    assert px.ElasticNet(0.5, 1.0).value(np.array([6e4, 1], f16)) == np.inf


def test_equality_of_penalties_with_a_tensor_is_identity():
    import torch

    t = torch.tensor(1.0)
    assert px.L1(t) == px.L1(t) != px.L1(t.clone())
    assert px.L1(t) != px.L1(1.0)


def test_flags_are_what_is_proved():
    """A flag that claims too little takes its laws away, and no law would see that."""
    names = ("convex", "separable", "indicator", "affine", "rowwise")
    flags = {family.__name__: [getattr(family, name) for name in names] for family in px.penalties.FAMILIES.values()}
    assert flags == {
        "L1": [True, True, False, True, True],
        "L0": [False, True, False, True, True],
        "KSparse": [False, False, True, True, True],
        "ElasticNet": [True, True, False, False, True],
        "MCP": [False, True, False, False, True],
        "SCAD": [False, True, False, False, True],
        "GroupL2": [True, False, False, False, True],
        "SortedL1": [True, False, False, False, True],
        "BatchKSparse": [False, False, True, True, False],
    }


@pytest.mark.parametrize("lam", [0.3, 1e-5, np.geomspace(0.01, 1, 24)], ids=["one", "small", "per latent"])
@pytest.mark.parametrize("nonneg", [False, True])
def test_the_l1_path_ends_at_the_solution(nonneg, lam):
    """The conditions of thm-l1-optimality, by which a solution is known, whatever led to it."""
    rng = np.random.default_rng(0)
    x, D = rng.normal(size=(30, 10)), rng.normal(size=(24, 10))
    D[3] = 0
    codes, steps = lasso_path.follow(x, D, px.L1(lam, nonneg), 10_000)
    slopes = (x - codes @ D) @ D.T
    bar = np.broadcast_to(lam, 24) + 1e-9
    assert ((slopes if nonneg else np.abs(slopes)) <= bar).all()
    on = codes != 0
    assert np.abs(slopes - lam * np.sign(codes))[on].max() < 1e-9
    assert not nonneg or (codes >= 0).all()
    assert 0 < steps.min() <= steps.max() < 80
    few, taken = lasso_path.follow(x, D, px.L1(lam, nonneg), 3)
    assert taken.max() == 3
    assert np.count_nonzero(few, axis=1).max() <= 3


@pytest.mark.parametrize("lam", [0.01, 1e-5])
def test_float32_rows_at_small_lam_end_where_only_rounding_is_left(lam):
    rng = np.random.default_rng(0)
    x, D = (rng.normal(size=size).astype(np.float32) for size in ((6, 8), (12, 8)))
    found = px.solve(x, D, px.L1(lam))
    assert (found.converged | found.at_rounding).all()
    assert found.steps.max() < 100  # FISTA from 0 takes 1000 and 10,000

"""Certificates against independent oracles, `solve` against its certificate, and implicit gradients."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls

import proxsae as px
from proxsae import certificates, theory
from proxsae import testing as pt
from proxsae.statements.certificates import exact_gap
from proxsae.testing.compare import numpy_of
from tests.twins.test_iteration import problem, tensors


def test_lipschitz_is_an_upper_bound_and_tight():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 50), (50, 3), (64, 64), (200, 30)):
        for dtype in (np.float32, np.float64):
            D = rng.standard_normal(shape).astype(dtype)
            exact = np.linalg.norm(D.astype(np.float64), 2) ** 2
            assert exact <= px.lipschitz(D) <= exact * (1 + 1e-9)
            assert px.lipschitz(torch.tensor(D)) == pytest.approx(px.lipschitz(D), rel=1e-12)
    D = np.eye(4)[[0, 1, 2, 3, 0]]
    assert px.lipschitz(D) >= 2.0  # a known singular value, which rounding may not pass below


@pytest.mark.parametrize("exponent", [-500, -450, 450, 500])
def test_lipschitz_is_right_where_squares_of_entries_or_of_D_are_no_floats(exponent):
    D = np.random.default_rng(0).standard_normal((30, 20)) * np.exp(-np.arange(20))
    for scaled in (D * 2.0**exponent, torch.tensor(D * 2.0**exponent)):
        L = px.lipschitz(scaled)
        assert np.linalg.norm(D, 2) ** 2 <= L * 2.0 ** (-2 * exponent) <= np.linalg.norm(D, 2) ** 2 * (1 + 1e-10)
        with pytest.raises(px.Error, match=r"\|\|D\|\|\^2 is beyond float64: rescale it"):
            px.lipschitz(scaled * 2.0 ** (100 * int(np.sign(exponent))))


def test_lipschitz_of_an_expanding_unit_norm_dictionary_is_at_least_the_expansion():
    _, D, _ = problem(d=16, P=64)
    assert px.lipschitz(D) >= theory.lipschitz_floor(16, 64)


def test_coherence():
    D = np.array([[1.0, 0], [0, 2], [3, 3]])
    assert px.coherence(D) == pytest.approx(np.sqrt(0.5))
    assert px.coherence(torch.tensor(D)) == pytest.approx(np.sqrt(0.5))
    assert px.coherence(np.eye(3)) == 0
    assert px.coherence(np.ones((1, 3))) == 0
    assert px.coherence(np.ones((2, 3))) == 1


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200, 1e308])
def test_coherence_is_an_upper_bound_whatever_the_lengths_of_atoms(size, monkeypatch):
    rng = np.random.default_rng(0)
    cosine = np.cos(0.3)
    pair = size * np.array([[1.0, 0], [cosine, np.sqrt(1 - cosine**2)]])
    for D in (pair, torch.tensor(pair), np.array([[1.0], [1e-100]]) * pair):
        assert cosine * (1 - 2.0**-52) <= px.coherence(D) <= cosine * (1 + 1e-14)
    D = rng.standard_normal((50, 20))
    monkeypatch.setattr(certificates, "BLOCK", 7)
    assert px.coherence(np.minimum(1, 1e300 / size) * size * D) == pytest.approx(px.coherence(D), rel=1e-12)
    D[3] = 0.0
    assert px.coherence(D) == px.coherence(np.delete(D, 3, axis=0))


def test_atoms_whose_product_is_lost_to_underflow_are_not_called_orthogonal():
    assert px.coherence(np.array([[1.0, 1e-200, 0], [0, 1e-200, 1]])) > 0
    assert px.coherence(np.array([[1e300, 1e-300], [0, 1.0]])) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gaps_are_rounded_up_in_every_dtype(dtype, device):
    """Against the gap in rational numbers, of codes near the optimum, with a bias that rows cannot take exactly."""
    x, D, b = (torch.tensor(a, device=device).to(dtype) for a in problem(n=5, d=6, P=10))
    R, centred = px.L1(0.4), x.double() - b.double()
    z = px.solve(centred, D.double(), R, tol=1e-10).codes.to(dtype)
    told = px.duality_gap(x, D, z, R, b)
    assert told.dtype == dtype
    found = px.solve(x, D, R, bias=b, max_steps=200)
    for codes, gaps in ((z, told), (found.codes, found.gap)):
        for c, code, gap in zip(x, codes, gaps, strict=True):
            row = [Fraction(v) - Fraction(w) for v, w in zip(c.tolist(), b.tolist(), strict=True)]
            exact, _ = exact_gap(row, D.cpu().double(), code.cpu().double(), np.full(10, 0.4))
            assert Fraction(float(gap)) >= exact


def test_a_gap_lost_to_underflow_is_not_called_0(device):
    for x, D, z, R in (
        (np.full((1, 2), 1e-200), np.eye(2), np.zeros((1, 2)), px.L1(1e-201)),
        (np.zeros((1, 2)), np.eye(2), np.full((1, 2), 1e-200), px.L1(1e-201)),
    ):
        assert px.duality_gap(x, D, z, R) > 0
        assert px.duality_gap(*tensors(device, x, D, z), R) > 0
        found = px.solve(*tensors(device, x, D), R, max_steps=20)
        assert not found.codes.isnan().any()
        assert bool((found.gap > 0).all()) or not x.any()
    assert px.duality_gap(np.zeros(2), np.eye(2), np.zeros(2), px.L1(1.0)) == 0
    assert px.duality_gap(*tensors(device, np.full(2, 1e200), np.eye(2), np.zeros(2)), px.L1(1.0)).isinf()


@pytest.mark.parametrize("nonneg", [False, True])
def test_lambda_max_is_where_the_solution_becomes_zero(nonneg):
    x, D, _ = problem()
    for row, top in zip(x, px.lambda_max(x, D, nonneg), strict=True):
        assert not px.solve(row, D, px.L1(1.0001 * top, nonneg)).codes.any()
        assert px.solve(row, D, px.L1(0.999 * top, nonneg), tol=1e-10).codes.any()


@pytest.mark.parametrize("nonneg", [False, True])
def test_duality_gap_bounds_the_distance_to_an_independent_optimum(nonneg, device):
    x, D, b = problem(n=4, d=6, P=10)
    R = px.L1(0.4, nonneg)
    for row in x:
        best = independent_optimum(row - b, D, R)
        for z in px.ista(row, D, R, 60, bias=b, keep="all").steps[::6]:
            reached = 0.5 * ((row - b - z @ D) ** 2).sum() + R.value(z)
            gap = px.duality_gap(row, D, z, R, b)
            assert gap >= reached - best - 1e-9
            xt, Dt, zt, bt = tensors(device, row, D, z, b)
            pt.assert_close(px.duality_gap(xt, Dt, zt, R, bt), torch.tensor(gap, device=device), 1e-12)
        assert px.duality_gap(row, D, px.solve(row, D, R, 1e-10, bias=b).codes, R, b) < 1e-8
    infeasible = -np.ones(10)
    assert px.duality_gap(x[0], D, infeasible, px.L1(0.4, nonneg=True)) == np.inf


def independent_optimum(x, D, R):
    """min F by L-BFGS-B on the split z = p - n, p, n >= 0: code that is not ours."""
    A = D if R.nonneg else np.concatenate([D, -D])

    def both(z):
        r = z @ A - x
        return 0.5 * r @ r + R.lam * z.sum(), A @ r + R.lam

    options = {"maxiter": 20000, "maxfun": 10**6, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(both, np.zeros(len(A)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(A), options=options)
    return float(found.fun)


def test_per_latent_gap_and_zero_lam(device):
    x, D, _ = problem(n=3)
    R = px.L1(np.where(np.arange(40) % 2, 0.5, 1.0))
    solution = px.solve(x, D, R, tol=1e-8)
    assert solution.converged.all()
    theirs = px.solve(*tensors(device, x, D), R, tol=1e-8)
    assert bool(theirs.converged.all())
    tensor_lam = px.L1(torch.tensor(R.lam, device=device))
    gap = px.duality_gap(*tensors(device, x, D, solution.codes), tensor_lam)
    pt.assert_close(gap, torch.tensor(solution.gap, device=device), 1e-12)
    assert (px.duality_gap(x, D, np.zeros((3, 40)), px.L1(0.0)) >= 0).all()
    assert px.duality_gap(x[0].tolist(), D.tolist(), solution.codes[0].tolist(), R).shape == ()
    for R in (px.L0(1.0), px.ElasticNet(1.0, 1.0)):
        with pytest.raises(px.Error, match="duality_gap is implemented for L1 only, not for"):
            px.duality_gap(x, D, solution.codes, R)


def test_fixed_point_residual_is_zero_at_fixed_points_and_not_elsewhere():
    x, D, _ = problem()
    L = px.lipschitz(D)
    for R in (px.L1(0.5), px.KSparse(4), px.L0(0.5, nonneg=True)):
        z = px.solve(x, D, R, tol=1e-10).codes
        assert px.fixed_point_residual(x, D, z, R, 1 / L).max() < 1e-6
        assert px.fixed_point_residual(x, D, z + 0.1 * (z != 0), R, 1 / L).min() > 1e-3


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("family", [px.L1, px.L0, px.KSparse])
def test_solve_keeps_its_word_in_both_backends(family, nonneg, device):
    x, D, b = problem(n=8)
    R = family(3 if family is px.KSparse else 0.4, nonneg)
    ours = px.solve(x, D, R, bias=b)
    xt, Dt, bt = tensors(device, x, D, b)
    theirs = px.solve(xt.reshape(2, 4, -1), Dt, R, bias=bt)
    assert ours.converged.all()
    assert bool(theirs.converged.all())
    L = px.lipschitz(D)
    for z, gap in (
        (ours.codes, ours.gap),
        (theirs.codes.reshape(8, -1).cpu().numpy(), theirs.gap.reshape(8).cpu().numpy()),
    ):
        objective = 0.5 * ((x - b - z @ D) ** 2).sum(-1) + R.value(z)
        if family is px.L1:
            pt.assert_close(gap, px.duality_gap(x, D, z, R, b), 1e-9)  # each allows for its own rounding
            assert (gap <= 1e-6 * objective).all()
        else:
            pt.assert_close(gap, px.fixed_point_residual(x, D, z, R, 1 / L, b), 1e-9)
            assert (gap <= 1e-6 * np.linalg.norm(z, axis=-1)).all()
    pt.assert_close(theirs.codes.reshape(8, -1), torch.tensor(ours.codes, device=device), 1e-3)


@pytest.mark.parametrize(
    "R",
    [
        px.ElasticNet(0.4, 0.3),
        px.ElasticNet(0.3, 1.0, nonneg=True),
        px.MCP(0.4, 3.0),
        px.SCAD(0.4, nonneg=True),
        px.GroupL2(0.5, 4),
        px.SortedL1(np.linspace(0.8, 0.2, 40)),
    ],
    ids=repr,
)
def test_solve_reaches_a_stationary_point_of_the_other_families(R, device):
    x, D, b = problem(n=4)
    ours = px.solve(x, D, R, bias=b)
    xt, Dt, bt = tensors(device, x, D, b)
    theirs = px.solve(xt, Dt, R, bias=bt)
    assert ours.converged.all()
    assert bool(theirs.converged.all())
    pt.assert_close(theirs.codes, torch.tensor(ours.codes, device=device), 1e-3)
    pt.assert_close(ours.gap, px.fixed_point_residual(x, D, ours.codes, R, 1 / px.lipschitz(D), b), 1e-9)
    if R.convex:  # stationary is optimal: nobody does better, not even a far longer run of another rule
        objective = 0.5 * ((x - b - ours.codes @ D) ** 2).sum(-1) + R.value(ours.codes)
        longer = px.ista(x, D, R, 3000, px.Backtracking(), bias=b).objective[-1]
        assert (objective <= longer * (1 + 1e-6)).all()
    with pytest.raises(px.Error, match="thm-implicit-gradient"):
        px.solve(xt.requires_grad_(), Dt, R)


@pytest.mark.parametrize("R", [px.MCP(0.1, 3.0), px.SCAD(0.1), px.MCP(0.4, 1.5, nonneg=True)], ids=repr)
def test_curved_penalties_take_a_third_of_the_plain_steps_and_end_as_low(R, device):
    """Steps of 1/L crawl here, and both wings extrapolate them."""
    x, D, _ = problem(n=6, d=8, P=12, seed=3)
    for at in ((x, D), tensors(device, x, D)):
        found = px.solve(*at, R)
        assert bool(found.converged.all())
        z, steps = numpy_of(found.codes), 3 * int(found.steps.max())
        plain = px.ista(x, D, R, steps)
        left = px.fixed_point_residual(x, D, plain.codes, R, 1 / px.lipschitz(D))
        assert (left > 1e-6 * np.linalg.norm(plain.codes, axis=-1)).any()
        assert (0.5 * ((x - z @ D) ** 2).sum(-1) + R.value(z) <= plain.objective[-1] * (1 + 1e-6)).all()


def test_solve_says_so_when_it_stops_too_early(device):
    x, D, _ = tensors(device, *problem())
    solution = px.solve(x, D, px.L1(0.05), max_steps=1)
    assert not solution.converged.any()
    assert solution.steps.tolist() == [1] * 6
    assert bool((solution.gap > 0).all())
    assert px.solve(x[:0], D, px.L1(0.5)).codes.shape == (0, 40)


def test_float32_codes_are_judged_as_returned(device):
    x, D, _ = tensors(device, *problem())
    solution = px.solve(x.float(), D.float(), px.L1(0.5), tol=1e-5)
    assert solution.codes.dtype == torch.float32
    gap = px.duality_gap(x.float().double(), D.float().double(), solution.codes.double(), px.L1(0.5))
    pt.assert_close(solution.gap, gap, 1e-9)
    assert bool(solution.converged.all())
    assert bool(px.solve(x.float(), D.float(), px.L1(0.5)).converged.all())  # tol=1e-6 is within reach of float32
    assert px.solve(x.float().cpu().numpy(), D.float().cpu().numpy(), px.L1(0.5)).converged.all()
    hopeless = px.solve(x.float(), D.float(), px.L1(0.5), tol=1e-12, max_steps=5000)
    assert not hopeless.converged.any()
    assert int(hopeless.steps.max()) < 5000  # it stops where only rounding is left


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("family", [px.L1, px.L0, px.KSparse])
def test_implicit_gradients_are_finite_differences(family, nonneg, device):
    """In x, D and bias, central differences of `solve` itself; for L1 also in lam."""
    x, D, b = tensors(device, *problem(n=3, d=8, P=12, seed=5))
    R = family({px.KSparse: 3, px.L0: 2.0, px.L1: 0.4}[family], nonneg)  # few enough atoms to be independent
    weight = torch.linspace(-1, 1, 36, dtype=torch.float64, device=device).reshape(3, 12)
    leaves = [a.clone().requires_grad_() for a in (x, D, b)]
    lam = torch.tensor(0.4, dtype=torch.float64, device=device, requires_grad=True)
    if family is px.L1:
        leaves.append(lam)

    def loss(x, D, b, lam=None):
        found = px.solve(x, D, R if lam is None else px.L1(lam, nonneg), tol=1e-12, max_steps=3000, bias=b)
        return (found.codes * weight).sum()

    gradients = torch.autograd.grad(loss(*leaves), leaves)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for i, gradient in enumerate(gradients):
            assert bool(gradient.any())
            for _ in range(3):
                direction = torch.randn(gradient.shape, dtype=torch.float64, generator=generator).to(device)
                ends = [
                    loss(*[a + s * 1e-5 * direction if i == j else a for j, a in enumerate(leaves)]) for s in (1, -1)
                ]
                slope = (ends[0] - ends[1]) / 2e-5
                pt.assert_close((gradient * direction).sum(), slope, 1e-4)


@pytest.mark.parametrize("nonneg", [False, True])
def test_k_sparse_solutions_are_not_better_than_brute_force_and_are_stationary(nonneg):
    x, D, _ = problem(n=10, d=5, P=8)
    R = px.KSparse(2, nonneg)
    found = px.solve(x, D, R)
    hits = 0
    for row, z in zip(x, found.codes, strict=True):
        supports = [list(S) for S in itertools.combinations(range(8), 2)]
        errors = [nnls(D[S].T, row)[1] if nonneg else residual(D[S], row) for S in supports]
        reached = np.linalg.norm(row - z @ D)
        assert reached >= min(errors) - 1e-9
        hits += reached <= min(errors) + 1e-9
    assert hits >= 3  # a local method, but not a blind one


def residual(A, row):
    return np.linalg.norm(row - np.linalg.lstsq(A.T, row, rcond=None)[0] @ A)


@pytest.mark.parametrize("momentum", [None, "fista"])
def test_measured_rates_obey_the_theorems(momentum):
    rate = theory.fista_rate if momentum else theory.ista_rate
    for seed in range(10):
        x, D, _ = problem(n=1, seed=seed)
        R = px.L1(0.2)
        star = px.solve(x, D, R, tol=1e-13, max_steps=5000).codes
        best = 0.5 * ((x - star @ D) ** 2).sum() + R.value(star)[0]
        excess = px.ista(x, D, R, 200, momentum=momentum).objective[1:, 0] - best
        bounds = [rate(px.lipschitz(D), np.linalg.norm(star), t) for t in range(1, 201)]
        assert (excess <= np.array(bounds) * (1 + 1e-9) + 1e-11).all()
        if momentum:  # a wrong momentum coefficient would still converge, but not this fast
            assert excess[99] < px.ista(x, D, R, 100).objective[-1, 0] - best


def test_one_step_finds_the_support_below_its_bound_and_more_steps_find_it_above():
    """thm-one-step-support on [I, Hadamard], coherence 1/16, and its failure at a large dynamic range."""
    hadamard = np.array([[1.0]])
    for _ in range(8):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    D = np.concatenate([np.eye(256), hadamard / 16])
    assert px.coherence(D) == pytest.approx(1 / 16)
    for spread, one_step_works in ((1.0, True), (60.0, False)):
        data = px.data.planted(20, 256, 512, 8, dynamic_range=spread)
        bound = theory.one_step_sparsity(px.coherence(D), spread)
        assert (bound > 8) == one_step_works
        traces = px.ista(data.z @ D, D, px.KSparse(8), 60, px.ExactStep(), keep="all")
        right = [((code != 0) == (data.z != 0)).all(axis=1) for code in (traces.steps[1], traces.codes)]
        assert right[0].all() if one_step_works else right[0].mean() < 0.2
        assert right[1].mean() > 0.9


@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize("nonneg", [False, True])
def test_latents_that_are_off_leave_problem_and_certificates_to_the_others(make, nonneg):
    rng = np.random.default_rng(0)
    x, D, lam = rng.standard_normal((4, 6)), rng.standard_normal((12, 6)), np.full(12, 0.3)
    off = [2, 5, 11]
    on = [i for i in range(12) if i not in off]
    lam[off] = np.inf
    some, rest = px.L1(lam, nonneg), px.L1(0.3, nonneg)
    z = np.asarray(px.solve(make(x), make(D), rest, tol=1e-3).codes)
    z[:, off] = 0
    gap = px.duality_gap(make(x), make(D), make(z), some)
    pt.assert_close(gap, px.duality_gap(make(x), make(D[on]), make(z[:, on]), rest), 1e-13)
    found = px.solve(make(x), make(D), some, tol=1e-9)
    assert bool(found.converged.all())
    assert not np.asarray(found.codes)[:, off].any()
    pt.assert_close(found.codes[:, on], px.solve(make(x), make(D[on]), rest, tol=1e-9).codes, 1e-5)
    z[1, 5] = 1e-30 if not nonneg else 1.0
    assert np.isinf(np.asarray(px.duality_gap(make(x), make(D), make(z), some))).tolist() == [False, True, False, False]
    for rule in (px.Backtracking(), px.ExactStep(), px.Refit()):
        F = np.asarray(px.ista(make(x), make(D), some, 4, rule, z0=make(z)).objective)
        assert np.isinf(F[0, 1])
        assert np.isfinite(F[1:]).all()
        assert (np.diff(F[1:], axis=0) <= 1e-12).all()

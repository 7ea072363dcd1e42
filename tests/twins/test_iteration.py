"""The torch iteration against the NumPy oracle: codes, objectives and counted products, on every rule."""

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import testing as pt
from proxsae.pytorch import refit

RULES = [px.Lipschitz(), px.FixedStep(0.1), px.Backtracking(), px.ExactStep(), px.Refit()]
PENALTIES = {
    "L1": px.L1(0.5),
    "L1 nonneg": px.L1(0.3, nonneg=True),
    "L1 per latent": px.L1(np.random.default_rng(1).uniform(0.1, 1, 40)),
    "L0": px.L0(0.5),
    "L0 nonneg": px.L0(0.3, nonneg=True),
    "L0 per latent": px.L0(np.random.default_rng(2).uniform(0.1, 1, 40)),
    "L0 two weights": px.L0(0.1, lam_minus=np.random.default_rng(3).uniform(0.1, 2, 40)),
    "L0 negative off": px.L0(0.1, lam_minus=np.inf),
    "KSparse": px.KSparse(4),
    "KSparse nonneg": px.KSparse(4, nonneg=True),
    "ElasticNet": px.ElasticNet(0.5, 0.3),
    "MCP": px.MCP(0.5, 3.0),
    "MCP nonneg": px.MCP(0.5, 0.1, nonneg=True),  # most steps are past gamma
    "SCAD": px.SCAD(0.4, 3.7),
    "GroupL2": px.GroupL2(0.5, 4),
    "SortedL1": px.SortedL1(np.linspace(1, 0.2, 40)),
    "SortedL1 nonneg": px.SortedL1(np.linspace(1, 0.2, 40), nonneg=True),
}
for family in px.penalties.FAMILIES.values():  # the others as the laws have them
    if family.rowwise and not any(isinstance(R, family) for R in PENALTIES.values()):
        PENALTIES[family.__name__] = next(R for R in pt.OPERATORS.values() if type(R) is family and not np.ndim(R.lam))
CURVED = tuple(family for family in px.penalties.FAMILIES.values() if not family.affine)
CASES = [
    pytest.param(R, rule, id=f"{name}-{rule}")
    for name, R in PENALTIES.items()
    for rule in RULES
    if not (isinstance(R, CURVED) and isinstance(rule, (px.ExactStep, px.Refit)))
]


def problem(n=6, d=16, P=40, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((P, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    return scale * rng.standard_normal((n, d)), D, 0.1 * rng.standard_normal(d)


def tensors(device, *arrays):
    return [torch.tensor(a, device=device) for a in arrays]


@pytest.mark.parametrize("momentum", [None, "fista"])
@pytest.mark.parametrize(("R", "rule"), CASES)
def test_torch_follows_the_oracle(R, rule, momentum, device):
    if momentum and (not R.convex or isinstance(rule, (px.ExactStep, px.Refit))):
        with pytest.raises(px.Error, match="thm-fista-rate"):
            px.ista(*problem()[:2], R, 3, rule, momentum)
        return
    x, D, b = problem()
    want = px.ista(x, D, R, 12, rule, momentum, bias=b, keep="all")
    xt, Dt, bt = tensors(device, x, D, b)
    got = px.ista(xt, Dt, R, 12, rule, momentum, bias=bt, keep="all")
    for mine, oracle in zip(got.steps, want.steps, strict=True):
        pt.assert_close(mine, torch.tensor(oracle, device=device), 1e-9)
    pt.assert_same(got.codes, got.steps[-1])
    pt.assert_close(got.objective, torch.tensor(want.objective, device=device), 1e-10)
    if not isinstance(rule, px.Refit):
        pt.assert_close(got.products, torch.tensor(want.products, device=device), 1e-12)
    else:  # a refit that has converged moves by rounding only, and then trials differ; before that they agree
        moving = np.abs(np.diff(want.objective, axis=0)).min(axis=1).cumprod() > 1e-9
        upto = 1 + int(moving.argmin()) if not moving.all() else len(moving)
        pt.assert_close(got.products[:upto], torch.tensor(want.products[:upto], device=device), 1e-12)


@pytest.mark.parametrize(("R", "rule"), CASES)
def test_the_objective_never_rises(R, rule, device):
    for seed in range(5):
        x, D, _ = problem(seed=seed)
        trace = px.ista(*tensors(device, x, D), R, 20, rule)
        rises = trace.objective.diff(dim=0)
        assert float(rises.max()) <= 1e-12 * float(trace.objective.max())


@pytest.mark.parametrize("family", CURVED)
def test_rules_for_affine_penalties_refuse_curved_ones(family, device):
    R = next(R for R in PENALTIES.values() if isinstance(R, family))
    for x, D in (problem()[:2], tensors(device, *problem()[:2])):
        for rule, label in ((px.ExactStep(), "thm-exact-step"), (px.Refit(), "thm-refit")):
            with pytest.raises(px.Error, match=label):
                px.ista(x, D, R, 3, rule)
        with pytest.raises(px.Error, match=r"rows one by one: use KSparse\(k\)"):
            px.ista(x, D, px.BatchKSparse(2), 3)


@pytest.mark.parametrize("rule", [px.ExactStep(), px.Refit(), px.Backtracking()], ids=repr)
@pytest.mark.parametrize("name", ["L1", "KSparse", "KSparse nonneg", "L0"])
def test_smarter_steps_pay_on_average(rule, name, device):
    """Not a theorem, but the reason for these rules: after 4 steps they are below 1/L steps."""
    x, D, _ = problem(n=50, seed=3)
    timid = px.ista(*tensors(device, x, D), PENALTIES[name], 4).objective[-1].mean()
    assert float(px.ista(*tensors(device, x, D), PENALTIES[name], 4, rule).objective[-1].mean()) < float(timid)


def test_exact_step_minimises_along_the_line():
    """One step from a given support, against a fine grid of step sizes on that support."""
    x, D, _ = problem(n=20)
    R = px.KSparse(4)
    z0 = px.ista(x, D, R, 3).codes
    after = px.ista(x, D, R, 1, px.ExactStep(), z0=z0)
    for row, z, new, value in zip(x, z0, after.codes, after.objective[1], strict=True):
        if ((new != 0) == (z != 0)).all():
            h = np.where(z != 0, D @ (z @ D - row), 0)
            tries = z - np.linspace(0, 5, 5001)[:, None] * h
            assert value <= (0.5 * ((row - tries @ D) ** 2).sum(-1)).min() + 1e-9


@pytest.mark.parametrize("nonneg", [False, True])
def test_refit_is_least_squares_on_its_support(nonneg):
    """Against numpy.linalg.lstsq where no sign binds, and never above the best feasible point of the segment."""
    x, D, _ = problem(n=30)
    trace = px.ista(x, D, px.KSparse(4, nonneg), 1, px.Refit())
    free = 0
    for row, z in zip(x, trace.codes, strict=True):
        S = np.flatnonzero(z)
        best = np.linalg.lstsq(D[S].T, row, rcond=None)[0]
        if len(S) == 4 and (not nonneg or (best > 0).all()):
            free += 1
            pt.assert_close(z[S], best, 1e-10)
    assert free >= 5


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_leading_axes_empty_batches_and_start(rule, device):
    x, D, b = tensors(device, *problem())
    R = px.KSparse(4)
    flat = px.ista(x, D, R, 4, rule, bias=b, keep="all")
    cube = px.ista(x.reshape(2, 3, -1), D, R, 4, rule, bias=b)
    pt.assert_close(cube.codes.reshape(6, -1), flat.codes, 1e-12)
    assert cube.objective.shape == (5, 2, 3)
    single = px.ista(x[0], D, R, 4, rule, bias=b)
    pt.assert_close(single.codes, flat.codes[0], 1e-12)
    empty = px.ista(x[:0], D, R, 4, rule, bias=b)
    assert empty.codes.shape == (0, 40)
    assert empty.objective.shape == (5, 0)
    assert px.ista(np.zeros((0, 16)), D.cpu().numpy(), R, 2, rule).codes.shape == (0, 40)
    if not isinstance(rule, px.Backtracking):  # whose step remembers the past
        again = px.ista(x, D, R, 2, rule, bias=b, z0=flat.steps[2])
        pt.assert_close(again.codes, flat.codes, 1e-9)
    none = px.ista(x, D, R, 0, rule)
    assert none.steps is None
    assert not none.codes.any()


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("name", ["L1", "L1 nonneg", "KSparse", "KSparse nonneg"])
def test_gradients_are_finite_differences_where_steps_are_held(rule, name, device):
    """Step sizes are constants of the backward pass, so only rules with given ones have the full derivative."""
    x, D, _ = tensors(device, *problem(n=2, d=5, P=8))
    R = px.L1(0.3, name.endswith("nonneg")) if name.startswith("L1") else px.KSparse(3, name.endswith("nonneg"))
    x.requires_grad_()
    D.requires_grad_()
    codes = px.ista(x, D, R, 3, rule).codes
    weight = torch.linspace(-1, 1, codes.numel(), dtype=codes.dtype, device=device).reshape(codes.shape)
    gradient = torch.autograd.grad((codes * weight).sum(), (x, D))
    assert all(bool(g.isfinite().all()) for g in gradient)
    if isinstance(rule, px.FixedStep):
        assert torch.autograd.gradcheck(lambda x, D: px.ista(x, D, R, 3, rule).codes, (x, D), eps=1e-6, atol=1e-6)


def test_float32_follows_float64(device):
    x, D, _ = tensors(device, *problem(n=40))
    for R in (px.L1(0.5), px.L1(0.3, nonneg=True)):
        for rule in RULES[:4]:
            wide = px.ista(x, D, R, 12, rule).codes.float()
            pt.assert_close(px.ista(x.float(), D.float(), R, 12, rule).codes, wide, 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_descends(dtype, device):
    x, D, _ = tensors(device, *problem(n=20))
    for rule in RULES:
        trace = px.ista(x.to(dtype), D.to(dtype), px.KSparse(4), 8, rule)
        assert trace.codes.dtype == dtype
        assert float(trace.objective[-1].float().mean()) < 0.7 * float(trace.objective[0].float().mean())
    assert px.solve(x.to(dtype), D.to(dtype), px.KSparse(4), tol=0.1).codes.dtype == dtype


BAD = {
    "NaN": (lambda x, D: px.ista(x * np.nan, D, px.L1(1.0), 1), "NaN"),
    "inf": (lambda x, D: px.ista(x, D / 0, px.L1(1.0), 1), "D holds"),
    "width": (lambda x, D: px.ista(x[:, :3], D, px.L1(1.0), 1), "width 3"),
    "integers": (lambda x, D: px.ista(x.astype(int), D, px.L1(1.0), 1), "int64"),
    "zeros": (lambda x, D: px.ista(x, 0 * D, px.L1(1.0), 1), "all zeros"),
    "dtype": (lambda x, D: px.ista(x, D.astype(np.float32), px.L1(1.0), 1), "float32"),
    "library": (lambda x, D: px.ista(torch.tensor(x), D, px.L1(1.0), 1), "numpy"),
    "z0": (lambda x, D: px.ista(x, D, px.L1(1.0), 1, z0=x), "z0 has shape"),
    "bias": (lambda x, D: px.ista(x, D, px.L1(1.0), 1, bias=x), "bias has shape"),
    "steps": (lambda x, D: px.ista(x, D, px.L1(1.0), -1), "steps=-1"),
    "rule": (lambda x, D: px.ista(x, D, px.L1(1.0), 1, 0.5), "step=0.5"),
    "momentum": (lambda x, D: px.ista(x, D, px.L1(1.0), 1, momentum="heavy"), "heavy"),
    "keep": (lambda x, D: px.ista(x, D, px.L1(1.0), 1, keep="some"), "some"),
    "diverges": (lambda x, D: px.ista(x, D, px.L1(1.0), 1, px.FixedStep(0.9)), "thm-ista-descent"),
    "too long for momentum": (lambda x, D: px.ista(x, D, px.L1(1.0), 1, px.FixedStep(0.3), "fista"), "1/L"),
    "negative step": (lambda x, D: px.FixedStep(-1.0), "mu=-1"),
    "lam width": (lambda x, D: px.ista(x, D, px.L1(np.ones(3)), 1), "40 latents"),
    "no penalty": (lambda x, D: px.ista(x, D, "l1", 1), "R='l1'"),
    "a class": (lambda x, D: px.ista(x, D, px.L1, 1), "must be a penalty"),
    "too large": (lambda x, D: px.ista(x, D * 1e200, px.L1(1.0), 1), "rescale"),
    "tol": (lambda x, D: px.solve(x, D, px.L1(1.0), tol=0.0), "tol=0"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # some of the bad input is made by dividing by zero
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_sentence(case):
    call, says = BAD[case]
    with pytest.raises(px.Error, match=says) as error:
        call(*problem()[:2])
    assert "\n" not in str(error.value)


def test_inputs_are_not_written(device):
    arrays = problem()
    given = tensors(device, *arrays)
    for rule in RULES:
        px.ista(given[0], given[1], px.L1(0.5), 3, rule, bias=given[2])
    for a, t in zip(arrays, given, strict=True):
        pt.assert_same(t, torch.tensor(a, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_go_on_after_convergence(dtype, device):
    """Where nothing is left to gain the exact step is 0/0; it must neither raise nor move the code away."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x, D = (torch.tensor(rng.standard_normal(s), device=device).to(dtype) for s in ((12, 1), (10, 1)))
        for R in (px.L0(0.02), px.L1(0.02), px.KSparse(3, nonneg=True)):
            for rule in RULES[2:]:
                trace = px.ista(x, D, R, 120, rule)
                assert bool(trace.objective.isfinite().all())
                pt.assert_close(trace.objective[-1], trace.objective.amin(dim=0), 1e-5)
        px.ista(x[:2].cpu().double().numpy(), D.cpu().double().numpy(), px.L0(0.02), 120, px.ExactStep())


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("rule", [px.Backtracking(), px.ExactStep(), px.Refit()], ids=repr)
def test_the_unit_of_the_dictionary_does_not_matter(rule, scale, device):
    x, D, _ = tensors(device, *problem())
    want = px.ista(x, D, px.KSparse(4), 5, rule).codes
    pt.assert_close(px.ista(x, scale * D, px.KSparse(4), 5, rule).codes * scale, want, 1e-8)


def test_a_short_atom_is_not_a_dependent_one(device):
    D = torch.tensor([[1.0, 0, 0], [0, 0.01, 0]], device=device)
    x = torch.tensor([[1.0, 1, 0]], device=device, requires_grad=True)
    after = px.ista(x, D, px.KSparse(2), 1, px.Refit())
    pt.assert_close(after.codes.detach(), torch.tensor([[1.0, 100.0]], device=device), 1e-5)
    (slope,) = torch.autograd.grad(px.solve(x, D, px.KSparse(2)).codes[0, 1], x)
    pt.assert_close(slope, torch.tensor([[0.0, 100.0, 0.0]], device=device), 1e-5)


def test_duplicate_and_zero_atoms_do_no_harm(device):
    x, D, _ = tensors(device, *problem(P=20))
    D = torch.cat([D, D[:5], 0 * D[:2]])
    for rule in RULES:
        for R in (px.L1(0.1), px.KSparse(12)):
            trace = px.ista(x, D, R, 10, rule)
            assert float(trace.objective.diff(dim=0).max()) <= 1e-10
            assert not trace.codes[:, 25:].any()


@pytest.mark.parametrize("R", [px.L1(0.1), px.L0(0.0), px.KSparse(4)], ids=repr)
def test_refit_leaves_a_zero_atom_of_the_start_alone(R, device):
    x, D, z0 = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 5.0, 1.0]])
    ours = px.ista(x, D, R, 2, px.Refit(), z0=z0)
    theirs = px.ista(*tensors(device, x, D), R, 2, px.Refit(), z0=tensors(device, z0)[0])
    pt.assert_close(theirs.codes, torch.tensor(ours.codes, device=device), 1e-12)
    assert (np.diff(ours.objective, axis=0) <= 0).all()


def test_refit_sees_a_sign_change_too_small_to_multiply(device):
    z = torch.tensor([[1e-30, 1.0]], device=device)
    c = torch.tensor([[-1e-20, 1.0]], device=device)
    from proxsae.pytorch.refit import refit

    after = refit(z, c, torch.eye(2, device=device), px.KSparse(2, nonneg=True))
    pt.assert_same(after[:, 0], torch.zeros(1, device=device))


@pytest.mark.parametrize("kind", ["unit", "duplicates", "scaled"])
@pytest.mark.parametrize("rule", [px.Lipschitz(), px.Backtracking(), px.ExactStep(), px.Refit()], ids=repr)
def test_the_objective_never_rises_on_hard_dictionaries(rule, kind, device):
    """Tiny and wide ones, with repeated and zero atoms or norms over four decades, rows of 0, from 0 and from z0."""
    rng = np.random.default_rng(7)
    for d, P in ((1, 10), (5, 5), (3, 60)):
        D = rng.standard_normal((P, d))
        D /= np.linalg.norm(D, axis=1, keepdims=True)
        if kind == "duplicates":
            D[P // 2 :] = D[: P - P // 2]
            D[0] = 0
        if kind == "scaled":
            D *= np.exp(rng.uniform(-6, 3, (P, 1)))
        x = rng.standard_normal((8, d)) * np.exp(rng.uniform(-3, 3, (8, 1)))
        x[0] = 0
        for R in (px.L1(0.1), px.L1(0.0), px.L0(0.1, nonneg=True), px.KSparse(3), px.KSparse(3, nonneg=True)):
            start = R.prox(rng.standard_normal((8, P)))
            for dtype, slack in ((torch.float64, 1e-14), (torch.float32, 1e-5)):
                for z0 in (None, torch.tensor(start, device=device).to(dtype)):
                    rows, atoms = (torch.tensor(a, device=device).to(dtype) for a in (x, D))
                    F = px.ista(rows, atoms, R, 12, rule, z0=z0).objective
                    assert bool(F.isfinite().all())
                    assert bool((F.diff(dim=0) <= slack * F[0]).all())


def test_more_atoms_than_dimensions_are_never_taken_for_independent():
    """Nine nearly parallel atoms in eight dimensions: of some no pivot of the singular Gram matrix is small."""
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        atoms = 1 + 10.0 ** (-1 - seed % 3) * torch.randn(9, 8, generator=generator, dtype=torch.float64)
        atoms = atoms / atoms.norm(dim=1, keepdim=True)
        gram, code = atoms @ atoms.T, torch.randn(9, generator=generator, dtype=torch.float64)
        found = refit._inverse(gram[None], 1000 * 2.0**-52)[0] @ (gram @ code)
        assert float(((found - code) @ atoms).norm()) <= 1e-3 * float((code @ atoms).norm())


def test_residuals_in_half_precision_are_squared_in_a_wider_one(device):
    for size in (300.0, 1e-3):  # whose squares are beyond float16, and among its subnormal numbers
        x, D = np.array([size, size / 3], np.float16), np.eye(2, dtype=np.float16)
        want = np.float16(0.5 * (x.astype(float) ** 2).sum())
        for rows, atoms in ((x, D), (torch.tensor(x, device=device), torch.tensor(D, device=device))):
            assert abs(float(px.ista(rows, atoms, px.L1(0.1), 0).objective[0]) / float(want) - 1) < 2e-3

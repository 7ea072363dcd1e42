"""Parameters, values and errors of the penalties; that their operators are right is for the laws."""

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.testing import OPERATORS, assert_close, assert_same, lattice


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: px.L1(-1), "lam=-1"),
        (lambda: px.L1(float("nan")), "lam=nan"),
        (lambda: px.L0(-float("inf")), "lam=-inf"),
        (lambda: px.L1([np.inf, np.nan]), "entry nan at 1"),
        (lambda: px.L0([1.0, -2.0]), "entry -2"),
        (lambda: px.L1(np.ones((2, 2))), r"shape \(2, 2\)"),
        (lambda: px.L1("a"), "'a'"),
        (lambda: px.L1(torch.tensor(-1.0)), r"tensor\(-1"),
        (lambda: px.L0(1.0, bandwidth=0.0), "bandwidth=0"),
        (lambda: px.L0(1.0, lam_minus=-1.0), "L0: lam_minus=-1.0 must be >= 0"),
        (lambda: px.L0(1.0, lam_minus=[1.0, np.nan]), "lam_minus has the entry nan at 1"),
        (lambda: px.L0(1.0, nonneg=True, lam_minus=2.0), r"lam_minus=2.0 must be None beside nonneg=True.*thm-prox-l0"),
        (lambda: px.L0(None), "lam"),
        (lambda: px.L0(1.0, lam_minus=[1.0, 2.0]).prox(np.ones(3)), "lam_minus holds 2 values"),
        (lambda: px.L0(1.0, lam_minus=torch.tensor(1.0)).prox(np.ones(3)), "lam_minus is a torch tensor"),
        (lambda: px.KSparse(-1), "k=-1"),
        (lambda: px.KSparse(1.5), "k=1.5"),
        (lambda: px.KSparse(True), "k=True"),
        (lambda: px.L1(1.0).prox(np.ones(3), step=-1.0), "step=-1"),
        (lambda: px.L1(1.0).prox(np.ones(3), step=0.0), "step=0"),
        (lambda: px.KSparse(1).prox(np.ones(3), step=float("nan")), "step=nan"),
        (lambda: px.KSparse(1).prox(np.ones(3), step=True), "step=True"),
        (lambda: px.KSparse(1).prox(np.ones(3), step="a"), "step='a'"),
        (lambda: px.KSparse(1).prox(np.ones(3), step=None), "step=None"),
        (lambda: px.L1(1.0).prox(np.ones(3), step=np.ones(3)), "one per row"),
        (lambda: px.L1(1.0).prox(torch.ones(3), step=torch.ones(3)), "one per row"),
        (lambda: px.L1(1.0).prox(torch.ones(2, 3), step=np.ones(2)), "one per row"),
        (lambda: px.L1(1.0).prox(np.ones((2, 3)), step=torch.ones(2)), "one per row"),
        (lambda: px.L1(["a"]), r"\['a'\]"),
        (lambda: px.L1(np.zeros(0)), r"shape \(0,\)"),
        (lambda: px.L0(1.0, bandwidth="a"), "bandwidth='a'"),
        (lambda: px.KSparse(1).prox(np.arange(3)), "int64"),
        (lambda: px.KSparse(1).prox(torch.arange(3)), "int64"),
        (lambda: px.KSparse(1).prox(np.float64(3)), "single number"),
        (lambda: px.L1(np.ones(4)).prox(np.ones(3)), "3 latents"),
        (lambda: px.L1(torch.ones(4)).prox(torch.ones(3)), "3 latents"),
        (lambda: px.L1(torch.ones(3)).prox(np.ones(3)), "numpy array"),
        (lambda: px.ElasticNet(0.5, -1), "alpha=-1 must be finite and >= 0"),
        (lambda: px.ElasticNet(-0.5, 1), "lam=-0.5"),
        (lambda: px.MCP(0.5, 0), "gamma=0 must be finite and > 0"),
        (lambda: px.MCP(0.5, "a"), "gamma='a'"),
        (lambda: px.MCP(0.5, True), "gamma=True"),
        (lambda: px.SCAD(0.5, 2.0), "a=2.0 must be finite and > 2"),
        (lambda: px.SCAD(0.5, float("inf")), "a=inf"),
        (lambda: px.SCAD(0.5, float("nan")), "a=nan"),
        (lambda: px.GroupL2(0.5, 0), "size=0"),
        (lambda: px.GroupL2(np.ones(3), 1), "one number"),
        (lambda: px.GroupL2(0.5, 2).prox(np.ones(5)), "multiple of 2"),
        (lambda: px.GroupL2(0.5, 2).value(torch.ones(5)), "multiple of 2"),
        (lambda: px.SortedL1([1.0, 2.0]), "non-increasing"),
        (lambda: px.SortedL1([1.0, -2.0]), "entry -2"),
        (lambda: px.SortedL1([2.0, 1.0]).prox(np.ones(3)), "3 latents"),
        (lambda: px.BatchKSparse(-1), "k=-1"),
    ],
)
def test_bad_parameters_are_refused_in_one_sentence(make, says):
    with pytest.raises(px.Error, match=says) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("R", OPERATORS.values(), ids=OPERATORS)
def test_step_may_differ_by_row(R, backend):
    rng = np.random.default_rng(0)
    u = rng.normal(size=(2, 3, max(lattice.widths(R)))).astype(backend.dtype)
    steps = rng.uniform(0.1, 6, size=(2, 3))
    got = R.prox(backend.make(u), backend.make(steps))
    for i in range(2 if R.rowwise else 0):
        for j in range(3):
            assert_same(got[i, j], R.prox(backend.make(u[i, j]), float(steps[i, j])))


@pytest.mark.parametrize("R", OPERATORS.values(), ids=OPERATORS)
def test_empty_batches_keep_their_shape(R, backend):
    width = max(lattice.widths(R))
    for shape in ((0, width), (2, 0, width), (0, 2, width)):
        u = backend.make(np.zeros(shape, backend.dtype))
        assert_same(R.prox(u), u)
        assert R.value(u).shape == shape[:-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("R", OPERATORS.values(), ids=OPERATORS)
def test_half_precision_is_the_rounded_single_precision_result(R, dtype, device):
    u = torch.randn(64, max(lattice.widths(R)), device=device, generator=torch.Generator(device).manual_seed(0)).to(
        dtype
    )
    got, wide = R.prox(u, 0.5), R.prox(u.float(), 0.5)
    assert got.dtype == dtype
    near = (got.float() - wide).abs() <= 2.0**-7 * (1 + wide.abs())
    kink = (got == 0) != (wide == 0)  # a threshold rounded to half precision decides its neighbours anew
    assert bool((near | kink).all())
    assert float(kink.float().mean()) < 0.02


def test_limits_of_the_families_are_other_families(backend):
    u = backend.make((np.random.default_rng(0).normal(size=(50, 6)) * 2).astype(backend.dtype))
    for step in (0.3, 1.0, 4.0):
        assert_same(px.ElasticNet(0.5, 0.0).prox(u, step), px.L1(0.5).prox(u, step))
        assert_close(px.GroupL2(0.5, 1).prox(u, step), px.L1(0.5).prox(u, step), 1e-6)
        assert_close(px.SortedL1(0.5).prox(u, step), px.L1(0.5).prox(u, step), 1e-6)
        assert_close(px.MCP(0.5, 1e9).prox(u, step), px.L1(0.5).prox(u, step), 1e-6)
        assert_close(px.SCAD(0.5, 1e9).prox(u, step), px.L1(0.5).prox(u, step), 1e-6)
        tiny = 1e-9  # MCP with gamma -> 0 at gamma lam^2 / 2 = 0.5 is L0
        assert_same(px.MCP((1 / tiny) ** 0.5, tiny).prox(u, step), px.L0(0.5).prox(u, step))
        for row in u:
            assert_same(px.BatchKSparse(2).prox(row[None], step)[0], px.KSparse(2).prox(row, step))


def test_group_norms_neither_overflow_nor_vanish():
    R = px.GroupL2(1.0, 2)
    for scale in (1e-200, 1e200):
        u = np.array([3.0, 4.0]) * scale
        for got in (R.prox(u, 2.5 * scale), R.prox(torch.tensor(u), 2.5 * scale).numpy()):
            assert_close(got / scale, np.array([1.5, 2.0]), 1e-14)
        for got in (R.value(u), R.value(torch.tensor(u)).numpy()):
            assert_close(np.asarray(got) / scale, np.float64(5.0) * np.ones(()), 1e-14)


def test_gradients_at_zero_blocks_and_ties_are_finite(device):
    for R in OPERATORS.values():
        for fill in (0.0, 0.5, -0.5):
            u = torch.full((3, max(lattice.widths(R))), fill, dtype=torch.float64, device=device)
            u.requires_grad_()
            R.prox(u, 1.0).sum().backward()
            cost = R.value(u.clamp(min=0) if R.nonneg else u).sum()
            if cost.requires_grad and bool(cost.isfinite()):  # a count, as L0's, has no gradient
                cost.backward()
            assert bool(u.grad.isfinite().all()), (R, fill)


WEIGHTED = {
    "L1": lambda lam, nonneg: px.L1(lam, nonneg),
    "L0": lambda lam, nonneg: px.L0(lam, nonneg),
    "L0 two weights": lambda lam, nonneg: px.L0(lam, nonneg, lam_minus=None if nonneg else lam),
    "ElasticNet": lambda lam, nonneg: px.ElasticNet(lam, 0.5, nonneg),
    "MCP": lambda lam, nonneg: px.MCP(lam, 2.0, nonneg),
    "SCAD": lambda lam, nonneg: px.SCAD(lam, 3.0, nonneg),
}


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("family", WEIGHTED)
def test_an_infinite_lam_switches_its_latent_off_and_no_other(family, nonneg, backend):
    make = WEIGHTED[family]
    some, rest = make(np.array([0.5, np.inf, 0.0, np.inf]), nonneg), make(np.array([0.5, 0.0]), nonneg)
    nan, inf = np.nan, np.inf
    u = np.array([[2, 3, -1, 4], [nan, -inf, inf, nan], [0, inf, -0.0, 0], [-3, 1e30, 4, -1e-30]], backend.dtype)
    z = np.array([[2, 0, 1, -0.0], [2, 1e-30, 1, 0], [0, 0, 0, 0], [nan, 0, 1, 0], [-1, 0, 0, -5]], backend.dtype)
    cost = rest.value(z[:, [0, 2]])
    cost[[1, 4]] = inf
    gone = np.where(np.isnan(u[:, [1, 3]]), u[:, [1, 3]], 0)
    for step in (0.3, 1.0, 2.0, 5.0):
        out = some.prox(backend.make(u), step)
        assert_same(out[:, [0, 2]], backend.make(rest.prox(u[:, [0, 2]], step)))
        assert_same(out[:, [1, 3]], backend.make(gone))
        assert_same(make(inf, nonneg).prox(backend.make(u), step), backend.make(np.where(np.isnan(u), u, 0)))
    assert_same(some.value(backend.make(z)), backend.make(cost))
    assert_same(make(inf, nonneg).value(backend.make(z[2:3])), backend.make(np.zeros(1, backend.dtype)))
    if some.affine:
        assert_same(some.slope(backend.make(z[:1]))[:, [0, 2]], rest.slope(backend.make(z[:1, [0, 2]])))
        assert_same(some.slope(backend.make(z[:1]))[:, [1, 3]], backend.make(np.zeros((1, 2), backend.dtype)))


@pytest.mark.parametrize("family", WEIGHTED)
def test_gradients_pass_by_latents_that_are_off(family, device):
    def made(*values):
        return torch.tensor(values, dtype=torch.float64, device=device, requires_grad=True)

    for step in (0.7, 2.5, 5.0):
        found = []
        for lam, u in ((made(0.5, np.inf, 0.25), made(4.0, 3.0, -4.0)), (made(0.5, 0.25), made(4.0, -4.0))):
            mu, R = made(step), WEIGHTED[family](lam, False)
            z = R.prox(u, mu[0])
            (z.sum() + R.value(z).sum()).backward()
            found.append([a.grad for a in (u, lam, mu)])
        (u, lam, mu), (some, its, alone) = found
        assert_same(u, torch.stack([some[0], u.new_zeros(()), some[1]]))
        assert_same(lam, torch.stack([its[0], u.new_zeros(()), its[1]]))
        assert_close(mu, alone, 1e-12)


def test_a_lam_beyond_the_dtype_costs_nothing_at_zero(backend):
    z = backend.make(np.zeros((2, 4), backend.dtype))
    for R in (px.L1(1e300), px.ElasticNet(1e300, 1.0), px.MCP(1e300), px.SCAD(1e300), px.GroupL2(1e300, 2)):
        assert R.value(z).tolist() == [0, 0]


def test_a_factor_beyond_the_dtype_or_between_its_numbers_is_rounded_with_the_entry_only(backend):
    u = np.arange(-40, 41).astype(backend.dtype) / 8  # all that is subtracted from it below is exact
    for R, step in (
        (px.ElasticNet(0.5, 0.3), 1.0),
        (px.ElasticNet(0.5, 1e6), 1.0),  # 1 + mu alpha is no float16
        (px.ElasticNet(0.0, 3.0), 60_000.0),
        (px.ElasticNet(0.0, 1e32), 1e8),  # and no float32
        (px.MCP(0.5, 3.7), 1.0),
        (px.SCAD(0.5, 3.0), 0.25),  # the factor is 8/7
    ):
        want = R.prox(u.astype(np.float64), step).astype(backend.dtype) + 0
        assert_same(R.prox(backend.make(u), step), backend.make(want))


def test_lam_tensors_of_the_curved_families_carry_gradients(device):
    u = torch.tensor([4.0, -0.9, 0.1, 1.0], dtype=torch.float64, device=device)
    for make in (
        lambda lam: px.ElasticNet(lam, 0.5),
        lambda lam: px.MCP(lam, 3.0),
        lambda lam: px.SCAD(lam, 3.7),
        lambda lam: px.GroupL2(lam, 2),
        lambda lam: px.SortedL1(lam),
    ):
        lam = torch.tensor(0.4, dtype=torch.float64, device=device, requires_grad=True)
        (make(lam).prox(u, 0.7) * torch.arange(1.0, 5.0, dtype=torch.float64, device=device)).sum().backward()
        weight, h = np.arange(1.0, 5.0), 1e-6
        up, down = ((make(0.4 + s * h).prox(u.cpu().numpy(), 0.7) * weight).sum() for s in (1, -1))
        assert_close(lam.grad.cpu().numpy(), np.asarray((up - down) / (2 * h)), 1e-6)


@pytest.mark.parametrize("make", [px.L1, lambda lam, nonneg: px.ElasticNet(lam, 0.5, nonneg)], ids=["L1", "ElasticNet"])
@pytest.mark.parametrize("nonneg", [False, True])
def test_a_lam_of_zero_has_its_one_sided_derivative(make, nonneg, device):
    """-mu sign(u) where the code is not 0 (thm-prox-gradient): with 0 a trained lam that starts at 0 never moves."""
    u, mu = torch.tensor([2.0, -3.0, 0.0, 1.0], dtype=torch.float64, device=device), 0.5
    grads = []
    for start in (0.0, 1e-9):
        lam = torch.full((4,), start, dtype=torch.float64, device=device, requires_grad=True)
        make(lam, nonneg=nonneg).prox(u, mu).sum().backward()
        grads.append(lam.grad)
    assert_close(grads[0], grads[1], 1e-15)
    assert grads[0].sign().tolist() == [-1, 0 if nonneg else 1, 0, -1]


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")  # of the compiler itself
def test_a_compiled_threshold_is_the_same_number(device):
    """torch.compile reads np.sqrt as torch's, which is off by one unit at some of these: a tie would be kept."""
    twice = np.random.default_rng(0).random(4000)
    u = torch.tensor(np.sqrt(twice), device=device)
    R = px.L0(torch.tensor(twice / 2, device=device))
    assert not R.prox(u).any()
    assert not torch.compile(R.prox, backend="eager")(u).any()


def test_value_adds_up_in_float32_for_half_precision(device):
    z = torch.full((1, 4096), 0.01, dtype=torch.float16, device=device)
    assert_close(px.L1(1.0).value(z).float(), torch.tensor([40.96], device=device), 1e-3)


def test_penalties_are_values():
    assert px.KSparse(3) == px.KSparse(3) != px.KSparse(4)
    assert px.L1([1.0, 2.0]) == px.L1(np.array([1.0, 2.0])) != px.L1([1.0, 3.0])
    assert px.L1(1.0) != px.L0(1.0)
    assert hash(px.L1([1.0])) == hash(px.L1([1.0]))
    with pytest.raises(AttributeError):
        px.KSparse(3).k = 4
    lam = np.ones(3)
    R = px.L1(lam)
    lam[0] = 5.0
    assert px.L1(np.ones(3)) == R


def test_a_lam_tensor_carries_its_gradient(device):
    u = torch.tensor([2.0, -3.0, 0.1], dtype=torch.float64, device=device)
    lam = torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)
    px.L1(lam).prox(u, 2.0).sum().backward()
    assert_close(lam.grad, torch.zeros_like(lam), 1e-15)  # -2 sign(2) - 2 sign(-3)
    lam = torch.zeros((), dtype=torch.float64, device=device, requires_grad=True)
    px.L0(lam).prox(u).sum().backward()
    assert_same(lam.grad, torch.zeros_like(lam))  # no NaN where the threshold's root has no derivative


@pytest.mark.parametrize("scalar", [np.float32(0.7), np.float64(0.7), np.array(0.7, np.float32)])
def test_a_scalar_step_is_its_value_whatever_its_type(scalar):
    for R in (px.L1(0.3), px.L0(0.3)):
        t = [float(np.float32(v)) for v in pt_thresholds(R, float(scalar))]
        u = np.array([np.nextafter(np.float32(v), np.float32(s)) for v in t for s in (0, v, 9)], np.float32)
        assert_same(R.prox(u, scalar), R.prox(u, float(scalar)))


def pt_thresholds(R, step):
    return px.testing.lattice.thresholds(R, step, np.float32)


def test_a_threshold_beyond_the_dtype_keeps_nothing(backend):
    u = np.array([np.inf, -np.inf, 1.0], backend.dtype)
    for R in (px.L1(1e308), px.L0(1e308)):
        assert_same(R.prox(backend.make(u), 10.0), backend.make(np.zeros(3, backend.dtype)))


def test_a_bandwidth_of_numpy_is_kept_as_a_number():
    bandwidth = px.L0(1.0, bandwidth=np.float32(0.5)).bandwidth
    assert type(bandwidth) is float
    assert bandwidth == 0.5


@pytest.mark.parametrize(
    "step", [60000.0, np.float16(60000), torch.tensor(6e4).half()], ids=["Python", "NumPy", "torch"]
)
def test_a_shrinkage_above_the_range_of_half_precision_leaves_what_fits(step):
    u, R = np.array([[3.0, -60000.0], [0.0, 1.0]], np.float16), px.ElasticNet(0.0, 3.0)
    want = (u.astype(float) / 180001).astype(np.float16)
    assert_same(R.prox(torch.tensor(u), step), torch.tensor(want))
    assert_same(R.prox(u, float(step)), want)
    assert_same(R.prox(torch.tensor(u), torch.tensor([6e4, 6e4]).half()), torch.tensor(want))

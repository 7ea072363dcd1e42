"""Parameters, values and errors of the penalties; that their operators are right is for the laws."""

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.testing import OPERATORS, assert_close, assert_same


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: px.L1(-1), "lam=-1"),
        (lambda: px.L1(float("nan")), "lam=nan"),
        (lambda: px.L0(float("inf")), "lam=inf"),
        (lambda: px.L0([1.0, -2.0]), "entry -2"),
        (lambda: px.L1(np.ones((2, 2))), "an array"),
        (lambda: px.L1("a"), "'a'"),
        (lambda: px.L1(torch.tensor(-1.0)), r"tensor\(-1"),
        (lambda: px.L0(1.0, bandwidth=0.0), "bandwidth=0"),
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
        (lambda: px.L1(["a"]), "an array"),
        (lambda: px.L1(np.zeros(0)), "an array"),
        (lambda: px.L0(1.0, bandwidth="a"), "bandwidth='a'"),
        (lambda: px.KSparse(1).prox(np.arange(3)), "int64"),
        (lambda: px.KSparse(1).prox(torch.arange(3)), "int64"),
        (lambda: px.KSparse(1).prox(np.float64(3)), "single number"),
        (lambda: px.L1(np.ones(4)).prox(np.ones(3)), "3 latents"),
        (lambda: px.L1(torch.ones(4)).prox(torch.ones(3)), "3 latents"),
        (lambda: px.L1(torch.ones(3)).prox(np.ones(3)), "numpy array"),
    ],
)
def test_bad_parameters_are_refused_in_one_sentence(make, says):
    with pytest.raises(px.Error, match=says) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("R", OPERATORS.values(), ids=OPERATORS)
def test_step_may_differ_by_row(R, backend):
    rng = np.random.default_rng(0)
    u = rng.normal(size=(2, 3, 5)).astype(backend.dtype)
    steps = rng.uniform(0.1, 2, size=(2, 3))
    got = R.prox(backend.make(u), backend.make(steps))
    for i in range(2):
        for j in range(3):
            assert_same(got[i, j], R.prox(backend.make(u[i, j]), float(steps[i, j])))


@pytest.mark.parametrize("R", OPERATORS.values(), ids=OPERATORS)
def test_empty_batches_keep_their_shape(R, backend):
    for shape in ((0, 5), (2, 0, 5), (0, 2, 5)):
        u = backend.make(np.zeros(shape, backend.dtype))
        assert_same(R.prox(u), u)
        assert R.value(u).shape == shape[:-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("R", OPERATORS.values(), ids=OPERATORS)
def test_half_precision_is_the_rounded_single_precision_result(R, dtype, device):
    u = torch.randn(64, 5, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)
    got, wide = R.prox(u, 0.5), R.prox(u.float(), 0.5)
    assert got.dtype == dtype
    near = (got.float() - wide).abs() <= 2.0**-7 * (1 + wide.abs())
    kink = (got == 0) != (wide == 0)  # a threshold rounded to half precision decides its neighbours anew
    assert bool((near | kink).all())
    assert float(kink.float().mean()) < 0.02


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

"""Step sizes as numbers, lists and tensors: on both backends, learned through, and refused where they cannot go."""

import re

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import testing as pt
from proxsae.steps import StepSizes

R = px.L1(0.1)


def problem():
    data = px.data.planted(n=5, d_in=8, d_sae=16, k=2)
    return data.x, data.D


def both():
    x, D = problem()
    return (x, D), (torch.tensor(x), torch.tensor(D))


@pytest.mark.parametrize("mu", [0.05, np.float32(0.05), np.float64(0.05), np.array(0.05), np.array(0.05, np.float32)])
def test_a_number_is_a_fixed_step(mu):
    for x, D in both():
        want = px.ista(x, D, R, 4, px.FixedStep(float(mu)))
        pt.assert_same(px.ista(x, D, R, 4, step=mu).codes, want.codes)
        pt.assert_same(px.ista(x, D, R, 4, step=px.FixedStep(mu)).codes, want.codes)
    assert type(px.FixedStep(mu).mu) is float
    assert px.solve(*problem(), R, tol=np.float32(1e-3)).converged.all()


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda a: np.array(a, np.float32), StepSizes])
def test_one_step_size_per_iteration(make):
    sizes = [0.2, 0.125, 0.25, 0.0625]
    for x, D in both():
        z = None
        for mu in make(sizes).mu if make is StepSizes else make(sizes):
            z = px.ista(x, D, R, 1, step=mu, z0=z).codes
        got = px.ista(x, D, R, 4, step=make(sizes), keep="all")
        pt.assert_close(got.codes, z, 1e-12)
        assert not got.steps[0].any()
        with pytest.raises(px.Error, match=r"step holds 4 step sizes, but steps=3 needs one each"):
            px.ista(x, D, R, 3, step=make(sizes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_of_step_sizes_are_the_same_numbers_and_are_learned(dtype, device):
    x, D = (torch.tensor(a, device=device, dtype=dtype) for a in problem())
    sizes = torch.tensor([0.2, 0.125, 0.25], dtype=dtype, device=device, requires_grad=True)
    one = torch.tensor(0.125, dtype=dtype, device=device, requires_grad=True)
    for mu, same in (
        (sizes, sizes.tolist()),
        (one, 0.125),
        (px.FixedStep(one), 0.125),
        (StepSizes(sizes), (0.2, 0.125, 0.25)),
    ):
        trace = px.ista(x, D, R, 3, step=mu)
        pt.assert_close(trace.codes.detach(), px.ista(x, D, R, 3, step=same).codes, 1e-6)
        (gradient,) = torch.autograd.grad(
            trace.objective[-1].sum(), one if mu is one or isinstance(mu, px.FixedStep) else sizes
        )
        assert bool((gradient < 0).all())  # longer steps would have been better


@pytest.mark.parametrize("R", [px.L1(0.1), px.ElasticNet(0.1, 0.5), px.L1(0.1, nonneg=True), px.KSparse(3)], ids=repr)
def test_the_gradient_in_the_step_sizes_is_that_of_differences(R):
    x, D = map(torch.tensor, problem())
    for mu in (torch.tensor([0.2, 0.125, 0.25], dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)):
        assert torch.autograd.gradcheck(lambda mu: px.ista(x, D, R, 3, step=mu).codes, mu.requires_grad_(), eps=1e-7)


def test_learned_step_sizes_pay():
    x, D = map(torch.tensor, problem())
    log = torch.full((3,), float(np.log(0.9 / px.lipschitz(D))), requires_grad=True)
    optimizer, objectives = torch.optim.Adam([log], lr=0.02), []
    for _ in range(15):
        objective = px.ista(x, D, R, 3, step=log.exp()).objective[-1].mean()
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        objectives.append(float(objective.detach()))
    assert objectives[-1] < objectives[0]


REFUSED = {
    "too long": (lambda x, D: px.ista(x, D, R, 1, step=9.0), "step=9 is not below 2/L"),
    "one is too long": (lambda x, D: px.ista(x, D, R, 2, step=[0.1, 9.0]), r"step\[1\]=9 is not below 2/L"),
    "too long for momentum": (lambda x, D: px.ista(x, D, R, 1, 1.5 / px.lipschitz(D), "fista"), "needs mu <= 1/L"),
    "momentum": (lambda x, D: px.ista(x, D, R, 2, [0.1, 0.1], "fista"), r"momentum='fista' bars StepSizes\(\)"),
    "restart": (lambda x, D: px.ista(x, D, R, 2, [0.1, 0.1], "restart"), r"momentum='restart' bars StepSizes\(\)"),
    "negative": (lambda x, D: px.ista(x, D, R, 1, step=-0.1), "mu=-0.1 must be finite and > 0"),
    "NaN": (lambda x, D: px.ista(x, D, R, 2, step=[0.1, np.nan]), r"step\[1\]=nan must be finite"),
    "text": (lambda x, D: px.ista(x, D, R, 2, step=["a", 0.1]), r"step\[0\]='a'"),
    "a word": (lambda x, D: px.ista(x, D, R, 1, step="exact"), r"step='exact' must be Lipschitz\(\), .* per step"),
    "truth": (lambda x, D: px.ista(x, D, R, 1, step=True), "step=True must be"),
    "a matrix": (lambda x, D: px.ista(x, D, R, 2, step=np.full((2, 2), 0.1)), r"step has shape \(2, 2\)"),
    "a class": (lambda x, D: px.ista(x, D, R, 1, step=px.Lipschitz), "step=.* must be"),
    "learned": (
        lambda x, D: px.ista(x, D, R, 2, step=px.LearnedSteps()),
        "is for px.SAE and px.Unrolled: give ista a tensor",
    ),
    "momentum's name": (lambda x, D: px.ista(x, D, R, 1, momentum="nesterov"), "None, 'fista' or 'restart'"),
    "whole tensor": (lambda x, D: px.ista(x, D, R, 1, step=torch.tensor(1)), "step=1 is not below 2/L"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_is_refused_in_one_sentence(case):
    call, says = REFUSED[case]
    for x, D in both():
        with pytest.raises(px.Error, match=says) as error:
            call(x, D)
        assert "\n" not in str(error.value)


def test_more_than_the_bound_is_refused_and_less_is_taken_however_L_was_rounded():
    for x, D in both():
        bound = 2 / px.lipschitz(D)  # L from above, so that this is still below 2/L
        for step, name in ((bound * (1 + 1e-12), "step"), ([0.1, bound * (1 + 1e-12)], r"step\[1\]")):
            with pytest.raises(px.Error, match=f"{name}=.* is not below 2/L"):
                px.ista(x, D, R, 2, step=step)
        px.ista(x, D, R, 2, step=[0.1, bound])


KNOWN = [(np.eye(3), 1.0), (0.5 * np.eye(3, 5), 0.25), (np.array([[1.0], [1.0]]), 2.0), (np.diag([3.0, 1, 1]), 9.0)]


@pytest.mark.parametrize(("D", "L"), KNOWN, ids=lambda a: str(np.shape(a)))
@pytest.mark.parametrize("momentum", [None, "fista", "restart"])
def test_a_step_of_one_over_a_known_L_is_taken_and_descends(D, L, momentum):
    x = np.random.default_rng(0).standard_normal((20, D.shape[1]))
    for at in ((x, D), (torch.tensor(x), torch.tensor(D))):
        trace = px.ista(*at, R, 30, 1 / L, momentum)
        assert momentum or bool((trace.objective[1:] <= trace.objective[:-1] * (1 + 1e-14)).all())
        px.ista(*at, R, 3, np.nextafter(2 / L, 0))
        with pytest.raises(px.Error, match="is not below 2/L"):
            px.ista(*at, R, 3, 2 / L * (1 + 1e-12))
        if momentum:
            with pytest.raises(px.Error) as error:
                px.ista(*at, R, 3, 1 / L * (1 + 1e-10), momentum)
            given, bound = re.findall(r"=([0-9][0-9.e-]*)", str(error.value))
            assert float(given) > float(bound)


def test_one_over_the_norm_as_numpy_works_it_out_is_taken():
    rng = np.random.default_rng(0)
    for P, d in ((16, 8), (8, 16), (60, 40), (5, 1)):
        x, D = rng.standard_normal((2, d)), rng.standard_normal((P, d))
        px.ista(x, D, R, 2, 1 / np.linalg.norm(D, 2) ** 2, "fista")
        sae = px.SAE(d, P, R).double()
        sae.W_dec.data = torch.tensor(D)
        sae.unrolled(3, px.FixedStep(np.nextafter(2 / np.linalg.norm(D, 2) ** 2, 0))).encode(torch.tensor(x))


LEARNED = torch.tensor(0.1, requires_grad=True)


@pytest.mark.parametrize("step", [LEARNED, torch.tensor([0.1, 0.1]), px.FixedStep(LEARNED)], ids=str)
def test_a_tensor_beside_numpy_arrays_is_refused(step):
    with pytest.raises(px.Error, match="step is a torch tensor, but x is a numpy array"):
        px.ista(*problem(), R, 2, step=step)


@pytest.mark.parametrize("step", [StepSizes([0.1, 0.1]), px.FixedStep(torch.tensor(0.1))], ids=str)
def test_an_sae_refuses_what_it_would_not_train(step):
    with pytest.raises(px.Error, match=r"is for ista: an SAE .* LearnedSteps\(\)"):
        px.SAE(8, 16, R, steps=3, step=step)


@pytest.mark.parametrize("make", [np.float32, np.array, np.float16, torch.tensor, lambda v: torch.tensor(v).half()])
def test_a_number_is_taken_whatever_library_it_is_of(make):
    """Of NumPy, of torch, or an array without axes: step sizes, tolerances and counts."""
    for x, D in both():
        for step in (0.125, px.FixedStep(make(0.125)), make(0.125)):
            found = px.ista(x, D, R, np.array(3) if make is np.array else torch.tensor(3), step=step)
            pt.assert_same(found.codes, px.ista(x, D, R, 3, step=0.125).codes)
        pt.assert_same(px.solve(x, D, R, tol=make(2.0**-10)).codes, px.solve(x, D, R, tol=2.0**-10).codes)
        z = px.ista(x, D, R, 2).codes
        residual = px.fixed_point_residual(x, D, z, R, make(0.125))
        pt.assert_same(residual, px.fixed_point_residual(x, D, z, R, 0.125))
        pt.assert_same(R.prox(z, make(0.125)), R.prox(z, 0.125))
    assert (px.MCP(0.5, make(2.0)).gamma, px.SCAD(0.5, make(3.0)).a) == (2.0, 3.0)
    assert px.ElasticNet(0.5, make(0.25)).alpha == 0.25
    assert px.L0(0.5, bandwidth=make(0.25)).bandwidth == 0.25
    assert (px.KSparse(np.int64(3)).k, px.KSparse(torch.tensor(3)).k, px.GroupL2(0.5, np.array(2)).size) == (3, 3, 2)


def test_a_parameter_that_asks_for_a_gradient_it_cannot_get_is_refused():
    for make in (lambda a: px.MCP(0.5, a), lambda a: px.L0(0.5, bandwidth=a), lambda a: px.ElasticNet(0.5, a)):
        with pytest.raises(px.Error, match="stands for a number that gets no gradient: give 2"):
            make(torch.tensor(2.0, requires_grad=True))


def test_restarts_are_those_of_solve():
    """FISTA rises on its way; restarted it falls further, and both are what `solve` iterates."""
    D = np.diag(np.linspace(0.05, 1, 12))
    x = np.ones((1, 12))
    plain, restarted = (px.ista(x, D, px.L1(0.001), 300, momentum=m).objective for m in ("fista", "restart"))
    assert restarted[-1] < plain[-1]
    got = px.ista(torch.tensor(x), torch.tensor(D), px.L1(0.001), 300, momentum="restart").objective
    pt.assert_close(got, torch.tensor(restarted), 1e-10)


def test_a_list_of_tensors_is_refused_with_what_to_write():
    mu = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(px.Error, match=r"step\[0\] is a tensor: give all as one tensor, torch.stack"):
        px.ista(torch.ones(3), torch.eye(3), px.L1(0.1), 2, step=[mu, mu])

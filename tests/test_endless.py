"""steps=math.inf: codes are those of `solve`, with gradients that do not go through its steps; SAEs trained by them."""

import math

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.testing import assert_close, assert_same

PENALTIES = [px.L1(0.1), px.L1(0.1, True), px.KSparse(3), px.KSparse(3, True), px.L0(0.05)]
EACH = pytest.mark.parametrize("R", PENALTIES, ids=repr)


def made(R, seed=0):
    torch.manual_seed(seed)
    sae = px.SAE(10, 24, R, steps=math.inf).double()
    with torch.no_grad():
        sae.b_dec.normal_(0, 0.1)
        sae.W_enc.normal_()
    return sae, torch.randn(20, 10).double()


@EACH
def test_codes_are_those_of_solve_and_no_weight_of_the_encoder_matters(R):
    sae, x = made(R)
    D, b = (a.detach().numpy() for a in (sae.W_dec, sae.b_dec))
    found = px.solve(x.numpy(), D, R, bias=b)
    assert bool(np.all(found.converged))
    assert_close(sae.encode(x).detach().numpy(), found.codes, 1e-4)
    assert_same(sae.encode_sparse(x).to_dense().detach(), sae.encode(x).detach())
    assert_same(sae.refine(x, torch.zeros(20, 24).double()).detach(), sae.encode(x).detach())
    (only,) = sae.walk(x)
    assert_same(only.z.detach(), sae.encode(x).detach())
    assert bool((only.spent > 0).all())
    assert not sae.on_supports
    assert sae.steps == math.inf


@EACH
def test_a_long_walk_ends_where_it_begins(R):
    """For a convex R the code at infinity is the limit of the steps; else no step from it lowers the objective."""
    sae, x = made(R)
    z = sae.encode(x).detach()
    if R.convex:
        *_, last = sae.unrolled(3000).walk(x)
        (solved,) = sae.walk(x)
        assert bool((solved.objective(R) <= last.objective(R) * (1 + 1e-6)).all())
    moved = px.ista(x, sae.W_dec.detach(), R, 1, z0=z, bias=sae.b_dec.detach())
    assert_close(moved.codes, z, 1e-3)


# lam of the L0 so large that supports are smaller than d: else least squares on them has more than one solution
@pytest.mark.parametrize("R", [px.L1(0.1), px.L1(0.1, True), px.KSparse(3), px.L0(0.4)], ids=repr)
def test_the_gradient_of_the_codes_is_that_of_small_changes(R):
    sae, x = made(R, seed=1)
    weight = torch.randn(20, 24).double()
    loss = (sae.encode(x) * weight).sum()
    loss.backward()
    for name, direction in (("W_dec", torch.randn(24, 10)), ("b_dec", torch.randn(10))):
        a, h = getattr(sae, name), 1e-5
        ends = []
        for sign in (1, -1):
            other = sae.twin(weights={name: (a + sign * h * direction.double()).detach()})
            codes = px.solve(x, other.W_dec.detach(), R, tol=1e-10, bias=other.b_dec.detach()).codes
            ends.append((codes * weight).sum())
        assert_close((a.grad * direction).sum().item(), ((ends[0] - ends[1]) / (2 * h)).item(), 2e-3)
    assert sae.W_enc.grad is None


@pytest.mark.parametrize("R", [px.L1(0.1), px.L1(0.1, True), px.KSparse(3), px.KSparse(3, True)], ids=repr)
def test_in_training_the_loss_has_the_gradient_of_the_least_value(R):
    """Codes held or with their implicit gradients: of the loss that they minimise it is one gradient (thm-envelope)."""
    from proxsae.training.losses import outcome

    sae, x = made(R)
    outcome(sae, x, 0.0, torch.zeros(24, dtype=torch.bool)).loss.backward()
    held = {name: getattr(sae, name).grad.clone() for name in ("W_dec", "b_dec")}
    sae.zero_grad()
    z = sae.encode(x)
    (0.5 * (sae.decode(z) - x).square().sum(dim=1) + R.value(z)).mean().backward()
    for name, grad in held.items():
        assert_close(getattr(sae, name).grad, grad, 1e-3)


@EACH
def test_it_is_trained_and_comes_back_from_files(R, tmp_path):
    data = px.data.planted(n=300, d_in=10, d_sae=24, k=3, seed=1).x
    sae, _ = made(R)
    if isinstance(R, px.L0):
        with pytest.raises(px.Error, match="steps=inf has no gradient in the threshold of an L0"):
            px.train(sae, data, steps=3)
    else:

        def objective():
            (last,) = sae.walk(data)
            return last.objective(R).detach().mean().item()

        before = objective()
        px.train(sae, data, steps=30, batch_size=100, progress=False)
        assert objective() < before
        assert_same(sae.W_enc.detach(), sae.W_dec.detach().T)
    sae.save(tmp_path / "sae")
    again, x = px.load(tmp_path / "sae"), torch.from_numpy(data[:50])
    assert again.steps == math.inf
    assert_same(again.encode(x).detach(), sae.encode(x).detach())
    shallow = again.unrolled(2)
    assert shallow.steps == 2
    assert shallow.W_dec is again.W_dec


def test_training_at_every_depth_is_one_axis():
    """The error of an SAE as it was trained falls with the steps; the last, at infinity, is where they end."""
    data = px.data.planted(n=2000, d_in=16, d_sae=32, k=3, seed=1).x
    found = []
    for steps in (1, 4, math.inf):
        torch.manual_seed(0)
        rule = None if steps == math.inf else px.ExactStep()
        sae = px.SAE(16, 32, px.KSparse(3), steps, rule)
        px.train(sae, data, steps=150, batch_size=200, progress=False)
        found.append(px.evaluate(sae, data)["nmse"])
    assert found[0] > found[1] > found[2]


def test_memory_of_the_backward_pass_does_not_grow_with_the_steps_of_the_solver():
    """What a graph keeps is of the supports alone: less than a few steps keep, and not what thousands would."""
    sae, x = made(px.L1(0.02))
    sizes = []

    def kept(a):
        sizes[-1] += a.numel()
        return a

    for steps in (math.inf, 4, 40):
        sizes.append(0)
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda a: a):
            sae.unrolled(steps).encode(x)
    assert sizes[0] < sizes[2] / 3
    assert sizes[1] < sizes[2] / 3


def test_what_cannot_be_is_one_sentence():
    for do, message in (
        (lambda: px.SAE(8, 24, px.BatchKSparse(2), math.inf), "steps=inf solves row by row"),
        (lambda: px.SAE(8, 24, px.L1(0.1), math.inf, px.ExactStep()), "need not end: leave step out"),
        (
            lambda: px.SAE(8, 24, px.L1(0.1), math.inf, analysis="encoder"),
            "inf cannot go with analysis='encoder'",
        ),
        (lambda: px.SAE(8, 24, px.L1(0.1), math.inf, b_enc="every"), "steps=inf cannot go with b_enc='every'"),
        (lambda: px.SAE(8, 24, px.L1(0.1), -math.inf), "steps=-inf must be a whole number >= 1"),
        (lambda: px.SAE(8, 24, px.L1(0.1), math.inf).export("nowhere"), "steps=inf with .* cannot be exported"),
    ):
        with pytest.raises(px.Error, match=message):
            do()
    px.SAE(8, 24, px.KSparse(3), math.inf, px.Refit())  # which is what solve takes

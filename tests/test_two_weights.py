"""L0 with a weight for each sign: what it contains, how it is trained and kept, and where an infinite weight leads.

That the prox is right is for the laws, which have it among their operators; that both wings agree is for `twins/`.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import proxsae as px
from proxsae import testing as pt
from proxsae.formats import own
from proxsae.pytorch import refit as torch_refit
from proxsae.reference import refit as reference_refit
from proxsae.sae.files import describe
from proxsae.sae.inspection import inspect
from proxsae.studies import density
from proxsae.testing import assert_close, assert_same
from proxsae.training import losses

D_IN, D_SAE = 8, 20
RULES = [px.Lipschitz(), px.FixedStep(0.05), px.Backtracking(), px.ExactStep(), px.Refit()]
EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=repr)
LAM, MINUS = np.linspace(0.01, 0.3, D_SAE), np.where(np.arange(D_SAE) % 4 == 3, np.inf, np.linspace(0.5, 0.02, D_SAE))


def problem(n=30, seed=0):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((D_SAE, D_IN))
    return 2 * rng.standard_normal((n, D_IN)), D / np.linalg.norm(D, axis=1, keepdims=True)


def an_sae(R, device="cpu", seed=0, **plan):
    """An SAE in float64, untied, with offsets."""
    torch.manual_seed(seed)
    sae = px.SAE(D_IN, D_SAE, R, **plan).double()
    with torch.no_grad():
        sae.W_enc += 0.1 * torch.randn_like(sae.W_enc)
        sae.b_enc += 0.1 * torch.randn_like(sae.b_enc)
        sae.b_dec += 0.3 * torch.randn_like(sae.b_dec)
    return sae.to(device)


def rows(n=64, device="cpu", seed=1):
    return 2 * torch.randn(n, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(device)


# Contained in it: JumpReLU, to the bit


@pytest.mark.parametrize("lam", [0.5, LAM], ids=["one", "per latent"])
def test_an_infinite_negative_weight_is_jumprelu_to_the_bit(lam, backend):
    one, other = px.L0(lam, nonneg=True), px.L0(lam, lam_minus=np.inf)
    for step, u in pt.lattice.inputs(px.L0(LAM), backend.dtype, 40, specials=True):
        for mu in (step, backend.make(np.full(len(u), step))):
            assert_same(other.prox(backend.make(u), mu), one.prox(backend.make(u), mu))
        z = np.where(np.isnan(u), 0, u)
        assert_same(other.value(backend.make(z)), one.value(backend.make(z)))


@EACH_RULE
@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_its_iteration_is_that_of_jumprelu_to_the_bit(rule, make):
    x, D = (make(a) for a in problem())
    one, other = (px.ista(x, D, R, 8, rule) for R in (px.L0(0.05, nonneg=True), px.L0(0.05, lam_minus=np.inf)))
    assert_same(other.codes, one.codes)
    assert_same(other.objective, one.objective)
    assert bool((one.codes != 0).any())


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_its_solutions_are_those_of_jumprelu_to_the_bit(make):
    x, D = (make(a) for a in problem())
    one, other = (px.solve(x, D, R) for R in (px.L0(0.05, nonneg=True), px.L0(0.05, lam_minus=np.inf)))
    assert_same(other.codes, one.codes)
    assert_same(other.gap, one.gap)
    assert bool(one.converged.all())


@EACH_RULE
def test_its_sae_is_that_of_jumprelu_with_the_same_gradients(rule, device):
    x, found = rows(device=device), []
    for R in (px.L0(LAM, nonneg=True, bandwidth=0.05), px.L0(LAM, bandwidth=0.05, lam_minus=np.inf)):
        sae = an_sae(R, device, steps=3, step=rule)
        z = sae.encode(x)
        sae.decode(z).square().sum().backward()
        found.append([z, *(getattr(sae, name).grad for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"))])
    for a, b in zip(*found, strict=True):
        assert_same(a, b)
    assert bool((found[0][-1] != 0).any())  # the threshold has one


def test_equal_weights_are_the_one_weight_to_the_bit(backend):
    for step, u in pt.lattice.inputs(px.L0(0.5), backend.dtype, 40, specials=True):
        u = backend.make(u)
        assert_same(px.L0(0.5, lam_minus=0.5).prox(u, step), px.L0(0.5).prox(u, step))


# Steps: a change of sign changes R


def never_rises(rule, minus, make):
    """Assert that no step raises F, worked out here, though a change of sign changes what is paid."""
    x, D = problem()
    start = np.maximum(np.random.default_rng(2).standard_normal((len(x), D_SAE)), 0)  # not below 0, where R is finite
    trace = px.ista(make(x), make(D), px.L0(0.01, lam_minus=minus), 12, rule, z0=make(start), keep="all")
    z = np.stack([np.asarray(codes) for codes in trace.steps])
    paid = np.where(z > 0, 0.01, np.where(z < 0, minus, 0)).sum(-1)
    F = 0.5 * ((z @ D - x) ** 2).sum(-1) + paid
    assert_close(np.asarray(trace.objective), F, 1e-12)
    assert (F[1:] <= F[:-1] + 1e-10).all()
    assert (z[-1] != 0).any()


@EACH_RULE
@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize("minus", [0.4, np.inf, MINUS], ids=["dear", "off", "per latent"])
def test_no_step_raises_the_objective_though_signs_change_what_is_paid(rule, minus, make):
    never_rises(rule, minus, make)


@pytest.mark.parametrize(("module", "make"), [(reference_refit, np.array), (torch_refit, torch.tensor)])
def test_a_refit_that_forgets_the_signs_would_raise_it(module, make, monkeypatch):
    """The error that the test above is there to see: least squares as for one weight."""
    monkeypatch.setattr(module, "holds_signs", lambda R: R.convex or R.nonneg)
    with pytest.raises(AssertionError):
        never_rises(px.Refit(), np.inf, make)


# Gradients of both thresholds


@pytest.mark.parametrize("steps", [1, 3])
def test_each_threshold_has_the_straight_through_gradient_of_its_side(steps, device):
    """-sign(u) theta / bandwidth within the kernel of its own side, by the formula, summed over rows."""
    x, width = rows(device=device), 0.3
    sae = an_sae(px.L0(0.2, bandwidth=width, lam_minus=0.5), device)
    u, weight = sae.pre_activations(x).detach(), torch.linspace(1, 2, D_SAE, dtype=x.dtype, device=device)
    (sae.encode(x) * weight).sum().backward()
    for sign, name in ((1, "threshold"), (-1, "threshold_minus")):
        theta = getattr(sae, name).detach()
        inside = (sign * u > 0) & ((sign * u - theta).abs() < width / 2)
        want = torch.where(inside, -sign * theta / width * weight, 0).sum(0)
        assert_close(getattr(sae, name).grad, want, 1e-12)
        assert bool((want != 0).any())


def test_counts_of_the_loss_are_of_both_sides_with_a_gradient_for_each(device):
    x, width = rows(device=device), 0.3
    sae = an_sae(px.L0(0.2, bandwidth=width, lam_minus=0.5), device)
    dead, u = torch.zeros(D_SAE, dtype=torch.bool, device=device), sae.pre_activations(x).detach()
    whole, none = (losses.outcome(sae, x, lam, dead).loss for lam in (1.0, 0.0))
    count = ((u > sae.threshold) | (u < -sae.threshold_minus)).sum(1).double().mean()
    assert_close((whole - none).detach(), count, 1e-12)
    (whole - none).backward()
    for sign, name in ((1, "threshold"), (-1, "threshold_minus")):
        inside = (sign * u > 0) & ((sign * u - getattr(sae, name).detach()).abs() < width / 2)
        assert_close(getattr(sae, name).grad, -inside.double().sum(0) / width / len(x), 1e-12)


def test_sparse_codes_carry_the_gradients_of_dense_ones(device):
    x, found = rows(device=device), []
    for encode in (lambda sae: sae.encode(x), lambda sae: sae.encode_sparse(x).to_dense()):
        sae = an_sae(px.L0(LAM, bandwidth=0.4, lam_minus=MINUS), device, steps=2)
        encode(sae).square().sum().backward()
        found.append([sae.threshold.grad, sae.threshold_minus.grad, sae.W_enc.grad])
    for a, b in zip(*found, strict=True):
        assert_close(b, a, 1e-12)
    assert bool((found[0][1] != 0).any())


def test_weights_of_a_penalty_given_as_tensors_get_gradients_and_a_number_beside_them_stays_one(device):
    u = torch.tensor([1.02, -1.02, -2.02, 0.3], dtype=torch.float64, device=device)
    minus = torch.tensor(2.0, dtype=torch.float64, device=device, requires_grad=True)  # theta 2, its slope 1/2
    px.L0(0.5, lam_minus=minus).prox(u).sum().backward()
    assert_close(minus.grad, torch.tensor(2 / 0.1 / 2, dtype=torch.float64, device=device), 1e-12)


# Files and twins


def test_files_keep_both_thresholds_and_those_of_one_weight_are_as_they_were(tmp_path):
    x, two, one = rows(), an_sae(px.L0(LAM, bandwidth=0.2, lam_minus=MINUS)), an_sae(px.L0(LAM))
    for name, sae in (("two", two), ("one", one)):
        sae.save(tmp_path / name)
        again = px.load(tmp_path / name)
        assert_same(again.encode(x), sae.encode(x))
        assert again.penalty.bandwidth == sae.penalty.bandwidth
        assert again.state_dict().keys() == sae.state_dict().keys()
    assert_same(px.load(tmp_path / "two").threshold_minus.detach(), two.threshold_minus.detach())
    assert set(load_file(tmp_path / "one" / "sae.safetensors")) == {"W_dec", "W_enc", "b_enc", "b_dec", "threshold"}
    said = json.loads((tmp_path / "one" / "sae.json").read_text())["penalty"]
    assert said == {"family": "L0", "nonneg": False, "bandwidth": 0.1}


def test_export_writes_the_negative_thresholds_at_twice_the_width_and_refuses_less(tmp_path):
    x, sae = rows(), an_sae(px.L0(LAM, lam_minus=MINUS))
    sae.export(tmp_path / "double", double=True)
    other, z = px.load(tmp_path / "double"), sae.encode(x)
    assert_close(other.encode(x), torch.cat([z.clamp(min=0), (-z).clamp(min=0)], dim=1), 1e-12)
    assert_close(other(x), sae(x), 1e-12)
    assert bool((z < 0).any())
    with pytest.raises(px.Error, match="signed codes"):
        sae.export(tmp_path / "single")
    assert sae.cfg.architecture is None


def test_units_twins_and_words(device):
    x, sae = rows(device=device), an_sae(px.L0(LAM, lam_minus=MINUS), device)
    z = sae.encode(x).detach()
    told = dict(inspect(sae))
    assert "for z > 0" in told["penalty"]
    assert "max inf for z < 0" in told["penalty"]
    assert told["encoder"] == "L0 (signed codes)"
    assert "for z < 0" in repr(sae)
    for other in (px.L0(0.1), px.KSparse(2)):
        assert not hasattr(sae.twin(penalty=other), "threshold_minus")
    assert sae.twin().threshold_minus is sae.threshold_minus
    assert_same(an_sae(px.KSparse(3), device).twin(penalty=px.L0(LAM, lam_minus=MINUS)).encode(x).detach(), z)
    sae.rescale(2.0)
    assert_close(sae.encode(2 * x), 2 * z, 1e-12)


def test_a_density_is_found_by_both_thresholds():
    x, sae = rows(), an_sae(px.L0(0.02, lam_minus=0.08))
    for start in (sae, an_sae(px.L0(np.inf, lam_minus=0.02))):  # the second fires below 0 only
        found, factor = density.matched(start, x, 3.0)
        assert abs(float((found.encode(x) != 0).sum(1).double().mean()) / 3 - 1) < 0.05
        assert_close(found.threshold_minus.detach(), start.threshold_minus.detach() * factor**0.5, 1e-12)


def test_training_moves_both_thresholds_and_leaves_off_what_is_off():
    x = px.data.planted(n=1000, d_in=D_IN, d_sae=D_SAE, k=3, seed=1).x
    sae = an_sae(px.L0(0.02, bandwidth=0.3, lam_minus=np.where(MINUS < 9, 0.08, np.inf))).float()
    before = {name: a.clone() for name, a in sae.state_dict().items()}
    how = {"steps": 40, "batch_size": 64, "lr": 1e-2, "l0": 3, "progress": False}
    px.train(sae, x, **how)
    assert (sae.threshold_minus.detach() != before["threshold_minus"]).tolist() == (MINUS < 9).tolist()
    assert bool((sae.threshold.detach() != before["threshold"]).all())
    z = sae.encode(torch.tensor(x, dtype=torch.float32))
    assert bool((z < 0).any())
    assert not bool((z[:, MINUS > 9] < 0).any())


@pytest.mark.parametrize(
    "change",
    [
        lambda said, t: said["penalty"].update(nonneg=True),
        lambda said, t: said["penalty"].update(lam_minus=0.5),
        lambda said, t: t.pop("threshold_minus"),
        lambda said, t: t.update(threshold_minus=t["threshold_minus"][:-1].clone()),
        lambda said, t: t.update(threshold_minus=-t["threshold_minus"]),
        lambda said, t: said["penalty"].update(family="L1"),
    ],
    ids=["nonneg", "lam_minus", "none, but two are said", "short", "negative infinity", "another family"],
)
def test_files_that_disagree_with_themselves_are_refused(change, tmp_path):
    sae = an_sae(px.L0(LAM, lam_minus=MINUS))
    said, tensors = describe(sae), {name: a.detach() for name, a in sae.weights().items()}
    change(said, tensors)
    if "threshold_minus" not in tensors:  # what is left is an SAE of one weight, unless the description says two
        said["penalty"]["lam_minus"] = 0.5
    own.write(tmp_path / "sae", said, tensors)
    with pytest.raises(px.Error):
        px.load(tmp_path / "sae")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # of torch.func.jvp itself
def test_transforms_see_both_thresholds():
    u = torch.tensor(np.random.default_rng(0).uniform(-2, 2, (9, 4)))
    lam, minus = torch.tensor([0.1, 0.2, np.inf, 0.3]).double(), torch.tensor([0.3, np.inf, 0.1, 0.2]).double()
    R = px.L0(lam, lam_minus=minus)
    assert_same(torch.func.vmap(R.prox)(u), R.prox(u))

    def f(lam, minus):
        return px.L0(lam, bandwidth=1.0, lam_minus=minus).prox(u).pow(3).sum()

    leaves = lam.clone().requires_grad_(), minus.clone().requires_grad_()
    f(*leaves).backward()
    for leaf, got in zip(leaves, torch.func.grad(f, (0, 1))(lam, minus), strict=True):
        assert_close(got, leaf.grad, 1e-12)
        assert bool((got != 0).any())
    forward = torch.func.jvp(lambda minus: f(lam, minus), (minus,), (torch.ones_like(minus),))[1]
    assert_close(forward, leaves[1].grad.sum(), 1e-12)


# The two-sided gate


def two_sided_gate(c, t):
    """The formula of a gate for each sign and one magnitude path; it shares no code with the package."""
    w = c @ t["W"]
    m = t["r"].exp() * w + t["b_mag"]
    return (w + t["b_plus"] > 0) * torch.relu(m) - (t["b_minus"] - w > 0) * torch.relu(-m)


def test_a_two_sided_gate_with_one_gain_is_this_sae(tmp_path):
    torch.manual_seed(0)
    t = {name: 0.5 * torch.randn(D_SAE, dtype=torch.float64) for name in ("r", "b_mag", "b_plus", "b_minus")}
    t |= {"W": torch.randn(D_IN, D_SAE, dtype=torch.float64)}
    t["b_plus"], t["b_minus"] = t["b_plus"] - 1, t["b_minus"] - 1  # most gates are shut at 0
    gain = t["r"].exp()
    theta, minus = ((s * t["b_mag"] - gain * t[b]).clamp(min=0) for s, b in ((1, "b_plus"), (-1, "b_minus")))
    sae = an_sae(px.L0((theta**2 / 2).numpy(), lam_minus=(minus**2 / 2).numpy()))
    with torch.no_grad():
        sae.W_enc.copy_(gain * t["W"])
        sae.b_enc.copy_(t["b_mag"])
    x = rows(2000)
    want = two_sided_gate(x - sae.b_dec, t).detach()
    assert_close(sae.encode(x).detach(), want, 1e-10)
    assert min(int((want > 0).sum()), int((want < 0).sum()), int((want == 0).sum())) > 1000
    sae.save(tmp_path / "sae")
    assert_same(px.load(tmp_path / "sae").encode(x), sae.encode(x))
    swapped = px.L0((minus**2 / 2).numpy(), lam_minus=(theta**2 / 2).numpy())
    assert not torch.allclose(sae.twin(penalty=swapped).encode(x), want)  # the test sees which side is which


# Infinite weights, in every family that has weights

OFF = np.arange(D_SAE) % 5 == 2
PER_LATENT = np.where(OFF, np.inf, 0.05)
FAMILIES = {
    "L1": (px.L1(PER_LATENT), OFF, OFF),
    "L0": (px.L0(PER_LATENT), OFF, OFF),
    "L0 positive side": (px.L0(PER_LATENT, lam_minus=0.05), OFF, ~OFF & False),
    "L0 negative side": (px.L0(0.05, lam_minus=PER_LATENT), ~OFF & False, OFF),
    "ElasticNet": (px.ElasticNet(PER_LATENT, 0.3), OFF, OFF),
    "MCP": (px.MCP(PER_LATENT, 3.0), OFF, OFF),
    "SCAD": (px.SCAD(PER_LATENT, 3.7), OFF, OFF),
    # groups share one weight, and an infinite weight of the largest magnitude leaves none: all is off
    "GroupL2": (px.GroupL2(np.inf, 4), OFF | True, OFF | True),
    "SortedL1": (px.SortedL1(np.where(np.arange(D_SAE) < 3, np.inf, 0.05)), OFF | True, OFF | True),
}
EACH_FAMILY = pytest.mark.parametrize(("R", "above", "below"), FAMILIES.values(), ids=FAMILIES)


def never(z, above, below):
    """Assert that no code is positive on `above` nor negative on `below`, and that others are used."""
    z = np.asarray(z.detach() if isinstance(z, torch.Tensor) else z)
    assert np.isfinite(z).all()
    assert not (z[:, above] > 0).any()
    assert not (z[:, below] < 0).any()
    assert (z != 0).any() or bool((above & below).all())


def test_the_families_above_are_all_that_have_weights():
    assert {type(R) for R, _, _ in FAMILIES.values()} == {
        family for family in px.penalties.FAMILIES.values() if "lam" in family.domain
    }


@EACH_FAMILY
@pytest.mark.parametrize("step", [0.1, 1.0, 4.0])
def test_an_infinite_weight_gives_0_in_the_prox_and_finite_gradients(R, above, below, step, device):
    u = np.random.default_rng(0).uniform(-9, 9, (40, D_SAE))
    z = R.prox(u, step)
    never(z, above, below)
    u, mu = (torch.tensor(a, dtype=torch.float64, device=device, requires_grad=True) for a in (u, step))
    out = R.prox(u, mu)
    if not isinstance(R, (px.GroupL2, px.SortedL1)):
        assert_same(out.detach().cpu(), torch.tensor(z))
    (out.square().sum() + R.value(out).sum()).backward()
    assert bool(u.grad.isfinite().all())
    assert bool(mu.grad.isfinite())


@EACH_FAMILY
def test_a_tensor_of_infinite_weights_has_finite_gradients(R, above, below, device):
    names = [name for name in ("lam", "lam_minus") if getattr(R, name, None) is not None]
    u = torch.tensor(np.random.default_rng(0).uniform(-9, 9, (40, D_SAE)), device=device)
    leaves = {name: torch.tensor(getattr(R, name), dtype=torch.float64, device=device) for name in names}
    leaves = {name: a.requires_grad_() for name, a in leaves.items()}
    for mu in (0.5, torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)):
        z = replace(R, **leaves).prox(u, mu)
        z.sum().backward()
    never(z.cpu(), above, below)
    for a in leaves.values():
        assert bool(a.grad.isfinite().all())


@EACH_FAMILY
@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_ista_and_solve_leave_off_what_is_off(R, above, below, make):
    x, D = (make(a) for a in problem())
    for rule in RULES[: 3 + 2 * R.affine]:
        trace = px.ista(x, D, R, 5, rule)
        never(trace.codes, above, below)
        assert np.isfinite(np.asarray(trace.objective)).all()
    found = px.solve(x, D, R, tol=1e-5)
    never(found.codes, above, below)
    assert bool(found.converged.all())


@EACH_FAMILY
def test_an_sae_encodes_and_trains_with_latents_or_sides_off(R, above, below, tmp_path):
    x = rows(200).float()
    sae = an_sae(R).float()
    for deep in (sae, sae.unrolled(4), sae.unrolled(3, px.LearnedSteps())):
        z = deep.encode(x)
        never(z, above, below)
        deep.decode(z).square().sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in deep.parameters() if p.grad is not None)
        deep.zero_grad()
    px.train(sae, x, steps=5, batch_size=50, lr=1e-3, progress=False)
    never(sae.encode(x), above, below)
    sae.save(tmp_path / "sae")
    assert_same(px.load(tmp_path / "sae").encode(x), sae.encode(x))

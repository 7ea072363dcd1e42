"""What a trained SAE needs to go deeper: row normalisation, b_enc at every step, batch selection, learned steps."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.testing import assert_close, assert_same
from tests.test_sae import make

RULES = [px.Lipschitz(), px.FixedStep(0.05), px.Backtracking(), px.ExactStep(), px.Refit()]
EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=repr)
NORMS = ("layer_norm", "constant_norm")
PENALTIES = [px.L1(0.3, True), px.L0(0.3), px.KSparse(3), px.KSparse(3, True), px.BatchKSparse(3)]
EACH = pytest.mark.parametrize("R", PENALTIES, ids=repr)


def rows(n=50, d=8, seed=1, device="cpu", scale=2.0):
    return scale * torch.tensor(np.random.default_rng(seed).standard_normal((n, d)), device=device)


def normalized(x, kind):
    """The same in NumPy, from the formulas."""
    x = np.asarray(x)
    if kind == "layer_norm":
        mean, scale = x.mean(axis=-1, keepdims=True), x.std(axis=-1, ddof=1, keepdims=True)
        return (x - mean) / (scale + 1e-5), mean, scale
    scale = np.sqrt((x**2).sum(axis=-1, keepdims=True) / x.shape[-1])
    return x / scale, np.zeros_like(scale), scale


@EACH
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("steps", [1, 3])
def test_normalised_rows_are_encoded_and_come_back_in_their_own_units(R, kind, steps):
    x = 5 * rows() + 3
    sae = make(R, normalize=kind, steps=steps)
    plain = make(R, steps=steps)
    inner, mean, scale = normalized(x, kind)
    want = plain.encode(torch.tensor(inner)).detach()
    assert_close(sae.encode(x).detach(), want, 1e-9)
    assert_close(sae.encode_sparse(x).to_dense().detach(), want, 1e-9)
    xhat = plain.decode(want).detach().numpy() * scale + mean
    for got in (sae(x), sae.decode(sae.encode(x), like=x), sae.reconstruct(x)[0]):
        assert_close(got.detach().numpy(), xhat, 1e-9)
    assert_close(sae.twin(normalize="none").encode(torch.tensor(inner)).detach(), want, 1e-12)
    assert_close(list(sae.walk(x))[-1].z.detach(), want, 1e-9)
    assert px.evaluate(sae, x)["nmse"] == pytest.approx(((x.numpy() - xhat) ** 2).sum() / (x.numpy() ** 2).sum())


@pytest.mark.parametrize("kind", NORMS)
def test_normalisation_is_undone_to_1e_5_and_takes_rows_without_any_size(kind):
    sae, x = make(px.KSparse(3), normalize=kind), 4 * rows() - 7
    x[3], x[4] = 0.0, 2.0  # all zeros, and all equal
    normal = sae.normalized(x)
    assert bool(normal.rows.isfinite().all())
    assert float((normal.undo(normal.rows) - x).abs().max()) < 1e-4
    assert bool(sae(x).isfinite().all())


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("size", [1e-35, 1e-24, 1.0, 1e25, 1e35])
def test_rows_of_any_size_are_normalised_by_their_own(kind, size):
    """Squares of float32 are none below 1e-23, and infinite above 1e19."""
    x = rows(scale=size).float()
    normal = make(px.KSparse(3), normalize=kind).float().normalized(x)
    for found, wide in zip((normal.rows, normal.mean, normal.scale), normalized(x.double(), kind), strict=True):
        largest = abs(wide).max() or 1.0
        assert_close(found.double() / largest, torch.tensor(wide / largest), 1e-6)


@pytest.mark.parametrize("kind", NORMS)
def test_gradients_run_through_the_normalisation(kind):
    sae, x = make(px.KSparse(3), normalize=kind), rows(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sae(x), (x,), atol=1e-5)


@pytest.mark.parametrize(("kind", "d"), [("batch", 8), ("layer_norm", 1), (None, 8)])
def test_an_unknown_normalisation_is_refused(kind, d):
    with pytest.raises(px.Error, match="normalize="):
        px.SAE(d, 4, px.KSparse(1), normalize=kind)


@EACH
@EACH_RULE
def test_b_enc_at_every_step_lowers_the_tilted_objective(R, rule):
    sae, x = make(R), rows()
    if isinstance(rule, px.Refit):
        with pytest.raises(px.Error, match=r"b_enc='every'.*thm-refit"):
            sae.unrolled(4, rule, b_enc="every")
        return
    walk = list(sae.unrolled(12, rule, b_enc="every").walk(x))
    D, b = sae.W_dec, sae.b_enc

    def F(z):
        values = 0.5 * (x - sae.b_dec - z @ D).square().sum(-1) - z @ b + R.value(z)
        return values if R.rowwise else values.sum()

    values = [F(point.z) for point in walk]
    for point, value in zip(walk, values, strict=True):
        got = point.objective(R)
        assert_close((got if R.rowwise else got.sum()).detach(), value.detach(), 1e-9)
    assert all(bool((b <= a + 1e-9).all()) for a, b in pairwise(values))
    assert values[-1].sum().item() < values[0].sum().item()
    first = sae.unrolled(12, rule)
    assert not torch.equal(first.encode(x), walk[-1].z)


def test_one_step_with_b_enc_at_every_step_is_the_formula():
    sae, x, mu = make(px.L1(0.3, True)), rows(), 0.05
    z = sae.encode(x)
    u = z - mu * ((z @ sae.W_dec + sae.b_dec - x) @ sae.W_dec.T - sae.b_enc)
    want = torch.relu(u - mu * 0.3)
    assert_close(sae.unrolled(2, px.FixedStep(mu), b_enc="every").encode(x).detach(), want.detach(), 1e-12)


@EACH
@pytest.mark.parametrize("b_enc", ["first", "every"])
def test_the_encoders_own_form_never_raises_the_objective_however_it_diverges(R, b_enc):
    sae, x = make(R), rows()
    with torch.no_grad():
        sae.W_enc.mul_(3)  # unguarded steps would diverge
    points = list(sae.unrolled(20, analysis="encoder", b_enc=b_enc).walk(x))
    values = [p.objective(R) if R.rowwise else p.objective(R).sum() for p in points]
    assert all(bool((b <= a + 1e-9).all()) for a, b in pairwise(values))


@pytest.mark.parametrize("nonneg", [False, True])
@EACH_RULE
def test_a_selection_over_the_batch_descends_as_one_vector(rule, nonneg):
    R, x = px.BatchKSparse(2, nonneg), rows(40)
    x[:5] *= 20  # rows that take most of the batch's codes
    sae = make(R)
    points = list(sae.unrolled(16, rule).walk(x))
    values = torch.stack([p.objective(R).sum() for p in points]).detach()
    assert bool((values[1:] <= values[:-1] + 1e-9).all())
    assert float(values[-1]) < 0.9 * float(values[0])
    for point in points:
        assert int((point.z != 0).sum()) <= 80
    assert int((points[-1].z[:5] != 0).sum()) > 10  # not k a row


def test_a_batch_of_one_row_is_a_row():
    x = rows(1)
    for rule in RULES:
        batch, row = make(px.BatchKSparse(3)).unrolled(5, rule), make(px.KSparse(3)).unrolled(5, rule)
        assert_close(batch.encode(x).detach(), row.encode(x).detach(), 1e-12)


@pytest.mark.parametrize("nonneg", [False, True])
def test_a_threshold_stands_for_the_batch(nonneg, tmp_path):
    sae, x = make(px.BatchKSparse(3, nonneg)), rows()
    with pytest.raises(px.Error, match="has no threshold"):
        sae.thresholded()
    sae.batch_threshold.fill_(1.25)
    one = sae.thresholded()
    u = sae.pre_activations(x)
    want = torch.where((u if nonneg else u.abs()) > 1.25, u, 0)
    assert_same(one.encode(x).detach(), want.detach())
    assert one.W_dec is sae.W_dec
    assert isinstance(sae.penalty, px.BatchKSparse)
    one.save(tmp_path / "one")
    assert_same(px.load(tmp_path / "one").encode(x).detach(), want.detach())
    sae.save(tmp_path / "batch")
    assert float(px.load(tmp_path / "batch").batch_threshold) == 1.25
    with pytest.raises(px.Error, match="steps=3 have no common threshold"):
        sae.unrolled(3).thresholded()


def test_a_twin_shares_weights_and_nothing_else(tmp_path):
    sae = make(px.BatchKSparse(3)).float()
    deep = sae.unrolled(2).double()  # in place, as nn.Module does it
    assert {a.dtype for a in sae.state_dict().values()} == {torch.float64}
    sae.save(tmp_path / "sae")
    px.load(tmp_path / "sae")
    heard = []
    deep.register_forward_hook(lambda *arguments: heard.append(1))
    sae(rows())
    assert not heard
    deep.metadata["of"] = "the twin"
    assert not sae.metadata


@pytest.mark.parametrize("R", PENALTIES[:4], ids=repr)
def test_learned_steps_start_at_ista_and_are_trained(R, tmp_path):
    sae, x = make(R), rows()
    learned = sae.unrolled(3, px.LearnedSteps())
    assert_close(learned.encode(x).detach(), sae.unrolled(3).encode(x).detach(), 1e-9)
    names = {"log_step"} | ({"log_lam_factor"} if hasattr(R, "lam") else set())
    assert {name for name, _ in learned.named_parameters()} == {name for name, _ in sae.named_parameters()} | names
    assert not hasattr(sae, "log_step")  # what is shared are the weights
    assert not hasattr(learned.unrolled(2), "log_step")
    optimiser = torch.optim.Adam([getattr(learned, name) for name in names], lr=0.05)
    losses = []
    for _ in range(40):
        loss = (learned(x) - x).square().sum() + (R.value(learned.encode(x)).sum() if isinstance(R, px.L1) else 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert min(losses) < losses[0]
    learned.save(tmp_path / "sae")
    again = px.load(tmp_path / "sae")
    assert again.step == px.LearnedSteps()
    assert_same(again.encode(x).detach(), learned.encode(x).detach())


def test_a_learned_factor_multiplies_lam():
    sae, x = make(px.L1(0.3, True)), rows()
    learned = sae.unrolled(2, px.LearnedSteps())
    with torch.no_grad():
        learned.log_lam_factor.fill_(np.log(2.0))
        learned.log_step.fill_(np.log(0.05))
    z = sae.encode(x)
    u = z - 0.05 * (z @ sae.W_dec + sae.b_dec - x) @ sae.W_dec.T
    assert_close(learned.encode(x).detach(), torch.relu(u - 0.05 * 0.6).detach(), 1e-9)


@pytest.mark.parametrize("kind", ["none", *NORMS])
def test_everything_that_is_said_of_an_sae_survives_a_file(kind, tmp_path):
    sae = make(px.KSparse(2), normalize=kind, steps=3, step=px.Backtracking(), b_enc="every")
    sae.metadata = {"hook_name": "blocks.3", "notes": ["one", "two"]}
    sae.save(tmp_path / "sae")
    again = px.load(tmp_path / "sae")
    assert (again.normalize, again.encoding.b_enc, again.metadata) == (kind, "every", sae.metadata)
    assert repr(again) == repr(sae)
    assert_same(again.encode(rows()).detach(), sae.encode(rows()).detach())
    assert again.W_enc.is_contiguous()


def test_loading_draws_no_random_numbers(tmp_path):
    make(px.L0(0.3)).save(tmp_path / "sae")
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    px.load(tmp_path / "sae")
    assert_same(torch.rand(2), want)


@pytest.mark.parametrize("R", [px.KSparse(3), px.KSparse(3, True)], ids=repr)
@pytest.mark.parametrize(
    ("steps", "rule"), [(1, None), (3, None), (3, px.FixedStep(0.05)), (4, px.LearnedSteps())], ids=str
)
def test_a_selection_becomes_a_threshold_in_each_step(R, steps, rule, tmp_path):
    """Each is the mean of the smallest magnitude that the selection keeps, so that codes are about as dense."""
    sae, x = make(R).unrolled(steps, rule), rows(400)
    sizes = [0.05] * (steps - 1) if isinstance(rule, px.FixedStep) else [1 / px.lipschitz(sae.W_dec)] * (steps - 1)
    if isinstance(rule, px.LearnedSteps):
        with torch.no_grad():
            sae.log_step.add_(torch.linspace(-0.3, 0.2, steps - 1))
        sizes = sae.log_step.exp().tolist()
    one = sae.thresholded(x)
    wanted = [float(torch.where(p.z != 0, p.z.abs(), torch.inf).detach().amin(dim=1).mean()) for p in sae.walk(x)]
    assert one.threshold.tolist() == pytest.approx([wanted[0]] * one.d_sae)
    for t, mu in enumerate(sizes):
        assert float(one.log_step[t].detach().exp()) == pytest.approx(mu)
        lam = wanted[0] ** 2 / 2 * float(one.log_lam_factor[t].detach().exp())
        assert np.sqrt(2 * mu * lam) == pytest.approx(wanted[t + 1])
    codes = one.encode(x).detach()
    assert 0.6 * 3 < float((codes != 0).sum(dim=1).double().mean()) < 1.6 * 3
    one.save(tmp_path / "sae")
    assert_same(px.load(tmp_path / "sae").encode(x).detach(), codes)
    px.train(px.load(tmp_path / "sae"), x, steps=2, batch_size=100, progress=False)


def test_a_selection_without_a_threshold_is_one_sentence():
    x = rows()
    for sae, message in (
        (make(px.L1(0.1)), "rows are for KSparse with steps of given sizes"),
        (make(px.KSparse(3)).unrolled(3, px.ExactStep()), "has no threshold a step"),
        (make(px.KSparse(0)), "k=0 keeps no entry on these rows"),
    ):
        with pytest.raises(px.Error, match=message):
            sae.thresholded(x)
    with pytest.raises(px.Error, match="KSparse needs rows"):
        make(px.KSparse(3)).thresholded()

"""Distillation: what it holds, what it minimises, what it gains where that is known, and a sentence for what fails."""

import copy
import math

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae.learned import NAMED, LearnedRule
from proxsae.testing import assert_close, assert_same
from proxsae.training import distilling

D_IN, P, K = 16, 24, 2
PENALTIES = [px.KSparse(K), px.KSparse(K, True), px.L1(0.3), px.L0(0.1), px.L0(0.1, True)]
EACH = pytest.mark.parametrize("R", PENALTIES, ids=repr)


def rows(n=300, seed=3):
    return px.data.planted(n=n, d_in=D_IN, d_sae=P, k=K, seed=seed)


def an_sae(R, D=None, seed=0, **how):
    """The true atoms and an encoder that is off, so that there is something to learn."""
    torch.manual_seed(seed)
    sae = px.SAE(D_IN, P, R, **how).double()
    with torch.no_grad():
        if D is not None:
            sae.W_dec.copy_(torch.tensor(D))
        sae.W_enc.copy_(sae.W_dec.T + 0.15 * torch.randn_like(sae.W_enc))
        sae.b_enc.normal_(0, 0.05)
        sae.b_dec.normal_(0, 0.05)
    return sae


def bits(sae):
    return {name: a.detach().clone() for name, a in sae.weights().items()}


@EACH
@pytest.mark.parametrize("towards", ["codes", "error"])
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_the_dictionary_keeps_its_bits_and_the_encoder_learns(R, towards, normalize):
    data = rows()
    sae = an_sae(R, data.D, normalize=normalize)
    sae.b_dec.requires_grad_(False)
    before, random = bits(sae), torch.random.get_rng_state()
    px.distill(sae, sae.unrolled(8), data.x, steps=5, batch_size=32, towards=towards)
    for name, value in bits(sae).items():
        if name in ("W_dec", "b_dec"):
            assert_same(value, before[name])
        else:
            assert not torch.equal(value, before[name]), name
    flags = {name: a.requires_grad for name, a in sae.named_parameters()}
    assert flags == {name: name != "b_dec" for name in flags}
    assert torch.equal(random, torch.random.get_rng_state())


@pytest.mark.parametrize("rule", [rule for rule in NAMED.values() if isinstance(rule, LearnedRule)], ids=repr)
def test_the_weights_of_learned_layers_are_trained_and_what_is_fixed_is_not(rule):
    data = rows()
    sae = an_sae(px.L1(0.2), data.D).unrolled(3, rule)
    before = bits(sae)
    told = px.distill(sae, sae.unrolled(16), data.x, steps=30, batch_size=64, lr=1e-3, towards="error")
    assert math.isfinite(told["nmse"])
    for name, value in bits(sae).items():
        held = name in ("W_dec", "b_dec", *rule.fixed)
        assert torch.equal(value, before[name]) == held, name


def test_a_teacher_on_the_same_weights_stands_still():
    """Its first step is the encoder that learns: with the new weights the aim would move."""
    data = rows()
    sae = an_sae(px.KSparse(K), data.D)
    other = copy.deepcopy(sae)
    px.distill(sae, sae.unrolled(4, px.ExactStep()), data.x, steps=20, batch_size=64)
    px.distill(other, copy.deepcopy(other.unrolled(4, px.ExactStep())), data.x, steps=20, batch_size=64)
    for name, value in bits(sae).items():
        assert_same(value, bits(other)[name])


def plain_loss(sae, W_enc, b_enc, x, aim):
    """Towards the codes, one row and one latent at a time."""
    R, total = sae.penalty, 0.0
    for row, wanted in zip(x, aim, strict=True):
        u = (row - sae.b_dec.detach().numpy()) @ W_enc + b_enc
        z = R.prox(u[None], 1.0)[0]
        for j in range(P):
            if z[j]:
                total += 0.5 * (z[j] - wanted[j]) ** 2
            elif wanted[j]:
                shift = R.lam * np.sign(wanted[j]) if isinstance(R, px.L1) else 0.0
                total += 0.5 * (u[j] - wanted[j] - shift) ** 2
    return total / len(x)


@pytest.mark.parametrize("R", [px.KSparse(K), px.KSparse(K, True), px.L1(0.3), px.L1(0.3, True)], ids=repr)
def test_the_gradient_towards_codes_is_that_of_finite_differences(R):
    data = rows(n=12)
    sae = an_sae(R, data.D)
    deep = copy.deepcopy(sae.unrolled(8))
    with torch.no_grad():
        sae.W_enc += 0.4 * torch.randn_like(sae.W_enc)
    x = torch.tensor(data.x)
    aim = deep.encode(x).detach().numpy()
    value = distilling.towards_codes(sae, x, torch.tensor(aim))
    value.backward()
    W, b = sae.W_enc.detach().numpy().copy(), sae.b_enc.detach().numpy().copy()
    assert value.item() == pytest.approx(plain_loss(sae, W, b, data.x, aim), rel=1e-10)
    z = R.prox((data.x - sae.b_dec.detach().numpy()) @ W + b, 1.0)
    assert ((z == 0) & (aim != 0)).any(), "a latent that is missed is the case that matters"
    h, draw = 1e-6, np.random.default_rng(0)
    for i, j in zip(draw.integers(D_IN, size=30), draw.integers(P, size=30), strict=True):
        ends = []
        for sign in (1, -1):
            moved = W.copy()
            moved[i, j] += sign * h
            ends.append(plain_loss(sae, moved, b, data.x, aim))
        assert float(sae.W_enc.grad[i, j]) == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-6)
    for j in range(P):
        ends = []
        for sign in (1, -1):
            moved = b.copy()
            moved[j] += sign * h
            ends.append(plain_loss(sae, W, moved, data.x, aim))
        assert float(sae.b_enc.grad[j]) == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-6)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("towards", ["codes", "error"])
def test_on_orthonormal_atoms_one_step_learns_all_that_many_gain(nonneg, towards):
    """There one step of the tied encoder is the optimum (D^T D = I), so that the whole gain can be learned."""
    draw = torch.Generator().manual_seed(0)
    D = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=draw, dtype=torch.float64))[0]
    sae = px.SAE(D_IN, D_IN, px.KSparse(3, nonneg)).double()
    x = torch.randn(500, D_IN, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        sae.W_dec.copy_(D)
        sae.W_enc.copy_(D.T + 0.2 * torch.randn(D_IN, D_IN, generator=draw, dtype=torch.float64))
    told = px.distill(sae, sae.unrolled(40), x, steps=400, batch_size=100, lr=1e-2, towards=towards)
    best = px.KSparse(3, nonneg).prox((x @ D.T).numpy(), 1.0)
    least = float(((x.numpy() - best @ D.numpy()) ** 2).sum() / (x**2).sum())
    assert told["deep"] < 0.95 * told["before"]
    assert told["nmse"] == pytest.approx(least, rel=0.02)
    assert told["share"] > 0.95


def test_a_latent_that_the_encoder_never_fires_learns_to():
    """Codes of the second sum: the gradient of the code alone would leave it at 0 for good."""
    D = np.eye(D_IN)
    sae = px.SAE(D_IN, D_IN, px.KSparse(1)).double()
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor(D))
        sae.W_enc.copy_(torch.tensor(D))
        sae.W_enc[:, 5] = 0
    x = np.random.default_rng(0).standard_normal((400, D_IN)) * 0.1
    x[np.arange(400), np.arange(400) % D_IN] += 2.0
    deep = copy.deepcopy(sae.unrolled(1, px.OMP()))
    px.distill(sae, deep, x, steps=300, batch_size=100, lr=2e-2)
    z = sae.encode(x).detach()
    assert bool((z[5::D_IN, 5] != 0).all())


def test_what_is_told_is_what_numpy_finds():
    data = rows()
    sae = an_sae(px.KSparse(K), data.D)
    deep = copy.deepcopy(sae.unrolled(8, px.ExactStep()))

    def errors(one):
        return float(((data.x - one(torch.tensor(data.x)).detach().numpy()) ** 2).sum() / (data.x**2).sum())

    before, aim = errors(sae), errors(deep)
    told = px.distill(sae, deep, data.x, steps=40, batch_size=64)
    after = errors(sae)
    assert told == {
        "nmse": pytest.approx(after), "l0": pytest.approx(K), "before": pytest.approx(before),
        "deep": pytest.approx(aim), "share": pytest.approx((before - after) / (before - aim)),
    }  # fmt: skip


def test_the_unit_of_the_rows_changes_nothing():
    """Rows, offsets and lam in another unit: the same encoder, and codes in that unit."""
    data, found = rows(), []
    for unit in (1.0, 64.0):
        sae = an_sae(px.L1(0.2), data.D)
        sae.rescale(unit)
        px.distill(sae, sae.unrolled(8), unit * data.x, steps=20, batch_size=64, towards="error")
        found.append((sae.W_enc.detach(), sae.b_enc.detach() / unit))
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 1e-5)


def test_rows_from_a_file_give_the_same_and_a_call_can_be_repeated(tmp_path):
    data, found = rows(), []
    np.save(tmp_path / "rows.npy", data.x)
    for given in (data.x, data.x, tmp_path / "rows.npy"):
        sae = an_sae(px.KSparse(K), data.D)
        with torch.no_grad():
            px.distill(sae, sae.unrolled(4), given, steps=5, batch_size=32, seed=4)
        found.append(sae.W_enc.detach())
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_codes_that_are_kept_are_those_that_are_worked_out_anew(monkeypatch):
    """Rows that are read more than once are encoded once; the padding of short supports is no code."""
    data, found = rows(n=64), []
    for in_memory in (True, False):
        monkeypatch.setattr(distilling.Source, "in_memory", in_memory)
        sae = an_sae(px.L1(0.4), data.D)
        px.distill(sae, sae.unrolled(8), data.x, steps=12, batch_size=32)
        found.append(sae.W_enc.detach())
    assert_close(found[0], found[1], 1e-9)


def refused(match, sae=None, deep=None, x=None, **how):
    data = rows(n=40)
    sae = an_sae(px.KSparse(K), data.D) if sae is None else sae
    with pytest.raises(px.Error, match=match):
        px.distill(sae, sae.unrolled(4) if deep is None else deep, data.x if x is None else x, **how)


def test_what_cannot_be_distilled_is_one_sentence():
    data = rows(n=40)
    sae = an_sae(px.KSparse(K), data.D)
    refused("must be a px.SAE", sae=sae, deep="deep")
    refused("towards='both' must be 'codes' or 'error'", towards="both")
    refused("steps=0", steps=0)
    refused("lr=0", lr=0)
    refused(r"step=OMP\(\) does not use W_enc", sae=sae.unrolled(K, px.OMP()), deep=sae)
    refused("steps=inf does not use W_enc", sae=sae.unrolled(math.inf), deep=sae)
    refused("another dictionary", sae=sae, deep=an_sae(px.KSparse(K), seed=1))
    refused("another dictionary", sae=sae, deep=px.SAE(D_IN, P + 1, px.KSparse(K)).double())
    moved = copy.deepcopy(sae)
    with torch.no_grad():
        moved.b_dec[0] += 1
    refused("another dictionary", sae=sae, deep=moved)
    refused("codes of both signs", sae=sae.twin(penalty=px.KSparse(K, nonneg=True)), deep=sae)
    refused("selects over a batch", sae=sae.twin(penalty=px.BatchKSparse(K)), deep=sae)
    refused("lose what Adam adds", sae=copy.deepcopy(sae).half())
    refused("activations has shape", sae=sae, x=np.ones((4, 3)))
    frozen = copy.deepcopy(sae)
    frozen.requires_grad_(False)
    refused("every weight is frozen", sae=frozen)
    refused("lr=1e.* is too high", sae=an_sae(px.L1(0.1), data.D), lr=1e200, steps=20)


def test_an_error_leaves_the_flags_as_they_were():
    sae = an_sae(px.KSparse(K), rows().D)
    refused("give 'error'", sae=an_sae(px.GroupL2(0.1, 2), rows().D))
    refused("is too high|not finite|must be finite|left the range", sae=an_sae(px.L1(0.1)), lr=1e200, steps=20)
    refused("activations has shape", sae=sae, x=np.ones((4, 3)))
    assert all(a.requires_grad for a in sae.parameters())

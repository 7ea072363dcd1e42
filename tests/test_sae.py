"""One unrolled step is the encoder, more steps descend, the gradients are the derivatives, files come back whole."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call

import proxsae as px
from proxsae.formats import own
from proxsae.testing import assert_close, assert_same

PENALTIES = {
    f"{family}{' nonneg' if nonneg else ''}": make(nonneg)
    for family, make in {
        "L1": lambda nonneg: px.L1(0.5, nonneg),
        "L0": lambda nonneg: px.L0(0.5, nonneg),
        "KSparse": lambda nonneg: px.KSparse(3, nonneg),
    }.items()
    for nonneg in (False, True)
} | {"L0 two weights": px.L0(0.5, lam_minus=np.array([0.02, 1.0, np.inf, 0.5] * 5))}
RULES = [px.Lipschitz(), px.FixedStep(0.05), px.Backtracking(), px.ExactStep(), px.Refit()]
ALL = pytest.mark.parametrize("R", PENALTIES.values(), ids=PENALTIES)
EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=repr)
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")


def make(R, d=8, P=20, seed=0, device="cpu", **plan):
    """An SAE in float64 whose encoder is not tied and whose offsets are not zero."""
    torch.manual_seed(seed)
    sae = px.SAE(d, P, R, **plan).double().to(device)
    with torch.no_grad():
        for name, size in (("W_enc", 0.1), ("b_enc", 0.1), ("b_dec", 0.3)):
            parameter = getattr(sae, name)
            parameter += size * torch.randn(parameter.shape, dtype=torch.float64).to(device)
    return sae


def rows(n=7, d=8, seed=1, device="cpu", scale=2.0):
    return scale * torch.tensor(np.random.default_rng(seed).standard_normal((n, d)), device=device)


def numpy_penalty(sae):
    """R for NumPy: the trained thresholds of an L0 as numbers."""
    R = sae.penalty
    if not isinstance(R, px.L0):
        return R
    lam, minus = (w if w is None else w.detach().cpu().numpy() for w in (R.lam, R.lam_minus))
    return px.L0(lam, R.nonneg, lam_minus=minus)


def one_line_error(call, *needles):
    with pytest.raises(px.Error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for needle in needles:
        assert str(needle) in text


# One step


@ALL
def test_one_unrolled_step_is_the_encoder_exactly(R, device):
    sae, x = make(R, device=device), rows(200, device=device)
    z = sae.encode(x)
    assert bool((z != 0).any())
    assert bool((z == 0).any())
    assert_same(sae.unrolled(1).encode(x), z)
    assert_same(sae.unrolled(1, px.ExactStep()).encode(x), z)
    want = numpy_penalty(sae).prox(sae.pre_activations(x).detach().cpu().numpy())
    assert_same(z.detach(), torch.tensor(want, device=device))


@ALL
def test_a_tied_encoder_is_one_proximal_step_from_zero_exactly(R, device):
    """On eighths of small integers every product and sum is exact in float64, so every order of summation agrees."""
    rng = np.random.default_rng(5)
    D, b, x = (rng.integers(-6, 7, size=shape) / 8 for shape in ((20, 8), (8,), (300, 8)))
    sae = px.SAE(8, 20, R).double().to(device)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor(D))
        sae.W_enc.copy_(torch.tensor(D.T))
        sae.b_dec.copy_(torch.tensor(b))
    z = sae.encode(torch.tensor(x, device=device)).detach()
    gradient = (np.zeros((300, 20)) @ D + b - x) @ D.T  # at z = 0
    want = torch.tensor(R.prox(0 - 1 * gradient, 1), device=device)
    assert_same(z, want)
    assert_same(torch.tensor(R.prox((x - b) @ D.T, 1), device=device), want)
    trace = px.ista(x, D, R, 1, bias=b, keep="all")
    assert trace.codes.shape == z.shape
    with torch.no_grad():  # the paper's form: W_enc^T x + b_e with b_e = -D^T b
        sae.b_dec.zero_()
        sae.b_enc.copy_(torch.tensor(-(b @ D.T)))
    assert_same(sae.encode(torch.tensor(x, device=device)).detach(), want)
    support = (z != 0).double().mean()
    assert 0 < float(support) < 1
    if isinstance(R, px.L0):  # ties at the threshold are there, and go to 0
        u = np.maximum(-gradient, 0) if R.nonneg else -gradient
        assert (np.abs(u) == 1.0).any()


@ALL
@pytest.mark.parametrize("steps", [2, 5])
def test_more_steps_are_ista_from_the_encoders_code(R, steps, device):
    sae, x = make(R, device=device), rows(device=device)
    arrays = [a.detach().cpu().numpy() for a in (x, sae.W_dec, sae.encode(x), sae.b_dec)]
    for rule in RULES:
        got = sae.unrolled(steps, rule).encode(x).detach()
        same = px.ista(x, sae.W_dec, sae.penalty, steps - 1, rule, z0=sae.encode(x), bias=sae.b_dec)
        assert_close(got, same.codes.detach(), 1e-12)
        X, D, z1, b = arrays
        oracle = px.ista(X, D, numpy_penalty(sae), steps - 1, rule, z0=z1, bias=b)
        assert_close(got, torch.tensor(oracle.codes, device=device), 1e-9)
    assert not torch.equal(got, sae.encode(x))


@ALL
@EACH_RULE
def test_the_objective_never_rises_along_the_walk(R, rule, device):
    for seed in range(4):
        sae = make(R, seed=seed, device=device).unrolled(12, rule)
        F = torch.stack(
            [point.objective(sae.penalty).detach() for point in sae.walk(rows(30, seed=seed, device=device))]
        )
        assert F.shape == (12, 30)
        assert float(F.diff(dim=0).max()) <= 1e-12 * float(F.max())
        assert float(F[-1].sum()) < 0.9 * float(F[0].sum())


@ALL
def test_encoder_analysis_never_raises_the_objective_of_a_row(R, device):
    """The encoder here is far from W_dec^T, so that many unit steps would go up, and some go down."""
    up = down = 0
    for seed in range(4):
        sae = make(R, seed=seed, device=device)
        deep, x = sae.unrolled(6, analysis="encoder"), rows(30, seed=seed, device=device)
        points = list(deep.walk(x))
        F = torch.stack([point.objective(sae.penalty).detach() for point in points])
        assert float(F.diff(dim=0).max()) <= 0
        assert_same(deep.encode(x).detach(), points[-1].z.detach())
        down += int((F.diff(dim=0) < 0).sum())
        for one, other in pairwise(points):
            u = one.z - (one.z @ sae.W_dec + sae.b_dec - x) @ sae.W_enc
            trial = sae.penalty.prox(u)
            kept = (other.z == one.z).all(dim=1)
            assert_close(other.z[~kept].detach(), trial[~kept].detach(), 1e-12)
            up += int((kept & (trial != one.z).any(dim=1)).sum())
    assert up > 0
    assert down > 0


def test_the_walk_counts_the_products_it_spends(device):
    sae, x = make(px.KSparse(3), device=device), rows(device=device)
    spent = [float(point.spent.mean()) for point in sae.unrolled(4).walk(x)]
    assert spent == [1, 3, 5, 7]  # one to encode, then a residual and a gradient each
    walk = sae.unrolled(3, analysis="encoder").walk(x)  # the residual of z_1, then a product and a trial each
    assert [float(point.spent.mean()) for point in walk] == [1, 4, 6]


# Shapes, sparse codes, shared weights


@ALL
def test_shapes_and_names_are_those_that_sae_users_know(R):
    sae = px.SAE(8, 20, R)
    shapes = {name: tuple(parameter.shape) for name, parameter in sae.named_parameters()}
    want = {"W_enc": (8, 20), "W_dec": (20, 8), "b_enc": (20,), "b_dec": (8,)}
    thresholds = {"threshold": (20,)} if isinstance(R, px.L0) else {}
    thresholds |= {"threshold_minus": (20,)} if getattr(R, "lam_minus", None) is not None else {}
    assert shapes == want | thresholds
    assert_same(sae.W_enc.detach(), sae.W_dec.detach().T.contiguous())
    assert all(parameter.is_contiguous() for parameter in sae.parameters())
    assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(20), 1e-6)
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()


@ALL
@pytest.mark.parametrize("steps", [1, 3])
def test_leading_axes_are_batch_and_batches_may_be_empty(R, steps, device):
    sae, x = make(R, device=device, steps=steps), rows(6, device=device)
    cube = x.reshape(2, 3, 8)
    z = sae.encode(cube)
    assert z.shape == (2, 3, 20)
    assert_close(z.reshape(6, 20).detach(), sae.encode(x).detach(), 1e-12)
    assert_close(sae.encode(x[0]).detach(), sae.encode(x)[0].detach(), 1e-12)
    assert_close(sae(cube).detach(), (z @ sae.W_dec + sae.b_dec).detach(), 1e-12)
    for empty in (x[:0], cube[:, :0]):
        assert sae.encode(empty).shape == (*empty.shape[:-1], 20)
        assert sae(empty).shape == empty.shape
        assert sae.decode(sae.encode_sparse(empty)).shape == empty.shape
        assert sae.encode_sparse(empty).to_dense().shape == (*empty.shape[:-1], 20)


@ALL
@pytest.mark.parametrize("steps", [1, 3])
def test_sparse_codes_are_the_dense_codes(R, steps, device):
    sae, x = make(R, device=device, steps=steps), rows(6, device=device).reshape(2, 3, 8)
    dense, sparse = sae.encode(x), sae.encode_sparse(x)
    assert_same(sparse.to_dense().detach(), dense.detach())
    assert_close(sae.decode(sparse).detach(), sae.decode(dense).detach(), 1e-12)
    width = 3 if isinstance(R, px.KSparse) else int((dense != 0).sum(-1).max())
    with torch.no_grad():  # else entries of 0 that have a gradient are there as well
        sparse = sae.encode_sparse(x)
    assert sparse.values.shape == sparse.indices.shape == (2, 3, width)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("k", [0, 1, 20, 99])
def test_any_k_gives_codes_of_at_most_k(k, nonneg, device):
    sae, x = make(px.KSparse(k, nonneg), device=device), rows(device=device)
    z, sparse = sae.encode(x), sae.encode_sparse(x)
    assert_same(sparse.to_dense().detach(), z.detach())
    assert int((z != 0).sum(-1).max()) <= k
    assert sparse.values.shape == (7, min(k, 20))
    assert_close(sae.decode(sparse).detach(), sae.decode(z).detach(), 1e-12)


@ALL
def test_unrolled_shares_its_weights(R):
    sae, x = make(R), rows()
    deep = sae.unrolled(4, px.ExactStep())
    for name, parameter in sae.named_parameters():
        assert getattr(deep, name) is parameter
    assert (sae.steps, deep.steps, deep.step) == (1, 4, px.ExactStep())
    before = sae.encode(x).detach()
    optimiser = torch.optim.SGD(deep.parameters(), lr=0.1)
    (deep(x) - x).square().sum().backward()
    optimiser.step()
    assert not torch.equal(sae.encode(x), before)
    again = sae.unrolled(4, px.ExactStep())
    assert_same(again.encode(x).detach(), deep.encode(x).detach())


@pytest.mark.parametrize(
    ("sae", "R"),
    [
        (lambda: px.relu_sae(8, 20, 0.25), px.L1(0.25, nonneg=True)),
        (lambda: px.topk_sae(8, 20, 3), px.KSparse(3, nonneg=True)),
        (lambda: px.abstopk_sae(8, 20, 3), px.KSparse(3)),
    ],
)
def test_constructors_are_choices_of_a_penalty(sae, R):
    assert sae().penalty == R
    assert sae().steps == 1


def test_a_jumprelu_sae_keeps_what_is_above_its_threshold():
    sae = px.jumprelu_sae(8, 20, threshold=0.75, bandwidth=0.25)
    assert (sae.penalty.nonneg, sae.penalty.bandwidth) == (True, 0.25)
    assert_same(sae.threshold.detach(), torch.full((20,), 0.75))
    x = rows(50).float()
    u = sae.pre_activations(x).detach()
    assert_same(sae.encode(x).detach(), torch.where(u > 0.75, u, 0))


# Gradients


def test_the_threshold_gradient_is_the_straight_through_formula():
    """u = (1.1, 0.95, 0.85, -1.04) beside theta = 1, eps = 0.2: inside the kernel are the first two, and the last,
    which max(u, 0) moves out.  dL/dtheta = -(theta / eps) K dL/dz."""
    sae = px.jumprelu_sae(4, 4, threshold=1.0, bandwidth=0.25).double()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(4))
        sae.W_dec.copy_(torch.eye(4))
    x = torch.tensor([[1.1, 0.95, 0.85, -1.04]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([2.0, 3.0, 5.0, 7.0], dtype=torch.float64)
    (sae.encode(x) * weight).sum().backward()
    assert_close(sae.threshold.grad, torch.tensor([-8.0, -12.0, 0.0, 0.0], dtype=torch.float64), 1e-12)
    assert_close(x.grad, torch.tensor([[2.0, 0.0, 0.0, 0.0]], dtype=torch.float64), 1e-12)
    signed = px.SAE(4, 4, px.L0(0.5, bandwidth=0.25)).double()
    with torch.no_grad():
        signed.W_enc.copy_(torch.eye(4))
    (signed.encode(x) * weight).sum().backward()
    want = torch.tensor([-8.0, -12.0, 0.0, 28.0], dtype=torch.float64)  # a negative u turns the sign
    assert_close(signed.threshold.grad, want, 1e-12)


@ALL
@EACH_RULE
def test_every_parameter_has_a_finite_gradient_through_four_steps(R, rule, device):
    sae, x = make(R, device=device, steps=4), rows(30, device=device)
    sae = sae.unrolled(4, rule)
    (sae(x) - x).square().sum().backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        # least squares on a support forgets the code that it started from, unless a sign binds
        forgets = isinstance(rule, px.Refit) and not R.convex
        kernel = name == "threshold"  # its rectangle kernel may be empty
        assert kernel or bool(parameter.grad.any()) or (forgets and name in ("W_enc", "b_enc")), name


# Step sizes are constants of the backward pass: rules that read them off W_dec, or off the code, leave that part out.
# So does a refit that stops where a sign would change, by the size of the step before it: only the signed k-sparse one
# is here.
DIFFERENCES = {
    "fixed": ({"step": px.FixedStep(0.05)}, NAMES),
    "encoder": ({"analysis": "encoder"}, NAMES),
    "lipschitz": ({"step": px.Lipschitz()}, ("W_enc", "b_enc", "b_dec")),
    "backtracking": ({"step": px.Backtracking()}, ("W_enc", "b_enc", "b_dec")),
    "refit": ({"step": px.Refit()}, NAMES),
}
KINDS = {name: R for name, R in PENALTIES.items() if not name.startswith("L0")} | {"L1": px.L1(0.1)}
PAIRS = [(name, case) for name in KINDS for case in DIFFERENCES if case != "refit" or name == "KSparse"]


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_gradients_are_finite_differences_off_the_kinks(name, case):
    R, (plan, wanted) = KINDS[name], DIFFERENCES[case]
    sae, x = make(R, d=4, P=6, seed=3).unrolled(4, **plan), rows(3, d=4, seed=2)
    given = {parameter: getattr(sae, parameter).detach().clone().requires_grad_() for parameter in wanted}

    def decoded(*values):
        return functional_call(sae, dict(zip(wanted, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(decoded, tuple(given.values()), eps=1e-6, atol=1e-6, rtol=1e-4)


# Bad input


BAD = {
    "width": (lambda: make(px.L1(0.5)).encode(rows(d=7)), "needs (..., 8)"),
    "integers": (lambda: make(px.L1(0.5)).encode(torch.zeros(2, 8, dtype=torch.int64)), "int64"),
    "NaN": (lambda: make(px.L1(0.5)).encode(rows() * float("nan")), "NaN"),
    "infinity": (lambda: make(px.L1(0.5)).encode(rows() / 0), "NaN or infinite"),
    "dtype": (lambda: make(px.L1(0.5)).encode(rows().float()), "float32"),
    "text": (lambda: make(px.L1(0.5)).encode([["a"] * 8]), "x is list"),
    "ragged lists": (lambda: make(px.L1(0.5)).encode([[1.0, 2.0], [1.0]]), "x is list"),
    "NumPy of another width": (lambda: make(px.L1(0.5)).encode(rows(d=7).numpy()), "(..., 8)"),
    "scalar": (lambda: make(px.L1(0.5)).encode(torch.tensor(1.0)), "single number"),
    "sparse NaN": (lambda: make(px.KSparse(2)).encode_sparse(rows() * float("nan")), "NaN"),
    "walk NaN": (lambda: list(make(px.KSparse(2)).walk(rows() * float("nan"))), "NaN"),
    "k": (lambda: px.topk_sae(8, 20, -1), "k=-1"),
    "lam": (lambda: px.relu_sae(8, 20, -0.5), "lam=-0.5"),
    "d_in": (lambda: px.SAE(0, 20, px.L1(0.5)), "d_in=0"),
    "d_sae": (lambda: px.SAE(8, 2.5, px.L1(0.5)), "d_sae=2.5"),
    "penalty": (lambda: px.SAE(8, 20, 0.5), "penalty=0.5"),
    "lam per latent": (lambda: px.SAE(8, 20, px.L1(np.ones(3))), "20 latents"),
    "steps": (lambda: px.SAE(8, 20, px.L1(0.5), steps=0), "steps=0"),
    "unrolled steps": (lambda: make(px.L1(0.5)).unrolled(0), "steps=0"),
    "step": (lambda: make(px.L1(0.5)).unrolled(2, 0.5), "step=0.5"),
    "analysis": (lambda: make(px.L1(0.5)).unrolled(2, analysis="both"), "'both'"),
    "rule for an encoder": (lambda: make(px.L1(0.5)).unrolled(2, px.Refit(), analysis="encoder"), "unit steps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_sentence(case):
    one_line_error(*BAD[case])


@pytest.mark.parametrize("R", [px.L1(0.5), px.KSparse(4)], ids=repr)  # dense codes, and codes by their supports
def test_a_fixed_step_of_two_over_L_is_refused(R):
    sae = make(R)
    limit = 2 / px.lipschitz(sae.W_dec)  # L from above, so that this is still below 2/L
    one_line_error(lambda: sae.unrolled(2, px.FixedStep(limit * (1 + 1e-9))), "2/L", "thm-ista-descent")
    sae.unrolled(2, px.FixedStep(limit)).encode(rows())
    deep = sae.unrolled(2, px.FixedStep(0.999 * limit))
    sae.W_dec.data *= 1.1  # L is that of the weights as they are now
    one_line_error(lambda: deep.encode(rows()), "2/L")


def test_inputs_are_not_written(device):
    x = rows(device=device)
    for rule in RULES:
        make(px.KSparse(3), device=device).unrolled(4, rule)(x)
    assert_same(x, rows(device=device))


# Files


def assert_same_sae(one, other):
    assert (one.steps, one.step, one.analysis) == (other.steps, other.step, other.analysis)
    assert type(one.penalty) is type(other.penalty)
    if not isinstance(one.penalty, px.L0):
        assert one.penalty == other.penalty
    else:
        kept = ("nonneg", "bandwidth")
        assert [getattr(one.penalty, f) for f in kept] == [getattr(other.penalty, f) for f in kept]
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, a in one.state_dict().items():
        assert_same(a.cpu(), other.state_dict()[name].cpu(), name)


@ALL
@pytest.mark.parametrize(
    "plan",
    [{"steps": 1}, {"steps": 8, "step": px.ExactStep()}, {"steps": 2, "step": px.FixedStep(0.05)},
     {"steps": 3, "analysis": "encoder"}],
    ids=str,
)  # fmt: skip
def test_what_is_saved_is_what_is_loaded(R, plan, tmp_path, device):
    sae, x = make(R, device=device).unrolled(**plan), rows()
    sae.save(tmp_path / "sae")
    again = px.load(tmp_path / "sae")
    assert again.W_dec.dtype == torch.float64
    assert_same_sae(again, sae)
    assert_same(again.encode(x).detach(), sae.cpu().encode(x).detach())
    assert sorted(f.name for f in tmp_path.rglob("*")) == ["sae", "sae.json", "sae.safetensors"]


def test_one_lam_per_latent_and_half_precision_come_back(tmp_path):
    lam = np.linspace(0.1, 1, 20)
    make(px.L1(lam)).bfloat16().save(tmp_path / "deep" / "sae")
    sae = px.load(str(tmp_path / "deep" / "sae"))
    assert sae.penalty == px.L1(lam)
    assert sae.W_enc.dtype == torch.bfloat16


def test_save_replaces_an_sae_and_leaves_nothing_beside(tmp_path):
    make(px.L1(0.5)).save(tmp_path / "sae")
    other = make(px.KSparse(2), seed=9)
    other.save(tmp_path / "sae")
    assert_same_sae(px.load(tmp_path / "sae"), other)
    assert [f.name for f in tmp_path.iterdir()] == ["sae"]


@pytest.mark.parametrize("what", ["file", "folder", "below a file"])
def test_save_never_replaces_what_is_not_an_sae(what, tmp_path):
    target = tmp_path / "here"
    if what in ("file", "below a file"):
        target.write_text("mine")
    else:
        target.mkdir()
        if what == "folder":
            (target / "notes.txt").write_text("mine")
    before = {f: f.read_text() if f.is_file() else "" for f in tmp_path.rglob("*")}
    path = target / "sae" if what == "below a file" else target
    one_line_error(lambda: make(px.L1(0.5)).save(path), path)
    assert {f: f.read_text() if f.is_file() else "" for f in tmp_path.rglob("*")} == before


def test_an_empty_folder_may_be_saved_to(tmp_path):
    (tmp_path / "sae").mkdir()
    make(px.L1(0.5)).save(tmp_path / "sae")
    assert_same_sae(px.load(tmp_path / "sae"), make(px.L1(0.5)))
    assert sorted(f.name for f in (tmp_path / "sae").iterdir()) == [own.CONFIG, own.WEIGHTS]


def test_a_disk_that_fills_leaves_the_old_sae_whole(tmp_path, monkeypatch):
    sae = make(px.L1(0.5))
    sae.save(tmp_path / "sae")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    one_line_error(lambda: make(px.KSparse(2)).save(tmp_path / "sae"), tmp_path / "sae", "No space left")
    assert_same_sae(px.load(tmp_path / "sae"), sae)
    assert [f.name for f in tmp_path.iterdir()] == ["sae"]


@pytest.mark.parametrize("nth", [1, 2])
def test_a_rename_that_fails_leaves_the_old_sae_whole(nth, tmp_path, monkeypatch):
    sae = make(px.L1(0.5))
    sae.save(tmp_path / "sae")
    (tmp_path / "sae" / "notes.txt").write_text("mine")
    replace, calls = os.replace, []

    def refuse(source, target):
        calls.append(target)
        if len(calls) == nth:
            raise OSError(5, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", refuse)
        one_line_error(lambda: make(px.KSparse(2)).save(tmp_path / "sae"), tmp_path / "sae", "Input/output")
    assert_same_sae(px.load(tmp_path / "sae"), sae)
    make(px.KSparse(2)).save(tmp_path / "sae")
    assert px.load(tmp_path / "sae").penalty == px.KSparse(2)
    assert sorted(f.name for f in tmp_path.rglob("*")) == ["notes.txt", "sae", "sae.json", "sae.safetensors"]


@pytest.mark.parametrize("links", [True, False])
def test_a_kill_between_two_renames_is_refused_and_the_next_save_mends_it(links, tmp_path, monkeypatch):
    if not links:  # a disk that knows no hard links
        monkeypatch.setattr("os.link", lambda *paths: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    make(px.L1(0.5)).save(tmp_path / "sae")
    make(px.KSparse(2), seed=1).save(tmp_path / "other")
    os.replace(tmp_path / "other" / own.WEIGHTS, tmp_path / "sae" / own.WEIGHTS)
    one_line_error(lambda: px.load(tmp_path / "sae"), tmp_path / "sae", "not of one save")
    for state in ("mixed", "without weights"):
        if state == "without weights":
            (tmp_path / "sae" / own.WEIGHTS).unlink()
        make(px.KSparse(2)).save(tmp_path / "sae")
        assert_same_sae(px.load(tmp_path / "sae"), make(px.KSparse(2)))


def with_config(**changes):
    def change(folder):
        config = json.loads((folder / own.CONFIG).read_text()) | changes
        (folder / own.CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v != "DROPPED"}))

    return change


def with_tensors(change_tensors):
    def change(folder):
        save_file(change_tensors(load_file(folder / own.WEIGHTS)), folder / own.WEIGHTS)

    return change


def with_bytes(name, change_bytes):
    def change(folder):
        (folder / name).write_bytes(change_bytes((folder / name).read_bytes()))

    return change


BROKEN = {
    "missing folder": shutil.rmtree,
    "missing config": lambda folder: (folder / own.CONFIG).unlink(),
    "missing weights": lambda folder: (folder / own.WEIGHTS).unlink(),
    "truncated weights": with_bytes(own.WEIGHTS, lambda data: data[:-5]),
    "truncated header": with_bytes(own.WEIGHTS, lambda data: data[:20]),
    "empty weights": with_bytes(own.WEIGHTS, lambda data: b""),
    "foreign weights": with_bytes(own.WEIGHTS, lambda data: b"x" * 100),
    "broken JSON": with_bytes(own.CONFIG, lambda data: data[:-10]),
    "JSON not in UTF-8": with_bytes(own.CONFIG, lambda data: b"\xff\xfe\xfd"),
    "JSON too deep": with_bytes(own.CONFIG, lambda data: b"[" * 100_000),
    "JSON list": with_bytes(own.CONFIG, lambda data: b"[1, 2]"),
    "foreign JSON": with_bytes(own.CONFIG, lambda data: b'{"architecture": "topk"}'),
    "other format": with_config(format="proxsae-99"),
    "no steps": with_config(steps="DROPPED"),
    "bad steps": with_config(steps=0),
    "bad width": with_config(d_in="eight"),
    "other width": with_config(d_in=9),
    "unknown analysis": with_config(analysis="both"),
    "unknown family": with_config(penalty={"family": "Foo"}),
    "abstract family": with_config(penalty={"family": "Penalty"}),
    "family not a class": with_config(penalty={"family": "base"}),
    "penalty not an object": with_config(penalty="KSparse"),
    "penalty of another kind": with_config(penalty={"family": "L0", "nonneg": True}),
    "bad k": with_config(penalty={"family": "KSparse", "k": -1, "nonneg": False}),
    "lam of words": with_config(penalty={"family": "L1", "lam": ["a"] * 20, "nonneg": False}),
    "rule not a rule": with_config(step={"rule": "check_tol", "tol": 0.5}),
    "rule too long": with_config(steps=2, step={"rule": "FixedStep", "mu": 99.0}),
    "wrong shapes": with_tensors(lambda tensors: tensors | {"b_enc": torch.zeros(3, dtype=torch.float64)}),
    "missing tensor": with_tensors(lambda tensors: {k: v for k, v in tensors.items() if k != "W_dec"}),
    "unknown tensor": with_tensors(lambda tensors: tensors | {"W_gate": torch.zeros(3)}),
    "integer weights": with_tensors(lambda tensors: {k: v.long() for k, v in tensors.items()}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence_that_names_it(case, tmp_path):
    folder = tmp_path / "an-sae"
    make(px.KSparse(3)).save(folder)
    BROKEN[case](folder)
    one_line_error(lambda: px.load(folder), folder)


def test_load_leaves_the_random_numbers_alone(tmp_path):
    make(px.KSparse(3)).save(tmp_path / "sae")
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    px.load(tmp_path / "sae")
    assert_same(torch.rand(3), want)


def test_unrolled_shares_an_adjusted_lam():
    shallow = px.relu_sae(4, 6, 0.5)
    deep = shallow.unrolled(3)
    deep.rescale(2.0)
    assert shallow.penalty == deep.penalty == px.L1(1.0, nonneg=True)


def test_a_half_precision_threshold_is_squared_in_double():
    sae = px.jumprelu_sae(4, 6, threshold=1e-4).half()
    assert sae.penalty.lam[0].item() == sae.threshold[0].item() ** 2 / 2


@pytest.mark.parametrize("family", [px.L1, px.L0])
def test_a_lam_of_the_callers_stays_outside(family, tmp_path):
    lam = torch.tensor(0.5, requires_grad=True)
    sae = px.SAE(4, 6, family(lam))
    px.train(sae, torch.randn(32, 4), steps=3, batch_size=8)
    sae.save(tmp_path / "sae")
    assert lam.grad is None
    assert str(sae)


def test_codes_of_another_sae_are_refused():
    sae = px.topk_sae(4, 6, 2)
    for codes in (
        torch.zeros(3, 5),
        torch.zeros(3, 6, dtype=torch.float64),
        px.topk_sae(4, 5, 2).encode_sparse(torch.zeros(3, 4)),
    ):
        with pytest.raises(px.Error, match="latents"):
            sae.decode(codes)


FURTHER = [
    px.ElasticNet(0.05, 0.5, nonneg=True),
    px.MCP(0.05, 3.0),
    px.SCAD(0.05, nonneg=True),
    px.GroupL2(0.05, 4),
    px.SortedL1(np.linspace(0.1, 0.02, 24), nonneg=True),
    px.BatchKSparse(3),
]


@pytest.mark.parametrize("R", FURTHER, ids=lambda R: type(R).__name__)
def test_the_further_families_make_saes_that_train_scale_and_save(R, tmp_path, device):
    torch.manual_seed(0)
    sae = px.SAE(8, 24, R).to(device)
    x = torch.randn(64, 8, device=device)
    z = sae.encode(x)
    assert_close(sae.encode_sparse(x).to_dense(), z, 1e-7)
    sae.rescale(2.0)  # every prox here is homogeneous, so a new unit scales the codes and nothing else
    assert_close(sae.encode(2 * x), 2 * z, 1e-6)
    sae.rescale(0.5)
    before = px.evaluate(sae, x)["nmse"]
    px.train(sae, x, steps=60, batch_size=32, lr=1e-2)
    assert px.evaluate(sae, x)["nmse"] < before
    sae.save(tmp_path / "sae")
    again = px.load(tmp_path / "sae").to(device)
    assert again.penalty == sae.penalty
    assert_same(again.encode(x), sae.encode(x))
    deep = sae.unrolled(4)
    objective = [point.objective(deep.penalty) for point in deep.walk(x)]
    if not R.rowwise:  # the batch is one vector
        objective = [F.sum() for F in objective]
    assert all(bool((b <= a * (1 + 1e-6) + 1e-6).all()) for a, b in pairwise(objective))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("TopK", r"px\.KSparse\(k, nonneg=True\), and as an autoencoder px\.topk_sae"),
        ("AbsTopK", r"px\.KSparse\(k\), and as an autoencoder px\.abstopk_sae"),
        ("BatchTopK", r"px\.BatchKSparse\(k, nonneg=True\), and as an autoencoder px\.SAE"),
        ("ReLU", r"px\.L1\(lam, nonneg=True\), and as an autoencoder px\.relu_sae"),
        ("JumpReLU", r"px\.L0\(lam, nonneg=True\), and as an autoencoder px\.jumprelu_sae"),
        ("KSparce", r"did you mean px\.KSparse\?"),
        ("nonsense", r"'nonsense'$"),
    ],
)
def test_a_name_that_is_not_there_says_what_to_write(name, says):
    with pytest.raises(AttributeError, match=says):
        getattr(px, name)
    assert not hasattr(px, name)


def test_published_names_are_the_choices_of_a_penalty():
    from proxsae.penalties.published import PUBLISHED, published_as

    for name, make_sae in (("topk", px.topk_sae(4, 8, 3)), ("abstopk", px.abstopk_sae(4, 8, 3))):
        assert PUBLISHED[name].penalty(3, 0.5) == make_sae.penalty
    assert PUBLISHED["relu"].penalty(3, 0.5) == px.relu_sae(4, 8, 0.5).penalty
    R = PUBLISHED["jumprelu"].penalty(3, 0.5)
    assert (R.lam, R.nonneg, R.bandwidth) == (0.125, True, 0.25)
    for one in PUBLISHED.values():
        assert published_as(one.penalty(3, 0.5)) is one
    assert published_as(px.MCP(0.5, 3.0)) is None
    assert PUBLISHED["topk"].long == "TopK (k-sparse, z ≥ 0)"
    assert PUBLISHED["jumprelu2"].long == "two-sided JumpReLU (l0)"

"""What runs on a GPU, run on a device that is not there (`pretend_cuda`): the results are those of the CPU."""

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import testing as pt
from proxsae.pytorch import topk
from proxsae.testing import lattice
from tests.pretend_cuda import Pretend, pretend_cuda

KERNELS = pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])


@pytest.fixture(autouse=True)
def _no_other_device(device):
    if device != "cpu":
        pytest.skip("the real device is there")
    torch.manual_seed(0)


def moved(tree):
    """Tensors in lists and tuples, on the pretend device."""
    if isinstance(tree, (list, tuple)):
        return type(tree)(moved(a) for a in tree)
    return tree.detach().to("cuda") if isinstance(tree, torch.Tensor) else tree


def same(got, want, tol=0.0):
    """Fail unless what lies on the pretend device is what came out on the CPU."""
    assert isinstance(got, Pretend)
    if tol:
        pt.assert_close(got.held, want.detach(), tol)
    else:
        pt.assert_same(got.held, want.detach())


def atoms(P, d):
    return torch.nn.functional.normalize(torch.randn(P, d), dim=1)


# The device


def test_it_makes_moves_and_differentiates_tensors():
    with pretend_cuda():
        made = torch.zeros(2, 3, device="cuda")
        assert made.is_cuda
        assert made.device == torch.device("cuda", 0)
        assert torch.zeros(3).device.type == "cpu"
        for there in (made + 1, made[0], made.T @ made, made.new_ones(3), torch.ones_like(made), made.double()):
            assert there.is_cuda
        assert not made.cpu().is_cuda
        assert (made[0] * torch.tensor(2.0)).is_cuda  # CUDA takes a CPU number
        x = torch.randn(3, requires_grad=True)
        (x.to("cuda") ** 2).sum().backward()
        pt.assert_same(x.grad, 2 * x.detach())


@pytest.mark.parametrize(
    "stray",
    [
        lambda u: u + torch.ones(3),
        lambda u: torch.ones(3, 3) @ u,
        lambda u: u.gather(0, torch.zeros(1, dtype=torch.int64)),
        lambda u: torch.cat([u, torch.zeros(1)]),
        lambda u: torch.where(torch.ones(3, dtype=torch.bool), u, 0),
        lambda u: u.copy_(torch.zeros(3)).index_add_(0, torch.arange(3), u),
        lambda u: torch.zeros(3).index_select(0, u.long()),
        lambda u: torch.zeros(3).mul_(u[0]),  # a CUDA number is none
    ],
)
def test_two_devices_do_not_mix(stray):
    with pretend_cuda(), pytest.raises(RuntimeError, match="on the same device"):
        stray(torch.zeros(3, device="cuda"))


@pytest.mark.parametrize("read", [lambda u: u.numpy(), np.asarray, np.sqrt])
def test_numpy_does_not_read_it(read):
    with pretend_cuda(), pytest.raises(TypeError, match="can't convert cuda:0"):
        read(torch.zeros(3, device="cuda"))


@pytest.mark.parametrize(
    ("waits", "call"),
    [
        (0, lambda u: (u + 1).sort().values[:2]),
        (1, lambda u: u.sum().item()),
        (1, lambda u: bool((u > 0).any())),
        (1, lambda u: u[0].tolist()),
        (1, lambda u: u.cpu()),
        (1, lambda u: torch.zeros(3).copy_(u[0])),
        (1, lambda u: u.nonzero()),
        (1, lambda u: u[u > 0]),
        (1, lambda u: u[0].index_put_((u[0] > 0,), u[1])),
        (0, lambda u: u.index_put_((u > 0,), u[0, 0])),  # a number is written where the mask is
        (1, lambda u: u[torch.tensor([0, 1])]),
        (1, lambda u: torch.tensor([1.0], device="cuda")),
        (1, lambda u: u.unique()),
        (2, lambda u: u[0].long().bincount()),
        (1, lambda u: torch.linalg.eigvalsh(u.T @ u)),
    ],
)
def test_waits_of_the_host_are_counted(waits, call):
    with pretend_cuda() as counted:
        u = torch.ones(2, 3, device="cuda")
        call(u)
        assert sum(counted.values()) == waits


def test_a_missing_device_in_the_library_is_caught(monkeypatch):
    ties = torch.ones(3, 40)
    with pretend_cuda():
        same(topk.top_k(ties.to("cuda"), 4), topk.top_k(ties, 4))
        monkeypatch.setattr(topk, "place_in_row", lambda row, _: torch.arange(len(row)) - row)
        with pytest.raises(RuntimeError, match="on the same device"):
            topk.top_k(ties.to("cuda"), 4)


# The library on it


@pytest.mark.parametrize("name", pt.OPERATORS)
def test_operators(name):
    R = pt.OPERATORS[name]
    for P in lattice.widths(R):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            here = (2 * torch.randn(4, P)).to(dtype).requires_grad_()
            with pretend_cuda():
                there = moved(here).requires_grad_()
                step = torch.rand(4) + 0.5 if R.rowwise else 0.7
                got, want = R.prox(there, moved(step)), R.prox(here, step)
                same(got, want)
                same(R.value(got), R.value(want))
                same(R.slope(got), R.slope(want))
                for z in (got, want):
                    z.square().sum().backward()
                same(there.grad, here.grad)


PENALTIES = [
    px.L1(0.3), px.L1(np.linspace(0, 0.5, 40), nonneg=True), px.L0(0.2), px.KSparse(4), px.KSparse(4, nonneg=True),
    px.ElasticNet(0.3, 0.2), px.MCP(0.3, 3.0), px.SCAD(0.3, 3.7), px.GroupL2(0.3, 4),
    px.SortedL1(np.linspace(1, 0.2, 40)),
]  # fmt: skip
RULES = [px.Lipschitz(), px.FixedStep(0.1), px.Backtracking(), px.ExactStep(), px.Refit(), "fista"]


@pytest.mark.parametrize("R", PENALTIES, ids=lambda R: type(R).__name__)
def test_iterations(R):
    x, D, bias = 2 * torch.randn(5, 16), atoms(40, 16), 0.1 * torch.randn(16)
    for rule in RULES:
        momentum = rule if isinstance(rule, str) else None
        if (momentum and not R.convex) or (getattr(rule, "affine", None) and not R.affine):
            continue
        rule = px.Lipschitz() if momentum else rule
        want = px.ista(x, D, R, 6, rule, momentum, bias=bias)
        with pretend_cuda():
            got = px.ista(*moved((x, D)), R, 6, rule, momentum, bias=moved(bias))
        same(got.codes, want.codes)
        same(got.objective, want.objective)
        same(got.products, want.products)


@pytest.mark.parametrize("R", [px.L1(0.3), px.L0(0.2), px.KSparse(4)], ids=str)
def test_gradients_of_iterations_and_solutions(R):
    for call in (
        lambda x, D: px.ista(x, D, R, 4, px.ExactStep()).codes,
        lambda x, D: px.ista(x, D, R, 4, px.Refit()).codes,
        lambda x, D: px.solve(x, D, R, 1e-4, 200).codes,
    ):
        here = [torch.randn(5, 16).requires_grad_(), atoms(40, 16).requires_grad_()]
        with pretend_cuda():
            there = [a.requires_grad_() for a in moved(here)]
            for inputs in (here, there):
                call(*inputs).square().sum().backward()
        for a, b in zip(there, here, strict=True):
            same(a.grad, b.grad, 1e-6)


LAM = np.where(np.arange(60) % 20 == 0, 0.0, 0.4)


@pytest.mark.parametrize(
    ("R", "P", "rows", "dtype"),
    [
        pytest.param(px.L1(0.4), 60, 30, torch.float64, id="the whole Gram matrix"),
        pytest.param(px.L1(0.4), 60, 1, torch.float64, id="Gram matrices of working sets"),
        pytest.param(px.L1(0.4), 60, 1, torch.float32, id="float32"),
        pytest.param(px.L1(0.4, nonneg=True), 60, 30, torch.float64, id="non-negative"),
        pytest.param(px.L1(LAM), 60, 30, torch.float64, id="latents that are not penalised"),
        pytest.param(px.L1(LAM, nonneg=True), 60, 5, torch.float64, id="the same, non-negative"),
        pytest.param(px.L0(0.4), 60, 5, torch.float64, id="L0"),
        pytest.param(px.KSparse(3), 60, 5, torch.float64, id="k-sparse"),
        pytest.param(px.MCP(0.4, 3.0), 8, 3, torch.float64, id="MCP"),
        pytest.param(px.ElasticNet(0.4, 0.2), 60, 5, torch.float64, id="ElasticNet"),
    ],
)
def test_solutions(R, P, rows, dtype):
    x, D = 2 * torch.randn(rows, 16, dtype=dtype), atoms(P, 16).to(dtype)
    want = px.solve(x, D, R, 1e-5)
    with pretend_cuda():
        got = px.solve(*moved((x, D)), R, 1e-5)
    same(got.codes, want.codes, 1e-9)
    same(got.gap, want.gap, 1e-9)
    for told in ("steps", "converged", "at_rounding"):
        same(getattr(got, told), getattr(want, told))


def test_rows_that_working_sets_leave_are_solved(monkeypatch):
    monkeypatch.setattr("proxsae.pytorch.lasso_working_sets.ROUNDS", 1)
    test_solutions(px.L1(0.4), 60, 5, torch.float64)


def test_certificates():
    x, D, z = torch.randn(5, 16), atoms(40, 16), px.ista(torch.randn(5, 16), atoms(40, 16), px.L1(0.3), 5).codes
    with pretend_cuda():
        there = moved((x, D, z))
        for R in (px.L1(0.3), px.L1(np.linspace(0, 0.5, 40)), px.L1(np.linspace(0, 0.5, 40), nonneg=True)):
            code = z.abs() if R.nonneg else z
            same(px.duality_gap(*there[:2], moved(code), R), px.duality_gap(x, D, code, R))
        same(px.fixed_point_residual(*there, px.L0(0.3), 0.1), px.fixed_point_residual(x, D, z, px.L0(0.3), 0.1))
        same(px.lambda_max(*there[:2]), px.lambda_max(x, D))
        assert px.lipschitz(there[1]) == px.lipschitz(D)
        assert px.coherence(there[1]) == px.coherence(D)


SAES = {
    "relu": lambda P: px.relu_sae(16, P, lam=0.3),
    "jumprelu": lambda P: px.jumprelu_sae(16, P, threshold=0.3),
    "topk": lambda P: px.topk_sae(16, P, k=3),
    "abstopk": lambda P: px.abstopk_sae(16, P, k=3),
    "soft": lambda P: px.SAE(16, P, px.L1(0.3)),
    "two-sided jumprelu": lambda P: px.SAE(16, P, px.L0(0.1)),
    "nothing": lambda P: px.SAE(16, P, px.KSparse(0)),
    "batch": lambda P: px.SAE(16, P, px.BatchKSparse(3)),
    "group": lambda P: px.SAE(16, P, px.GroupL2(0.3, 4)),
}
DEEPER = {
    "1 step": {"steps": 1},
    "4": {"steps": 4},
    "by trials": {"steps": 4, "step": px.Backtracking()},
    "exact": {"steps": 4, "step": px.ExactStep()},
    "refit": {"steps": 3, "step": px.Refit()},
    "fixed": {"steps": 3, "step": px.FixedStep(0.1)},
    "learned": {"steps": 3, "step": px.LearnedSteps()},
    "by the encoder": {"steps": 3, "analysis": "encoder"},
    "bias in every step": {"steps": 3, "b_enc": "every"},
}
CURVED = ("batch", "group")  # no line step or refit


def sae_of(name, P):
    """The same weights each time."""
    torch.manual_seed(1)
    return SAES[name](P)


def runs_alike(name, deeper, x, kernels, P=128, dtype=torch.float32, tol=1e-6):
    """Dense and sparse codes, reconstructions and gradients on the pretend device against those on the CPU."""
    found = []
    for there in (False, True):
        with pretend_cuda(kernels):
            sae = sae_of(name, P).to("cuda" if there else "cpu", dtype)
            deep = sae.unrolled(**deeper)
            rows = (moved(x) if there else x.clone()).to(dtype).requires_grad_()
            with torch.no_grad():
                codes, sparse = deep.encode(rows), deep.encode_sparse(rows)
                found.append([codes, sparse.indices, sparse.values, deep.decode(sparse)])
            (deep(rows).float() - rows.float()).square().sum().backward()
            found[-1] += [p.grad for p in (rows, *deep.parameters())]
    for want, got in zip(*found, strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            same(got, want, tol)


@pytest.mark.parametrize("deeper", DEEPER)
@pytest.mark.parametrize("name", SAES)
def test_encoders_and_their_gradients(name, deeper):
    if name in CURVED and deeper in ("exact", "refit"):
        return
    if name == "batch" and deeper != "1 step":
        return
    runs_alike(name, DEEPER[deeper], 2 * torch.randn(5, 16), kernels=False)


@pytest.mark.parametrize(
    ("name", "deeper", "dtype"),  # Triton's interpreter cannot multiply bfloat16
    [
        ("topk", "1 step", torch.float32),
        ("abstopk", "4", torch.float32),
        ("topk", "exact", torch.float32),
        ("abstopk", "1 step", torch.float16),
        ("abstopk", "exact", torch.float16),
    ],
)
def test_kernels_take_what_the_encoders_give_them(name, deeper, dtype):
    x = 2 * torch.randn(2, 16)
    tol = 1e-6 if dtype == torch.float32 else 1e-2
    runs_alike(name, DEEPER[deeper] | {"steps": min(2, DEEPER[deeper]["steps"])}, x, True, 64, dtype, tol)


def test_steps_by_gram_rows():
    torch.manual_seed(0)
    sae, x = px.abstopk_sae(256, 512, k=2).unrolled(8), torch.randn(200, 256)
    with torch.no_grad(), pretend_cuda():
        want = sae.encode(x)
        there = px.abstopk_sae(256, 512, k=2).to("cuda")
        there.load_state_dict(sae.state_dict())
        deep = there.unrolled(8)
        assert deep.plan(200).product == "gram"
        same(deep.encode(moved(x)), want, 1e-6)


@KERNELS
@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("half", [False, True])  # whether float16 products are summed in float32, and may be used
def test_certified_codes(nonneg, half, kernels, monkeypatch):
    monkeypatch.setattr("proxsae.pytorch.certified_topk._sums_in_float32", lambda x: half)
    torch.manual_seed(0)
    sae, x = px.SAE(16, 256, px.KSparse(2, nonneg)), torch.randn(3, 16)
    x[0] = 0  # all scores tie
    want = sae.encode_sparse(x, exact="certified")
    with pretend_cuda(kernels):
        got = sae.to("cuda").encode_sparse(moved(x), exact="certified")
    same(got.indices, want.indices)
    same(got.values, want.values)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: px.abstopk_sae(16, 64, k=3), {}),
        (lambda: px.SAE(16, 64, px.KSparse(3, nonneg=True), 3), {"ks": (1,), "unit_encoder": True}),
        (lambda: px.SAE(16, 64, px.KSparse(3), 2, px.LearnedSteps()), {"widths": (16,)}),
        (lambda: px.jumprelu_sae(16, 64, threshold=0.3), {"l0": 4.0}),
        (lambda: px.relu_sae(16, 64, lam=0.3), {"l0": 4.0, "widths": (16,)}),
        (lambda: px.SAE(16, 64, px.BatchKSparse(3)), {}),
        (lambda: px.SAE(16, 64, px.KSparse(3), normalize="layer_norm"), {}),
    ],
)
def test_training(make, options):
    x = torch.randn(60, 16)
    results = []
    for there in (False, True):  # a latent is dead after two steps without firing, so AuxK takes part
        torch.manual_seed(1)
        with pretend_cuda():
            sae = make().to("cuda" if there else "cpu")
            told = px.train(sae, moved(x) if there else x, steps=20, batch_size=8, progress=False, **options)
        results.append((sae, told))
    (here, told), (away, told_there) = results
    assert told_there == pytest.approx(told, rel=1e-4)
    for a, b in zip(away.state_dict().values(), here.state_dict().values(), strict=True):
        same(a, b, 1e-4)


def test_training_is_resumed_and_evaluated(tmp_path):
    x = torch.randn(60, 16)
    with pretend_cuda():
        sae = sae_of("abstopk", 64).to("cuda")
        told = px.train(sae, moved(x), steps=4, batch_size=8, progress=False, checkpoint=tmp_path / "run")
        again = sae_of("abstopk", 64).to("cuda")
        assert px.train(again, moved(x), steps=4, batch_size=8, progress=False, checkpoint=tmp_path / "run") == told
        for a, b in zip(again.state_dict().values(), sae.state_dict().values(), strict=True):
            same(a, b.held)
        sae.save(tmp_path / "sae")
        loaded = px.load(tmp_path / "sae", device="cuda")
        assert px.evaluate(loaded, x) == px.evaluate(sae, moved(x))

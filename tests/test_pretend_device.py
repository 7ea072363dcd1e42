"""What runs on a GPU, run on a device that is not there (`pretend_cuda`): results, and how often the host waits."""

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
    """Tensors in lists, tuples and dicts, on the pretend device."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda a: a.detach().to("cuda"), tree)


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


@pytest.mark.parametrize("read", [torch.Tensor.numpy, np.asarray, np.sqrt])
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
        monkeypatch.setattr(topk, "place_in_row", lambda row, count: torch.arange(len(row)) - (count.cumsum(0) - count)[row])
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
    px.ElasticNet(0.3, 0.2), px.MCP(0.3, 3.0), px.SCAD(0.3, 3.7), px.GroupL2(0.3, 4), px.SortedL1(np.linspace(1, 0.2, 40)),
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
        pytest.param(px.MCP(0.4, 3.0), 30, 5, torch.float64, id="MCP"),
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
    for mine, theirs in zip((got.steps, got.converged, got.at_rounding), (want.steps, want.converged, want.at_rounding), strict=True):
        same(mine, theirs)


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
    "relu": lambda: px.relu_sae(16, 256, lam=0.1),
    "l1": lambda: px.SAE(16, 256, px.L1(0.1)),
    "jumprelu": lambda: px.jumprelu_sae(16, 256, threshold=0.1),
    "l0": lambda: px.SAE(16, 256, px.L0(0.05)),
    "topk": lambda: px.topk_sae(16, 256, k=4),
    "abstopk": lambda: px.abstopk_sae(16, 256, k=4),
    "batch": lambda: px.SAE(16, 256, px.BatchKSparse(4)),
    "group": lambda: px.SAE(16, 256, px.GroupL2(0.1, 4)),
}
DEEPER = {
    "1": lambda sae: sae,
    "4": lambda sae: sae.unrolled(4),
    "4 backtracking": lambda sae: sae.unrolled(4, px.Backtracking()),
    "4 exact": lambda sae: sae.unrolled(4, px.ExactStep()),
    "3 refit": lambda sae: sae.unrolled(3, px.Refit()),
    "3 fixed": lambda sae: sae.unrolled(3, px.FixedStep(0.1)),
    "3 by the encoder": lambda sae: sae.unrolled(3, analysis="encoder"),
    "3 bias": lambda sae: sae.unrolled(3, b_enc="every"),
    "3 learned": lambda sae: sae.unrolled(3, px.LearnedSteps()),
}


def made(name):
    torch.manual_seed(0)
    return SAES[name]()


@KERNELS
@pytest.mark.parametrize("name", SAES)
def test_encoders_and_their_gradients(name, kernels):
    x = torch.randn(5, 16)
    for deeper in DEEPER.values():
        here = made(name)
        try:
            deep = deeper(here)
            deep.encode(x)
        except px.Error:  # a rule that this penalty does not have
            continue
        with torch.no_grad():
            want = deep.encode(x), deep.encode_sparse(x), deep.decode(deep.encode(x))
        (deep(x) - x).square().sum().backward()
        with pretend_cuda(kernels):
            sae, there = made(name).to("cuda"), moved(x)
            deep = deeper(sae)
            with torch.no_grad():
                same(deep.encode(there), want[0], 1e-6)
                sparse = deep.encode_sparse(there)
                same(sparse.indices, want[1].indices)
                same(sparse.values, want[1].values, 1e-6)
                same(deep.decode(deep.encode(there)), want[2], 1e-6)
            (deep(there) - there).square().sum().backward()
        for (name_, a), b in zip(sae.named_parameters(), here.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), name_
            if b.grad is not None:
                same(a.grad, b.grad, 1e-5)

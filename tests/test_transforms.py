"""Operators and SAEs under torch.func, torch.export and torch.compile are what they are without."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

import proxsae as px
from proxsae.pytorch.prox import _pools
from proxsae.testing import assert_close, assert_same

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")  # by torch

FALLING = torch.linspace(0.8, 0.1, 6, dtype=torch.float64)
OPERATORS = [
    R
    for nonneg in (False, True)
    for R in (
        px.L1(FALLING.numpy(), nonneg), px.L0(0.1, nonneg), px.KSparse(2, nonneg), px.BatchKSparse(2, nonneg),
        px.ElasticNet(0.2, 0.3, nonneg), px.MCP(0.3, 2.0, nonneg), px.SCAD(0.3, 3.0, nonneg),
        px.GroupL2(0.3, 2, nonneg), px.SortedL1(FALLING.numpy(), nonneg),
    )
]  # fmt: skip
SIX = {
    "ReLU": lambda d, P: px.relu_sae(d, P, 0.2),
    "JumpReLU": lambda d, P: px.jumprelu_sae(d, P, 0.5),
    "TopK": lambda d, P: px.topk_sae(d, P, 4),
    "AbsTopK": lambda d, P: px.abstopk_sae(d, P, 4),
    "signed L1": lambda d, P: px.SAE(d, P, px.L1(0.2)),
    "signed L0": lambda d, P: px.SAE(d, P, px.L0(0.1)),
    "batch": lambda d, P: px.SAE(d, P, px.BatchKSparse(4)),
    "normalised": lambda d, P: px.SAE(d, P, px.KSparse(4), normalize="layer_norm"),
}


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def jacobian(f, u):
    """Row by row, by plain autograd."""
    u = u.clone().requires_grad_()
    return torch.stack([torch.autograd.grad(f(u)[i], u)[0] for i in range(len(f(u)))])


@pytest.mark.parametrize("R", OPERATORS, ids=repr)
def test_operators_under_torch_func_are_what_they_are(R):
    u, steps = draw(5, 6), torch.linspace(0.2, 2, 5, dtype=torch.float64)
    u[1, 2] = u[1, 3] = u[2].abs().max()  # a tie
    assert_same(func.vmap(R.prox)(u), torch.stack([R.prox(row) for row in u]))
    assert_same(func.vmap(R.prox, in_dims=1, out_dims=1)(u.T.contiguous()), torch.stack([R.prox(row) for row in u]).T)
    assert_same(func.vmap(R.prox)(u, steps), torch.stack([R.prox(*pair) for pair in zip(u, steps, strict=True)]))
    assert_same(func.vmap(R.value)(R.prox(u)), torch.stack([R.value(row) for row in R.prox(u)]))
    want = jacobian(R.prox, u[0])
    for transform in (func.jacrev, func.jacfwd):
        assert_close(transform(R.prox)(u[0]), want, 1e-13)
    loss = lambda row: R.prox(row).pow(3).sum()  # noqa: E731
    assert_close(func.vmap(func.grad(loss))(u), torch.stack([func.grad(loss)(row) for row in u]), 1e-13)
    assert_close(func.hessian(loss)(u[0]), jacobian(lambda v: func.grad(loss)(v), u[0]), 1e-12)


def test_pools_are_those_of_each_row_on_whatever_axis_rows_come():
    rows = draw(3, 4, 6)
    want = torch.stack([_pools(part) for part in rows.unbind(1)])
    assert_same(func.vmap(_pools, in_dims=1)(rows), want)


@pytest.mark.parametrize("R", [R for R in OPERATORS if hasattr(R, "lam")], ids=repr)
def test_a_lam_has_the_same_derivatives_by_every_transform(R):
    lam = FALLING if getattr(R.lam, "ndim", 0) else torch.tensor(0.4, dtype=torch.float64)
    u, along = draw(6), torch.ones_like(lam)
    u[0], u[1] = 0.8**0.5 + 0.01, 0.01 - 0.8**0.5  # in the kernel of L0, on both sides of its threshold
    code = lambda lam: replace(R, lam=lam).prox(u)  # noqa: E731
    asked = lam.clone().requires_grad_()
    want = torch.stack([torch.autograd.grad(entry, asked, retain_graph=True)[0].sum() for entry in code(asked)])
    assert_close(func.jvp(code, (lam,), (along,))[1], want, 1e-13)
    with forward_ad.dual_level():
        assert_close(forward_ad.unpack_dual(code(forward_ad.make_dual(lam, along))).tangent, want, 1e-13)
    assert_close(func.jacrev(code)(lam).reshape(6, -1).sum(dim=1), want, 1e-13)
    assert_same(func.vmap(code)(torch.stack([lam, lam / 2])), torch.stack([code(lam), code(lam / 2)]))


@pytest.mark.parametrize("R", [R for R in OPERATORS if R.separable], ids=repr)
def test_a_latent_that_is_off_feels_no_step_by_any_transform(R):
    lam, u, mu = FALLING.clone(), draw(6), torch.tensor(0.7, dtype=torch.float64)
    lam[2] = torch.inf
    code = lambda mu, lam: replace(R, lam=lam).prox(u, mu)  # noqa: E731
    asked = mu.clone().requires_grad_()
    want = torch.stack([torch.autograd.grad(entry, asked, retain_graph=True)[0] for entry in code(asked, lam)])
    assert want[2] == 0
    assert want.isfinite().all()
    assert_close(func.jvp(lambda mu: code(mu, lam), (mu,), (torch.ones_like(mu),))[1], want, 1e-13)
    lams = torch.stack([lam, lam])
    assert_close(func.vmap(func.jacrev(code), in_dims=(None, 0))(mu, lams), torch.stack([want, want]), 1e-13)


@pytest.mark.parametrize("name", SIX)
def test_saes_under_torch_func_are_what_they_are(name):
    sae, x = SIX[name](8, 32).double(), draw(5, 8)
    weights = {name: p.detach() for name, p in sae.named_parameters()}
    alone = torch.stack([sae.encode(row) for row in x]).detach()
    assert_close(func.vmap(sae.encode)(x), alone, 1e-14)
    assert_close(func.vmap(sae)(x), torch.stack([sae(row) for row in x]).detach(), 1e-13)
    assert_close(func.vmap(sae.decode)(alone), sae.decode(alone), 1e-13)
    assert_close(func.vmap(lambda row: sae.decode(sae.encode_sparse(row)))(x), sae.decode(alone), 1e-13)
    want = jacobian(sae.encode, x[0])
    for transform in (func.jacrev, func.jacfwd):
        assert_close(transform(sae.encode)(x[0]), want, 1e-12)

    def loss(weights, row):
        return (func.functional_call(sae, weights, (row,)) - row).square().sum()

    each = func.vmap(func.grad(loss), (None, 0))(weights, x)
    for i, row in enumerate(x):
        wanted = {name: p for name, p in sae.named_parameters() if p.requires_grad}
        plain = torch.autograd.grad((sae(row) - row).square().sum(), list(wanted.values()))
        for which, g in zip(wanted, plain, strict=True):
            assert_close(each[which][i], g, 1e-11, which)
    two = func.vmap(lambda weights: func.functional_call(sae, weights, (x,)))(
        {which: torch.stack([w, 2 * w]) for which, w in weights.items()}
    )
    assert_close(two[0], sae(x).detach(), 1e-13)


@pytest.mark.parametrize("R", [px.L1(0.2), px.KSparse(3)], ids=repr)
def test_the_iteration_under_torch_func_is_what_it_is(R):
    D, x = draw(12, 6, seed=1), draw(5, 6)
    want = px.ista(x, D, R, 5, 0.01)
    assert_close(func.vmap(lambda row: px.ista(row, D, R, 5, 0.01).codes)(x), want.codes, 1e-13)
    asked = D.clone().requires_grad_()
    (plain,) = torch.autograd.grad(px.ista(x, asked, R, 5, 0.01).codes.sum(), asked)
    assert_close(func.grad(lambda D: px.ista(x, D, R, 5, 0.01).codes.sum())(D), plain, 1e-12)
    if torch.__version__ >= (2, 11) or not isinstance(R, px.L1):  # torch 2.8 lists no numbers in a transform
        (plain,) = torch.autograd.grad(px.solve(x, asked, R).codes.sum(), asked)
        assert_close(func.grad(lambda D: px.solve(x, D, R).codes.sum())(D), plain, 1e-12)
    deep = px.SAE(6, 12, R, steps=3).double()
    assert_close(func.vmap(deep.encode)(x), deep.encode(x).detach(), 1e-12)
    known = deep.common.norm
    func.grad(lambda W: func.functional_call(deep, {"W_dec": W}, (x,)).sum())(2 * deep.W_dec.detach())
    assert deep.common.norm is known  # nothing of a transform outlives it


def test_what_looks_at_values_says_so():
    x, D = draw(5, 6), draw(12, 6, seed=1)
    deep = px.SAE(6, 12, px.KSparse(3), steps=3, step=px.ExactStep()).double()
    with pytest.raises(px.Error, match=r"an encoder of 3 steps looks at values.*sae\.unrolled\(1\)"):
        func.vmap(deep.encode)(x)
    with pytest.raises(px.Error, match="solve looks at values"):
        func.vmap(lambda row: px.solve(row, D, px.L1(0.2)).codes)(x)
    with pytest.raises(px.Error, match="ista looks at values"):
        func.vmap(lambda row: px.ista(row, D, px.L1(0.2), 3, px.Backtracking()).codes)(x)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|size"):  # another error stays what it is
        px.ista(x, D, replaced_prox(), 2)


def replaced_prox():
    class Wrong(px.L1):
        def _torch_prox(self, u, step):
            return u[:, :3]

    return Wrong(0.1)


class Codes(torch.nn.Module):
    """`encode` as a module, for torch.export takes modules."""

    def __init__(self, sae):
        super().__init__()
        self.sae = sae

    def forward(self, x):
        return self.sae.encode(x)


@pytest.mark.parametrize("name", SIX)
def test_an_exported_encoder_gives_the_same_bits_on_other_batches(name):
    sae, x = SIX[name](8, 32), draw(4, 8, dtype=torch.float32)
    rows = ({0: torch.export.Dim("rows", min=2)},)
    other = draw(9, 8, dtype=torch.float32, seed=1)
    with torch.no_grad():
        sae.W_enc[:, 1] = sae.W_enc[:, 0]  # ties
        for module in (sae, Codes(sae)):
            program = torch.export.export(module, (x,), dynamic_shapes=rows, strict=False)
            assert_same(program.module()(other), module(other))


def test_more_steps_cannot_be_exported_and_say_so():
    with pytest.raises(px.Error, match="an encoder of 3 steps looks at values"):
        torch.export.export(px.SAE(8, 32, px.L1(0.2), steps=3), (torch.zeros(4, 8),), strict=False)


@pytest.mark.filterwarnings("ignore")  # what the compiler tells of itself
@pytest.mark.parametrize("name", ["JumpReLU", "AbsTopK"])
def test_a_compiled_sae_is_what_it_is(name):
    sae, x = SIX[name](8, 32), draw(4, 8, dtype=torch.float32)
    compiled = torch.compile(sae, backend="eager")
    wanted = list(sae.parameters())
    assert_same(compiled(x).detach(), sae(x).detach())
    plain = torch.autograd.grad(sae(x).square().sum(), wanted)
    for one, other in zip(torch.autograd.grad(compiled(x).square().sum(), wanted), plain, strict=True):
        assert_same(one, other)
    with pytest.raises(px.Error, match="NaN"):
        compiled(x / 0)


@pytest.mark.filterwarnings("ignore")
def test_compile_of_the_module_changes_nothing():
    made, x = px.SAE(8, 24, px.L1(0.1, nonneg=True)), draw(60, 8, dtype=torch.float32)
    deep, again = made.unrolled(2), copy.deepcopy(made)
    want, further = made(x).detach(), deep(x).detach()
    made.compile(backend="eager")
    assert_same(made(x).detach(), want)
    assert_same(made.unrolled(2)(x).detach(), further)
    assert_same(again.unrolled(2)(x).detach(), further)

"""Second derivatives, against a textbook encoder under plain autograd and against differences of first ones."""

from dataclasses import replace

import pytest
import torch

import proxsae as px
from proxsae.pytorch.codes import SparseCodes, sparse_decode
from proxsae.testing import assert_close


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def untied(R, d=8, P=32, **given):
    """An SAE in float64 whose four weights have nothing to do with each other."""
    sae = px.SAE(d, P, R, **given).double()
    for seed, name in enumerate(("W_dec", "W_enc", "b_enc", "b_dec")):
        size = 0.3 if name.startswith("b") else d**-0.5
        getattr(sae, name).data.copy_(size * draw(*getattr(sae, name).shape, seed=seed + 1))
    return sae


def both_orders(loss, wanted):
    """The gradients of a loss, and of the sum of their squares: by `autograd.grad`, and again by `.backward()`."""
    first = torch.autograd.grad(loss(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
    for a in wanted:
        a.grad = None
    sum(g.square().sum() for g in torch.autograd.grad(loss(), wanted, create_graph=True)).backward()
    for a, want in zip(wanted, second, strict=True):
        assert_close(a.grad, want, 1e-13)
    return (*first, *second)


def textbook(x, sae, keep, mu):
    """The codes of an SAE as the docs write them, with `keep` the projection of a dense u."""
    c = x - sae.b_dec
    z = keep(c @ sae.W_enc + sae.b_enc)
    for _ in range(sae.steps - 1):
        z = keep(z - mu * (z @ sae.W_dec - c) @ sae.W_dec.T)
    return z


def keep_largest(u, k, nonneg):
    u = u.clamp(min=0) if nonneg else u
    return u * torch.zeros_like(u).scatter(-1, u.detach().abs().topk(k).indices, 1.0)


ROADS = {
    "forward": lambda sae, x: sae(x),
    "encode and decode": lambda sae, x: sae.decode(sae.encode(x)),
    "encode_sparse and decode": lambda sae, x: sae.decode(sae.encode_sparse(x)),
    "reconstruct": lambda sae, x: sae.decode(sae.reconstruct(x)[1]),
}


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("road", ROADS)
def test_second_derivatives_of_k_sparse_saes_are_those_of_the_textbook(road, steps, nonneg):
    sae = untied(px.KSparse(4, nonneg), steps=steps)
    mu, x = 1 / px.lipschitz(sae.W_dec), draw(12, 8).requires_grad_()
    wanted = (x, *sae.parameters())
    got = both_orders(lambda: ROADS[road](sae, x).pow(3).sum(), wanted)
    want = both_orders(
        lambda: (textbook(x, sae, lambda u: keep_largest(u, 4, nonneg), mu) @ sae.W_dec + sae.b_dec).pow(3).sum(),
        wanted,
    )
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1e-12)


@pytest.mark.parametrize("rule", [px.Backtracking(), px.ExactStep()], ids=repr)
def test_second_derivatives_hold_the_sizes_of_steps(rule):
    """As first ones do: the dense steps under autograd hold them too."""
    sae = untied(px.KSparse(4), steps=3, step=rule)
    x = draw(12, 8).requires_grad_()
    wanted = (x, *sae.parameters())
    got = both_orders(lambda: sae(x).pow(3).sum(), wanted)
    dense = both_orders(
        lambda: sae.decode(sae.refine(x, sae.penalty.prox(sae.pre_activations(x)))).pow(3).sum(), wanted
    )
    for one, other in zip(got, dense, strict=True):
        assert_close(one, other, 1e-12)


def test_a_weight_that_is_a_function_of_another_counts_once():
    """Tied weights: the second derivative in W_dec takes in what W_enc = W_dec^T does, and takes it in once."""
    sae, x = untied(px.KSparse(4)), draw(12, 8)
    atoms = sae.W_dec.detach().requires_grad_()

    def tied(run):
        W = atoms * 1
        twin = sae.twin(weights={"W_dec": W, "W_enc": W.T})
        return run(twin).pow(3).sum()

    got = both_orders(lambda: tied(lambda twin: twin(x)), (atoms,))
    want = both_orders(
        lambda: tied(lambda twin: textbook(x, twin, lambda u: keep_largest(u, 4, False), 1) @ twin.W_dec + twin.b_dec),
        (atoms,),
    )
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, 1e-12)


def test_sparse_decode_has_derivatives_of_every_order():
    indices, values, W = torch.tensor([[0, 3], [1, 3], [2, 4]]), draw(3, 2, seed=1), draw(5, 4, seed=2)
    decode = lambda values, W: sparse_decode(SparseCodes(indices, values, 5), W)  # noqa: E731
    given = (values.requires_grad_(), W.requires_grad_())
    assert torch.autograd.gradgradcheck(decode, given)

    def third(product):
        out = product().pow(4).sum()
        for _ in range(2):
            out = sum(g.square().sum() for g in torch.autograd.grad(out, given, create_graph=True))
        return torch.autograd.grad(out, given)

    dense = torch.zeros(3, 5, dtype=torch.float64)
    want = third(lambda: dense.scatter(-1, indices, values) @ W)
    for one, other in zip(third(lambda: decode(values, W)), want, strict=True):
        assert_close(one, other, 1e-12)


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_differences_of_first_derivatives_are_second_ones(steps, nonneg):
    sae = untied(px.KSparse(2, nonneg), d=4, P=6, steps=steps, step=px.FixedStep(0.05))
    names = [name for name, _ in sae.named_parameters()]

    def run(x, *weights):
        return torch.func.functional_call(sae, dict(zip(names, weights, strict=True)), (x,))

    given = (draw(2, 4, seed=9), *(p.detach() for p in sae.parameters()))
    assert torch.autograd.gradgradcheck(run, tuple(a.requires_grad_() for a in given))


def test_a_shard_refuses_second_derivatives_on_every_road():
    """A team of one process, so that no other has to answer: its gradients are still those of a part."""
    from proxsae.sae.team import Team

    sae, x = px.SAE(8, 32, px.KSparse(4)), torch.randn(5, 8, requires_grad=True)
    shard = sae.twin(team=Team(1, 1, 0, None, None))
    (whole,) = torch.autograd.grad(shard(x).sum(), x)
    assert bool(whole.any())
    with pytest.raises(px.Error, match=r"create_graph=True needs the whole SAE.*px\.load"):
        torch.autograd.grad(shard(x).sum(), x, create_graph=True)
    with pytest.raises(px.Error, match="create_graph=True needs the whole SAE"):
        shard(x).sum().backward(create_graph=True)


def test_the_sum_over_shards_refuses_them_too(monkeypatch):
    from proxsae.sae import team

    monkeypatch.setattr(team, "_reach", lambda call, *arguments, **options: None)
    here = team.Team(2, 1, 0, None, None)
    a = draw(3, 4).requires_grad_()
    (first,) = torch.autograd.grad(here.total(a).sum(), a)
    assert bool((first == 1).all())
    with pytest.raises(px.Error, match="create_graph=True needs the whole SAE"):
        torch.autograd.grad(here.total(a).sum(), a, create_graph=True)


SOLVED = {"L1": px.L1(0.3), "L1 nonneg": px.L1(0.2, True), "KSparse": px.KSparse(3), "L0": px.L0(0.5)}


@pytest.mark.parametrize("name", SOLVED)
def test_second_derivatives_of_solutions_are_those_of_their_normal_equations(name):
    """On a support that stays, z_S = (D_S^T D_S)^-1 (D_S^T c - lam s), and plain autograd differentiates it."""
    R = SOLVED[name]
    x, D, bias = (draw(*shape, seed=seed).requires_grad_() for seed, shape in enumerate([(4, 6), (10, 6), (6,)]))
    lam = torch.full((10,), 0.2, dtype=torch.float64, requires_grad=True) if isinstance(R, px.L1) else None
    R = R if lam is None else px.L1(lam, R.nonneg)
    wanted = (x, D, bias, *([] if lam is None else [lam]))
    found = px.solve(x, D, R, tol=1e-9, bias=bias)
    assert bool(found.converged.all())

    def by_hand():
        rows = []
        for row, z in zip(x - bias, found.codes.detach(), strict=True):
            S = z.nonzero()[:, 0]
            cost = 0 if lam is None else lam[S] * z[S].sign()
            rows.append(torch.zeros(10).to(z).index_put((S,), torch.linalg.inv(D[S] @ D[S].T) @ (D[S] @ row - cost)))
        return torch.stack(rows).pow(3).sum()

    got = both_orders(lambda: px.solve(x, D, R, tol=1e-9, bias=bias).codes.pow(3).sum(), wanted)
    for one, other in zip(got, both_orders(by_hand, wanted), strict=True):
        assert_close(one, other, 1e-6)  # of the solution itself


def stopped(seed, nonneg):
    """A problem whose refit stops where the first entry reaches 0: atoms that have much in common."""
    D = torch.nn.functional.normalize(draw(8, 10, seed=seed) + 0.8 * draw(10, seed=50), dim=1)
    x, R = draw(1, 10, seed=seed + 100), px.L1(0.05 if nonneg else 0.1, nonneg)
    tried, found = (px.ista(x, D, R, 1, rule).codes for rule in (px.Backtracking(), px.Refit()))
    assert int((tried != 0).sum()) == int((found != 0).sum()) + 1
    return x, D, R


@pytest.mark.parametrize(("seed", "nonneg"), [(0, False), (8, False), (0, True), (10, True)])
def test_a_refit_that_stops_at_a_change_of_sign_has_derivatives(seed, nonneg):
    """How far it moves hangs on the data: the fraction has a derivative as well."""
    x, D, R = stopped(seed, nonneg)
    refit = lambda x: px.ista(x, D, R, 2, px.Refit()).codes  # noqa: E731
    assert torch.autograd.gradcheck(refit, x.requires_grad_())
    assert torch.autograd.gradgradcheck(refit, x, atol=1e-4)


@pytest.mark.parametrize("nonneg", [False, True])
def test_second_derivatives_of_refits_are_differences_of_first_ones(nonneg):
    x, D = draw(2, 6), draw(10, 6, seed=1)
    assert torch.autograd.gradgradcheck(
        lambda x: px.ista(x, D, px.KSparse(3, nonneg), 3, px.Refit()).codes, x.requires_grad_()
    )


DEEPER = {
    "one step": {},
    "learned steps": {"steps": 3, "step": px.LearnedSteps()},
    "by the encoder": {"steps": 3, "analysis": "encoder"},
    "Lipschitz": {"steps": 3, "b_enc": "every"},
    "Backtracking": {"steps": 3, "step": px.Backtracking()},
    "ExactStep": {"steps": 3, "step": px.ExactStep()},
    "Refit": {"steps": 2, "step": px.Refit()},
}


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("name", DEEPER)
def test_sparse_codes_feel_a_threshold_as_dense_ones_do(name, nonneg):
    """Entries of 0 near the threshold have gradients: alone, in a batch, and in second derivatives."""
    sae = untied(px.L0(1.0, nonneg, bandwidth=0.3), **DEEPER[name])
    wanted = tuple(sae.parameters())
    rows = draw(40, 8)
    assert sae.encode_sparse(rows).values.shape[1] < 32
    for x in (rows, rows[:1], rows[0]):
        want = both_orders(lambda: sae.decode(sae.encode(x)).pow(3).sum(), wanted)  # noqa: B023
        for road in ("encode_sparse and decode", "reconstruct"):
            got = both_orders(lambda: ROADS[road](sae, x).pow(3).sum(), wanted)  # noqa: B023
            for one, other in zip(got, want, strict=True):
                assert_close(one, other, 1e-11)
    with torch.no_grad():
        assert sae.encode_sparse(rows).values.shape[1] == int((sae.encode(rows) != 0).sum(dim=1).max())


SMOOTH = [
    px.L1(0.3), px.ElasticNet(0.3, 0.5), px.MCP(0.3, 2.0), px.SCAD(0.3, 3.0), px.GroupL2(0.3, 2), px.SortedL1(0.3),
]  # fmt: skip


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("R", SMOOTH, ids=lambda R: type(R).__name__)
def test_second_derivatives_of_operators_in_u_lam_and_step(R, nonneg):
    def prox(u, lam, step):
        return replace(R, lam=lam, nonneg=nonneg).prox(u, step)

    u, lam, step = draw(2, 4, seed=3), draw(1)[0].abs() / 4, torch.tensor([0.7, 1.3], dtype=torch.float64)
    given = tuple(a.requires_grad_() for a in (u, lam, step))
    assert torch.autograd.gradcheck(prox, given)
    assert torch.autograd.gradgradcheck(prox, given)


def test_the_straight_through_estimate_is_differentiated_as_it_is_written():
    """-sign(u) theta / bandwidth in the kernel: -sign(u) / bandwidth in theta, and 0 in u."""
    theta = torch.tensor([1.0, 1.2, 0.8, 1.0], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([1.04, -1.17, 0.77, 1.3], dtype=torch.float64, requires_grad=True)
    code = px.L0(theta.square() / 2, bandwidth=0.1).prox(u)
    (first,) = torch.autograd.grad(code.sum(), theta, create_graph=True)
    assert_close(first.detach(), torch.tensor([-10.0, 12.0, -8.0, 0.0], dtype=torch.float64), 1e-12)
    second = torch.autograd.grad(first.sum(), (theta, u), allow_unused=True)
    assert_close(second[0], torch.tensor([-10.0, 10.0, -10.0, 0.0], dtype=torch.float64), 1e-12)
    assert second[1] is None or not bool(second[1].any())

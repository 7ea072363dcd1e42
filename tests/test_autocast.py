"""Autocast never reaches inside proxsae: each public call on tensors gives the bits of one without it."""

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

import proxsae as px
from proxsae import testing as pt
from proxsae.pytorch.certified_topk import certified_top_k
from proxsae.pytorch.iteration import Point
from proxsae.steps import Rule

d, P = 16, 40
PENALTIES = [px.L1(0.3), px.L1(0.3, nonneg=True), px.L0(0.1), px.L0(0.1, nonneg=True), px.KSparse(4), px.MCP(0.3)]
PENALTIES += [px.KSparse(4, nonneg=True), px.BatchKSparse(4), px.GroupL2(0.3, 4)]
ENCODINGS = {
    "one step": {},
    "Lipschitz": {"steps": 3},
    "Backtracking": {"steps": 3, "step": px.Backtracking()},
    "ExactStep": {"steps": 3, "step": px.ExactStep()},
    "Refit": {"steps": 3, "step": px.Refit()},
    "LearnedSteps": {"steps": 3, "step": px.LearnedSteps()},
    "encoder": {"steps": 3, "analysis": "encoder"},
    "b_enc in every step": {"steps": 3, "b_enc": "every"},
    "LISTA": {"steps": 3, "step": px.LISTA()},
    "LISTACP": {"steps": 3, "step": px.LISTACP()},
    "TiLISTA": {"steps": 3, "step": px.TiLISTA()},
    "Accumulated": {"steps": 3, "step": px.Accumulated()},
    "MatchingPursuit": {"steps": 3, "step": px.MatchingPursuit()},
    "OMP": {"steps": 3, "step": px.OMP()},
    "solved": {"steps": math.inf},
}
CURVED = [R for R in PENALTIES if not R.affine]
RULES = [px.Lipschitz(), px.FixedStep(0.1), px.Backtracking(), px.ExactStep(), px.Refit()]
ROWWISE = [R for R in PENALTIES if R.rowwise]


def of_walk(sae, x):
    for point in sae.walk(x):
        yield from (point.z, point.residual(), point.objective(sae.penalty), point.compared(sae.penalty).detach())


def of_codes(sae, x):
    codes = sae.encode_sparse(x)
    return codes.indices, codes.values, sae.decode(codes)


def of_reconstruct(sae, x):
    xhat, codes = sae.reconstruct(x)
    return xhat, codes.to_dense()


def of_normalized(sae, x):
    normal = sae.normalized(x)
    return normal.rows, normal.undo(normal.rows)


# What an SAE does with tensors: a road is named by the method, and gives tensors.
METHODS = {
    "forward": lambda sae, x: [sae(x)],
    "encode": lambda sae, x: [sae.encode(x)],
    "encode_sparse": of_codes,
    "decode": lambda sae, x: [sae.decode(x[:, :1] * torch.ones(P).to(x), like=x)],
    "reconstruct": of_reconstruct,
    "pre_activations": lambda sae, x: [sae.pre_activations(x)],
    "refine": lambda sae, x: [sae.refine(x, sae.penalty.prox(sae.pre_activations(x)))],
    "walk": of_walk,
    "normalized": of_normalized,
}
BY_ENCODING = ("forward", "encode_sparse", "refine", "walk")  # what the steps after the first change
SAES = [
    pytest.param(R, encoding, method, id=f"{R}-{name}-{method}")
    for R in PENALTIES
    for name, encoding in ENCODINGS.items()
    for method in (BY_ENCODING if encoding else METHODS)
    if not (name in ("ExactStep", "Refit") and R in CURVED)
    and not (name in ("MatchingPursuit", "OMP") and not isinstance(R, px.KSparse))
    and not (name == "solved" and (R in CURVED or not R.rowwise))
]
COPIED = {"rows"}  # in another dtype
NO_TENSORS = {"plan", "save", "export", "weights", "set_weight", "scale_lam", "rescale", "twin", "unrolled"}
NO_TENSORS |= {"frozen", "thresholded", "extra_repr", "parts", "trained"}


def test_no_method_of_an_sae_is_left_out():
    methods = {name for name, _ in inspect.getmembers(px.SAE, inspect.isfunction) if name[0] != "_"}
    theirs = {name for name in methods if getattr(nn.Module, name, None) is getattr(px.SAE, name)}
    assert methods >= NO_TENSORS
    assert methods - theirs - NO_TENSORS == set(METHODS) | COPIED
    of_points = {name for name, _ in inspect.getmembers(Point, inspect.isfunction) if name[0] != "_"}
    assert of_points == {"residual", "objective", "compared"}


def problem(dtype=torch.float32, device="cpu"):
    draw = torch.Generator().manual_seed(1)
    D = nn.functional.normalize(torch.randn(P, d, generator=draw), dim=1)
    return [a.to(device, dtype) for a in (torch.randn(6, d, generator=draw), D, 0.1 * torch.randn(d, generator=draw))]


def make(R, encoding, normalize="none", dtype=torch.float32, device="cpu"):
    sae = px.SAE(d, P, R, normalize=normalize, **encoding)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for a in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec):
            a += 0.1 * torch.randn(a.shape, generator=draw)
    return sae.to(device, dtype)


def with_gradients(run, leaves, kind=None, backward_inside=False):
    """The tensors that `run` gives and the gradients of a sum of their squares, under autocast for a `kind` of device.

    What uses the result is in float64, which autocast leaves as it is.
    """
    for a in leaves:
        a.grad = None
    with torch.autocast(kind or "cpu", torch.bfloat16, enabled=kind is not None):
        results = [a for a in run() if isinstance(a, Tensor)]
        loss = sum((a.double().square().sum() for a in results if a.requires_grad), torch.zeros(()))
        if backward_inside and loss.requires_grad:
            loss.backward()
        assert torch.is_autocast_enabled(kind or "cpu") == (kind is not None)
    if not backward_inside and loss.requires_grad:
        loss.backward()
    return [a.detach() for a in results] + [a.grad for a in leaves if a.grad is not None]


def check_road(run, leaves, device):
    kind = torch.device(device).type
    want = with_gradients(run, leaves)
    assert want
    for backward_inside in (False, True):
        got = with_gradients(run, leaves, kind, backward_inside)
        for a, b in zip(got, want, strict=True):
            pt.assert_same(a, b)


@pytest.mark.parametrize(("R", "encoding", "method"), SAES)
def test_an_sae_under_autocast_is_the_same(R, encoding, method, device):
    sae, x = make(R, encoding, device=device), problem(device=device)[0].requires_grad_()
    check_road(lambda: METHODS[method](sae, x), [x, *sae.parameters()], device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_in_every_dtype(method, dtype, device):
    for R in (px.L1(0.3), px.KSparse(4)):
        sae, x = make(R, {"steps": 2}, "layer_norm", dtype, device), problem(dtype, device)[0].requires_grad_()
        check_road(lambda: METHODS[method](sae, x), [x, *sae.parameters()], device)  # noqa: B023


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("R", ROWWISE, ids=repr)
def test_the_iteration_under_autocast_is_the_same(R, rule, device):
    x, D, b = (a.requires_grad_() for a in problem(device=device))
    if R in CURVED and isinstance(rule, (px.ExactStep, px.Refit)):
        return

    def run():
        trace = px.ista(x, D, R, 4, rule, bias=b, keep="all")
        return trace.codes, trace.objective, trace.products, *trace.steps

    check_road(run, [x, D, b], device)


@pytest.mark.parametrize("R", ROWWISE, ids=repr)
def test_what_judges_codes_under_autocast_is_the_same(R, device):
    x, D, b = (a.requires_grad_() for a in problem(device=device))
    z = px.ista(x, D, R, 2, bias=b).codes.detach().requires_grad_()
    step = torch.full((len(x),), 0.1, device=device, requires_grad=True)
    check_road(lambda: [R.prox(z, step), R.value(z), R.slope(z)], [z, step], device)
    check_road(lambda: [px.fixed_point_residual(x, D, z, R, 0.1, b)], [], device)
    if R.affine:

        def run():
            sol = px.solve(x, D, R, bias=b)
            return sol.codes, sol.gap, sol.steps, sol.converged

        check_road(run, [x, D, b], device)
    if isinstance(R, px.L1):
        check_road(lambda: [px.duality_gap(x, D, z, R, b), px.lambda_max(x, D)], [], device)


class Mixed(px.Penalty):
    """A penalty of a user's own, whose formulas multiply by a matrix."""

    affine, statement = True, "none"

    def _value(self, z):
        raise NotImplementedError

    def _prox(self, u, step):
        raise NotImplementedError

    @staticmethod
    def mixed(a):
        return a @ problem(a.dtype, a.device)[1] @ problem(a.dtype, a.device)[1].T

    def _torch_value(self, z):
        return self.mixed(z).sum(-1)

    def _torch_prox(self, u, step):
        return self.mixed(u)

    def _torch_slope(self, z):
        return self.mixed(z)


def test_the_formulas_of_a_user_under_autocast_are_the_same(device):
    R, z = Mixed(), torch.ones(3, P, device=device, requires_grad=True)
    for run in (R.prox, R.value, R.slope):
        check_road(lambda: [run(z)], [z], device)  # noqa: B023


def test_step_sizes_and_weights_that_are_learned_get_their_gradients(device):
    x, D, _ = problem(device=device)
    mu, lam = (torch.full((n,), 0.2, device=device, requires_grad=True) for n in (3, P))
    check_road(lambda: [px.ista(x, D, px.L1(lam), 3, mu).codes], [mu, lam], device)


@pytest.mark.parametrize("rule", [px.LISTA(), px.LISTACP(), px.ALISTA(), px.LearnedSteps(), px.OMP()], ids=repr)
def test_a_network_on_a_known_dictionary_is_the_same(rule, device):
    x, D, _ = problem(device=device)
    net = px.Unrolled(D, px.KSparse(4), 3, rule)
    check_road(lambda: [net(x)], [a for a in net.parameters() if a.requires_grad], device)


@pytest.mark.parametrize("R", PENALTIES, ids=repr)
def test_training_and_measuring_under_autocast_are_the_same(R, device):
    x = px.data.planted(n=64, d_in=d, d_sae=P, k=3).x

    def run():
        sae = px.SAE(d, P, R, steps=2).to(device)
        with torch.no_grad():
            sae.W_dec.copy_(problem()[1])
            sae.W_enc.copy_(problem()[1].T)
        means = px.train(sae, x, steps=3, batch_size=32)
        measures = px.evaluate(sae, torch.tensor(x, device=device, dtype=torch.float32))
        if isinstance(R, px.KSparse):
            px.learn_dictionary(sae.unrolled(3, px.OMP()), x, rounds=2)
        if R.rowwise:
            px.distill(sae, sae.unrolled(4), x, steps=2, batch_size=32, towards="codes" if R.affine else "error")
        return [torch.tensor([*means.values(), *measures.values()]), *(a.detach() for a in sae.state_dict().values())]

    check_road(run, [], device)


def test_constants_and_certified_codes_under_autocast_are_the_same(device):
    x, D, _ = problem(device=device)
    check_road(lambda: [torch.tensor([px.lipschitz(D), px.coherence(D)])], [], device)
    check_road(lambda: px.minimal_coherence(D), [], device)
    codes = px.KSparse(4).prox(x @ D.T)
    check_road(lambda: [px.leave_one_out(x, D, codes, 0.1)], [], device)
    check_road(lambda: certified_top_k(x, D, torch.zeros(P, device=device), 4)[:2], [], device)
    sae = make(px.KSparse(4), {}, device=device)

    def run():
        codes = sae.encode_sparse(x, exact="certified")
        return codes.indices, codes.values

    check_road(run, [], device)


TESTED = {"ista", "solve", "duality_gap", "fixed_point_residual", "lambda_max", "lipschitz", "coherence"}
TESTED |= {"SAE", "Unrolled", "train", "evaluate", "learn_dictionary", "distill"}
TESTED |= {"minimal_coherence", "leave_one_out"}
MAKERS = {"relu_sae", "jumprelu_sae", "topk_sae", "abstopk_sae", "load"}  # of SAEs


def test_no_public_function_is_left_out():
    values = (px.Error, px.Penalty, Rule, px.Trace, px.Solution, px.SparseCodes)
    functions = {name for name in px.__all__ if callable(getattr(px, name))}
    classes = {name for name in functions if inspect.isclass(getattr(px, name))}
    made = {name for name in classes if issubclass(getattr(px, name), values)}
    assert functions - made - MAKERS == TESTED


@pytest.mark.parametrize("method", METHODS)
def test_an_sae_takes_what_a_linear_under_autocast_hands_on(method, device):
    """As a float32 `Linear` does there.  Outside the block another dtype than that of the weights stays an error."""
    for R in (px.L1(0.3), px.KSparse(4)):
        sae, layer = make(R, {"steps": 2}, device=device), nn.Linear(d, d).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            h = layer(problem(device=device)[0])
            assert h.dtype == torch.bfloat16
            got = list(METHODS[method](sae, h))
            sum(a.double().sum() for a in got if a.requires_grad).backward()
        assert bool(layer.weight.grad.any())
        h = h.detach()
        for a, b in zip(got, METHODS[method](sae, h.float()), strict=True):
            pt.assert_same(a.detach(), b.detach())
        with pytest.raises(px.Error, match="bfloat16"):
            list(METHODS[method](sae, h))
        with torch.autocast(torch.device(device).type, torch.bfloat16), pytest.raises(px.Error, match="float16"):
            list(METHODS[method](sae, h.half()))


class Before(torch.autograd.Function):
    """What a caller does before an SAE."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        seen.append(torch.is_autocast_enabled(grad.device.type))
        return grad


seen = []


@pytest.mark.parametrize("R", [px.L1(0.3), px.KSparse(4)], ids=repr)
def test_the_backward_pass_of_others_stays_under_autocast(R, device):
    seen.clear()
    sae, x = make(R, {"steps": 2}, device=device), problem(device=device)[0].requires_grad_()
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        sae(Before.apply(x)).sum().backward()
        sae(Before.apply(x).bfloat16()).sum().backward()
    assert seen == [True, True]


def test_a_walk_leaves_autocast_at_each_step_and_not_between(device):
    """The block may open, and close, while a walk goes on; its consumer stays where it was."""
    kind = torch.device(device).type
    sae, x = make(px.L1(0.3), {"steps": 3}, device=device), problem(device=device)[0]
    want = [point.z for point in sae.walk(x)]
    walk = sae.walk(x)
    got = [next(walk)]
    with torch.autocast(kind, torch.bfloat16):
        got.append(next(walk))
        assert torch.is_autocast_enabled(kind)
    got += walk
    for point, z in zip([got[0], *got[1:]], want, strict=True):
        pt.assert_same(point.z, z)

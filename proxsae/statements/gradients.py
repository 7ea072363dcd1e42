"""Gradients (docs/theory/gradients.md): statements and their checks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from proxsae import penalties
from proxsae.conventions import is_torch
from proxsae.reference.iteration import solve
from proxsae.statements.plain import Array, gradient, hard, l1_objective, l1_optimum, squared_error
from proxsae.statements.registry import Kit, insist, page, plant, planted
from proxsae.testing.compare import assert_close, assert_same

statement = page("gradients")
H = 1e-6  # of finite differences


def twisted(family: str, prox: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """The constructor of a family with another prox of tensors, prox(R, u, step); the prox of arrays stays right."""

    def make(*args: Any, **given: Any) -> Any:
        R = getattr(penalties, family)(*args, **given)
        return planted(R, lambda u, step: prox(R, u, step) if is_torch(u) else R.prox(u, step))

    return make


def hard_edges(s: Array, mu: float, lam: Array, a: float) -> Array:
    """The derivative of the prox of SCAD at |u| = s, entry by entry."""
    if mu >= a + 1:
        return 1.0 * (s > lam * np.sqrt(mu * (a + 1)))
    if mu >= a - 1:
        return 1.0 * (s > mu * lam)
    middle = (a - 1) / (a - 1 - mu) * ((s > (1 + mu) * lam) & (s < a * lam))
    return middle + 1.0 * (s > mu * lam) * ((s < (1 + mu) * lam) | (s > a * lam))


def firm_edges(s: Array, mu: float, lam: Array, gamma: float) -> Array:
    """The derivative of the prox of MCP at |u| = s, entry by entry."""
    if mu >= gamma:
        return 1.0 * (s > lam * np.sqrt(gamma * mu))
    return 1.0 * (s > gamma * lam) + (s > mu * lam) * (s < gamma * lam) / (1 - mu / gamma)


def blocks(u: Array, t: float, size: int, alive: Array) -> Array:
    """The Jacobian of the group prox at threshold t; latents that are not `alive` are held at 0."""
    out = np.zeros((len(u), len(u)))
    for i in range(0, len(u), size):
        g = slice(i, i + size)
        v = u[g] * alive[g]
        n = np.linalg.norm(v)
        if n > t:
            out[g, g] = np.diag((1 - t / n) * alive[g]) + t / n * np.outer(v, v) / n**2
    return out


def pools(z: Array) -> Array:
    """The Jacobian of the sorted prox, read off its code z: pools are where magnitudes are equal, and not 0."""
    same = (np.abs(z[:, None]) == np.abs(z)) & (z != 0)
    return np.sign(z)[:, None] * np.sign(z) * same / np.maximum(same.sum(axis=0), 1)


Table = Callable[[Array, Array, Array], Array]


def on_diagonal(entries: Callable[[Array], Array]) -> Table:
    """The table of a separable penalty, whose derivative at |u| = s is entries(s)."""
    return lambda u, z, alive: np.diag(entries(np.abs(u)) * alive)


def support(u: Array, z: Array, alive: Array) -> Array:
    """The table of a projection: 1 on the support."""
    return np.diag(1.0 * (z.ravel() != 0))


def tabulated(kit: Kit, mu: float, nonneg: bool) -> list[tuple[Any, Table]]:
    """Penalties for rows of four latents, and their Jacobians as functions of u, the code z, and `alive`."""
    lam = np.array([0.5, 0.3, 0.8, 0.0])
    return [
        (kit.L1(lam, nonneg), on_diagonal(lambda s: 1.0 * (s > mu * lam))),
        (kit.L0(lam, nonneg), on_diagonal(lambda s: 1.0 * (s > np.sqrt(2 * mu * lam)))),
        (kit.ElasticNet(lam, 0.7, nonneg), on_diagonal(lambda s: (s > mu * lam) / (1 + 0.7 * mu))),
        (kit.MCP(lam, 1.2, nonneg), on_diagonal(lambda s: firm_edges(s, mu, lam, 1.2))),
        (kit.SCAD(lam, 2.5, nonneg), on_diagonal(lambda s: hard_edges(s, mu, lam, 2.5))),
        (kit.KSparse(2, nonneg), support),
        (kit.KSparse(5, nonneg), support),
        (kit.GroupL2(0.4, 2, nonneg), lambda u, z, alive: blocks(u, 0.4 * mu, 2, alive)),
        (kit.SortedL1(np.array([0.8, 0.4, 0.3, 0.0]), nonneg), lambda u, z, alive: pools(z)),
    ]


def differences(p: Callable[[Array], Array], u: Array) -> tuple[Array, bool]:
    """The Jacobian of p at one row u by central differences, and whether differences to both sides agree."""
    moves = H * np.eye(len(u))
    above, below, here = p(u + moves), p(u - moves), p(u)
    return ((above - below) / (2 * H)).T, bool(np.abs(above + below - 2 * here).max(initial=0) < 1e-3 * H)


def autograd(p: Callable[[Any], Any], u: Array) -> Array:
    """The Jacobian of p at one row u by torch: copy i of the row gives the gradient of entry i."""
    import torch

    copies = torch.tensor(np.tile(u, (len(u), 1)), requires_grad=True)
    return torch.autograd.grad(p(copies).diagonal().sum(), copies)[0].numpy()


@statement(
    "thm-prox-gradient",
    "Off a closed null set each prox is smooth in u with the tabulated Jacobian; at a kink, 0 where the code is 0.",
    source="own, from the formulas",
    code=("pytorch.prox.prox",),
    laws=("gradient",),
    on_paper="almost everywhere, and for vectors of any size",
)
def prox_gradient(kit: Kit, rng: np.random.Generator) -> None:
    """Autograd against differences of the NumPy prox and against the table; then the convention at the kinks."""
    import torch

    middle = np.array([[0.45, -0.25, 0.7, 0.3], [1.0, -0.6, 1.6, -0.9]])  # on the middle pieces of MCP and of SCAD
    checked = tried = 0
    for mu, nonneg in itertools.product((0.6, 1.4, 4.0), (False, True)):
        for R, table in tabulated(kit, mu, nonneg):
            for u in (*middle, 2.5 * rng.normal(size=4)):

                def p(v: Any, R: Any = R, mu: float = mu) -> Any:
                    return R.prox(v, mu)

                central, smooth = differences(p, u)
                tried, checked = tried + 1, checked + smooth
                if smooth:
                    got, alive = autograd(p, u), 1.0 * (u > 0) if nonneg else np.ones(4)
                    what = f"{type(R).__name__}, nonneg = {nonneg}, step {mu}: autograd against"
                    assert_close(got, central, 1e-7, f"{what} differences")
                    assert_close(got, table(u, p(u), alive), 1e-9, f"{what} the table")
        flat, batch = 2.5 * rng.normal(size=8), kit.BatchKSparse(1, nonneg)

        def over_batch(v: Any, batch: Any = batch, mu: float = mu) -> Any:
            if v.ndim == 1:
                return batch.prox(v.reshape(2, 4), mu).reshape(8)
            stack = [over_batch(row) for row in v]
            return np.stack(stack) if isinstance(v, np.ndarray) else torch.stack(stack)

        got = autograd(over_batch, flat)
        assert_close(got, differences(over_batch, flat)[0], 1e-7, f"{batch}: autograd against differences")
        assert_close(got, support(flat, over_batch(flat), flat), 1e-9, f"{batch}: autograd against the table")
    insist(checked >= 0.95 * tried, f"only {checked} of {tried} points were smooth, but almost all must be")
    kinks = np.array([0.5, -0.5, 0.0, 2.0])
    for R in (kit.L1(0.5), kit.L0(0.125), kit.L1(0.0), kit.L0(0.0), kit.KSparse(1), kit.KSparse(9), kit.KSparse(0)):
        want = np.diag(1.0 * (R.prox(kinks) != 0))
        assert_close(autograd(R.prox, kinks), want, 0.0, f"the convention of {R} at {kinks}")
    for start, divisor in itertools.product((0.0, 0.25), (1.0, 1.7)):  # at lam = 0 the derivative is one-sided
        lam = torch.full((), start, dtype=torch.float64, requires_grad=True)
        R = kit.L1(lam) if divisor == 1 else kit.ElasticNet(lam, divisor - 1)
        u = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
        slopes = [float(torch.autograd.grad(R.prox(u)[i] + 0 * lam, lam)[0]) for i in range(3)]
        assert_close(np.array(slopes), np.array([1.0, 0.0, -1.0]) / divisor, 1e-15, f"the derivative of {R} in lam")


plant(
    "l0: straight through in u", "thm-prox-gradient", L0=twisted("L0", lambda R, u, s: u + (R.prox(u, s) - u).detach())
)
plant("l1: the gradient is lost", "thm-prox-gradient", L1=twisted("L1", lambda R, u, s: R.prox(u, s).detach() + 0 * u))
plant(
    "k-sparse: the magnitude's sign is taken for the slope",
    "thm-prox-gradient",
    KSparse=twisted("KSparse", lambda R, u, s: R.prox(u, s).detach() + u.abs() - u.abs().detach()),
)
plant(
    "l1: no derivative in a lam of 0",
    "thm-prox-gradient",
    L1=twisted("L1", lambda R, u, s: R.prox(u, s).detach() + (u - u.detach()) * (R.prox(u, s).detach() != 0)),
)
plant(
    "group: the norm is held constant",
    "thm-prox-gradient",
    GroupL2=twisted("GroupL2", lambda R, u, s: R.prox(u, s).detach() / u.detach() * u),
)
plant(
    "mcp: slope 1 on the support",
    "thm-prox-gradient",
    MCP=twisted("MCP", lambda R, u, s: R.prox(u, s).detach() + (u - u.detach()) * (R.prox(u, s).detach() != 0)),
)


@statement(
    "prop-threshold-gradient",
    "The l0 code is constant in theta except at theta = |u|: its true derivative is 0, the kernel a modelling choice.",
    source="Rajamanoharan et al. 2024 for the kernel, equation 11; the limit of its mean is our own derivation",
    code=("pytorch.prox.hard_threshold", "pytorch.prox.count_above"),
    on_paper="almost everywhere, and a limit",
)
def threshold_gradient(kit: Kit, rng: np.random.Generator) -> None:
    """Differences off the jump are 0; values for many bandwidths agree bit for bit; the estimate and its mean."""
    import torch

    theta, mu = 0.75, 0.5
    u = np.append(3 * rng.normal(size=40), [theta, -theta, 0.0, 0.74, -0.76])
    target, v = rng.normal(size=u.size), torch.tensor(u)

    def lam_of(t: float) -> Any:
        return torch.tensor(t * t / (2 * mu), dtype=torch.float64, requires_grad=True)

    def loss(t: float) -> float:
        z = kit.L0(lam_of(t), bandwidth=0.1).prox(v, mu).detach().numpy()
        return float(0.5 * np.sum((z - target) ** 2))

    for t in np.append(rng.uniform(0.1, 3.0, 20), 0.7):
        near = np.abs(np.abs(u) - t).min() <= 1e-5
        insist(near or loss(t + H) == loss(t - H), f"the loss moves with theta = {t}, though no |u| lies there")
    for nonneg, bandwidth in itertools.product((False, True), (1e-3, 0.1, 0.5, 3.0)):
        lam = lam_of(theta)
        code = kit.L0(lam, nonneg, bandwidth).prox(v, mu)
        w = np.maximum(u, 0) if nonneg else u
        assert_same(code.detach().numpy(), hard(w, theta), f"the code at bandwidth {bandwidth}")
        code.backward(torch.tensor(target))
        near = np.abs(np.abs(w) - theta) < bandwidth / 2
        estimate = -(theta / bandwidth) * np.sum(np.sign(w) * near * target)  # in theta; d theta / d lam = mu / theta
        assert_close(float(lam.grad), float(estimate * mu / theta), 1e-9, f"the estimate at bandwidth {bandwidth}")
    # The mean over u uniform on [-2, 2], with loss 1/2 (z - 1.7)^2: its derivative in theta is (l(0) - l(+-theta)) / 4.
    fine = torch.tensor((np.arange(40000) + 0.5) / 10000 - 2)
    lam = lam_of(theta)
    (0.5 * (kit.L0(lam, bandwidth=0.02).prox(fine, mu) - 1.7) ** 2).mean().backward()
    true = sum(0.5 * (1.7**2 - (sign * theta - 1.7) ** 2) / 4 for sign in (1, -1))
    assert_close(float(lam.grad) * theta / mu, true, 2e-2, "the mean of the estimate")


def _soft_gate(R: Any, u: Any, step: Any) -> Any:
    theta = (2 * step * R.lam).sqrt()
    return u * ((u.abs() - theta) / R.bandwidth + 0.5).clamp(0, 1)


def _another_estimate(R: Any, u: Any, step: Any, width: float, signed: bool) -> Any:
    theta = (2 * step * R.lam).sqrt()
    w = u.relu() if R.nonneg else u
    near = ((w.abs() - theta).abs() < width * R.bandwidth / 2) * (w.sign() if signed else 1)
    return R.prox(u, step).detach() - (theta - theta.detach()) * (theta / R.bandwidth * near).detach()


plant("values depend on the bandwidth: a soft gate", "prop-threshold-gradient", L0=twisted("L0", _soft_gate))
plant(
    "the kernel is twice as wide",
    "prop-threshold-gradient",
    L0=twisted("L0", lambda R, u, s: _another_estimate(R, u, s, 2.0, True)),
)
plant(
    "the estimate forgets the sign of u",
    "prop-threshold-gradient",
    L0=twisted("L0", lambda R, u, s: _another_estimate(R, u, s, 1.0, False)),
)
plant(
    "no gradient at all", "prop-threshold-gradient", L0=twisted("L0", lambda R, u, s: R.prox(u, s).detach() + 0 * R.lam)
)


def margin(c: Array, D: Array, lam: Array, nonneg: bool) -> float:
    """How far the lasso optimum is from another support or sign: min of |z_j| on it and of lam_j - |d_j^T r| off it."""
    z = l1_optimum(c, D, lam, nonneg)
    slope = -gradient(c, D, z)
    return float(np.where(z != 0, np.abs(z), lam - (slope if nonneg else np.abs(slope))).min())


def smooth_problem(rng: np.random.Generator, nonneg: bool) -> tuple[Array, Array, Array, Array]:
    """(x, b, D, lam) of a lasso with some latents on and some off, all by a margin."""
    while True:
        x, b, D = 2 * rng.normal(size=3), rng.normal(size=3), rng.normal(size=(5, 3))
        lam = rng.uniform(0.2, 0.6, 5)
        on = np.count_nonzero(l1_optimum(x - b, D, lam, nonneg))
        if 0 < on < 5 and margin(x - b, D, lam, nonneg) > 0.05:
            return x, b, D, lam


def gradients(run: Callable[..., Any], weights: Array | float, *arrays: Array) -> list[Array]:
    """The gradients of sum(weights * run(*tensors)) in each array, 0 for one that is not used."""
    import torch

    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    out = (run(*tensors) * torch.tensor(weights)).sum()
    found = torch.autograd.grad(out, tensors, allow_unused=True)
    return [np.zeros_like(a) if g is None else g.numpy() for a, g in zip(arrays, found, strict=True)]


def slopes(
    run: Callable[..., Any], rng: np.random.Generator, arrays: list[Array], found: list[Array], what: str
) -> None:
    """Check gradients against differences of run(*arrays), a number, along a random direction in each array."""
    for i, name in enumerate(("x", "b", "D", "lam")[: len(arrays)]):
        move = rng.normal(size=arrays[i].shape)
        ends = [run(*[a + sign * H * move if j == i else a for j, a in enumerate(arrays)]) for sign in (1, -1)]
        assert_close(
            np.float64(np.sum(found[i] * move)), np.float64((ends[0] - ends[1]) / (2 * H)), 2e-5, f"{what} in {name}"
        )


@statement(
    "thm-implicit-gradient",
    "With D_S of full rank and strict conditions off S: dz_S = -(D_S^T D_S)^-1 d(D_S^T (Dz - c) + lam sign), 0 off S.",
    source="Bertrand et al. 2020 and 2022 for the lasso (numbers not verified); k-sparse and l0: own",
    code=("solve", "pytorch.refit.implicit"),
    on_paper="matrices of any size; implicit functions",
)
def implicit_gradient(kit: Kit, rng: np.random.Generator) -> None:
    """Gradients of `solve` in x, b, D and lam against differences of an exact solution, for L1, L0 and k-sparse."""
    for nonneg in (False, True):
        x, b, D, lam = smooth_problem(rng, nonneg)
        weights = rng.normal(size=5)

        def code(x: Any, b: Any, D: Any, lam: Any, nonneg: bool = nonneg) -> Any:
            return kit.solve(x, D, kit.L1(lam, nonneg), tol=1e-12, bias=b).codes

        def exact(x: Array, b: Array, D: Array, lam: Array, nonneg: bool = nonneg, weights: Array = weights) -> float:
            return float(weights @ l1_optimum(x - b, D, lam, nonneg))

        slopes(exact, rng, [x, b, D, lam], gradients(code, weights, x, b, D, lam), f"nonneg = {nonneg}: the gradient")
    for R in (kit.KSparse(2), kit.KSparse(2, nonneg=True), kit.L0(0.05)):
        while True:
            x, b, D = 2 * rng.normal(size=3), rng.normal(size=3), rng.normal(size=(5, 3))
            z = kit.solve(x, D, R, bias=b).codes
            S = np.flatnonzero(z)
            if 0 < len(S) < 3 and np.abs(z[S]).min() > 0.1:
                break
        weights = rng.normal(size=5)

        def fitted(x: Array, b: Array, D: Array, S: Array = S, weights: Array = weights) -> float:
            return float(weights[S] @ np.linalg.lstsq(D[S].T, x - b, rcond=None)[0])

        def sparse(x: Any, b: Any, D: Any, R: Any = R) -> Any:
            return kit.solve(x, D, R, bias=b).codes

        slopes(fitted, rng, [x, b, D], gradients(sparse, weights, x, b, D), f"{R}: the gradient")


def _last_step_only(x: Any, D: Any, R: Any, bias: Any, **given: Any) -> Any:
    from proxsae.reference.iteration import ista

    found = solve(x, D, R, bias=bias, **given)
    if not is_torch(x):
        return found
    return ista(x, D, R, 1, z0=found.codes.detach(), bias=bias)


def _constant_atoms(x: Any, D: Any, R: Any, bias: Any, **given: Any) -> Any:
    return solve(x, D.detach() if is_torch(D) else D, R, bias=bias, **given)


def _constant_lam(lam: Any, nonneg: bool = False) -> Any:
    return penalties.L1(lam.detach() if is_torch(lam) else lam, nonneg)


plant("only the last step is differentiated", "thm-implicit-gradient", solve=_last_step_only)
plant("the atoms are held constant", "thm-implicit-gradient", solve=_constant_atoms)
plant("lam is held constant", "thm-implicit-gradient", L1=_constant_lam)


@statement(
    "thm-envelope",
    "For L1 with one minimiser z*, r = x - b - Dz*: F* has the gradient r in x, -r in b, -r z*^T in D, |z*| in lam.",
    source="Danskin 1967; for dictionary learning Mairal et al. 2010 (numbers not verified)",
    code=("solve",),
    on_paper="matrices of any size; a limit",
)
def envelope(kit: Kit, rng: np.random.Generator) -> None:
    """The gradient of F at the code of `solve`, held constant or not, against differences of the exact minimum."""
    for nonneg in (False, True):
        x, b, D, lam = smooth_problem(rng, nonneg)

        def least(x: Array, b: Array, D: Array, lam: Array, nonneg: bool = nonneg) -> float:
            return float(l1_objective(x - b, D, l1_optimum(x - b, D, lam, nonneg), lam))

        def value(x: Any, b: Any, D: Any, lam: Any, nonneg: bool = nonneg, hold: bool = True) -> Any:
            z = kit.solve(x, D, kit.L1(lam, nonneg), tol=1e-12, bias=b).codes
            z = z.detach() if hold else z
            return 0.5 * ((x - b - z @ D) ** 2).sum() + (lam * z.abs()).sum()

        held = gradients(value, 1.0, x, b, D, lam)
        through = gradients(lambda *a, value=value: value(*a, hold=False), 1.0, x, b, D, lam)
        slopes(least, rng, [x, b, D, lam], held, f"nonneg = {nonneg}: the gradient of F*")
        for one, other in zip(held, through, strict=True):
            assert_close(other, one, 1e-5, "the gradient through the code")
        z = l1_optimum(x - b, D, lam, nonneg)
        r = x - b - z @ D
        for got, want in zip(held, (r, -r, -np.outer(z, r), np.abs(z)), strict=True):
            assert_close(got, want, 1e-5, "the gradient of F*")
    c, D, R = rng.normal(size=3), rng.normal(size=(5, 3)), kit.KSparse(2)
    S = np.flatnonzero(kit.solve(c, D, R).codes)

    def branch(c: Array, b: Array, D: Array) -> float:
        z = np.linalg.lstsq(D[S].T, c - b, rcond=None)[0]
        return float(0.5 * squared_error(c - b, D[S], z))

    def at_code(c: Any, b: Any, D: Any) -> Any:
        return 0.5 * ((c - b - kit.solve(c, D, R, bias=b).codes.detach() @ D) ** 2).sum()

    found = gradients(at_code, 1.0, c, 0 * c, D)
    slopes(branch, rng, [c, 0 * c, D], found, "k-sparse: the gradient along the branch")


def _early(x: Any, D: Any, R: Any, bias: Any = None, **given: Any) -> Any:
    from proxsae.reference.iteration import ista

    return ista(x, D, R, 2, bias=bias)


def _uncentred(x: Any, D: Any, R: Any, **given: Any) -> Any:
    return solve(x, D, R, **{**given, "bias": None})


plant("stops after two steps", "thm-envelope", solve=_early)
plant("the bias is forgotten", "thm-envelope", solve=_uncentred)
plant("twice the penalty", "thm-envelope", L1=lambda lam, nonneg=False: penalties.L1(2 * lam, nonneg))

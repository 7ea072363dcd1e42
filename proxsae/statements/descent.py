"""Descent and rates (docs/theory/descent.md): statements and their checks.

What is checked runs through the kit; what it is judged by is written in plain NumPy.  Dictionaries hold atoms as rows,
L = ||D||_2^2, F(z) = 1/2 ||x - b - D z||^2 + R(z), and c = x - b.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae import theory
from proxsae.certificates import lipschitz
from proxsae.reference import iteration as reference
from proxsae.statements import plain
from proxsae.statements.plain import Array, Case, extrapolations, gradient, squared_error, squared_norm
from proxsae.statements.registry import Kit, insist, page, plant
from proxsae.steps import FixedStep, Lipschitz, Trace
from proxsae.testing.compare import assert_close

statement = page("descent", on_paper="matrices of any size")


def _problem(rng: np.random.Generator, d: int = 6, P: int = 10, twins: bool = True) -> tuple[Array, Array, Array]:
    """Random x, b and D with a zero atom, and with two equal atoms if asked."""
    D = rng.standard_normal((P, d))
    D[2] = 0
    if twins:
        D[1] = D[0]
    return 2 * rng.standard_normal(d), rng.standard_normal(d), D


def _cases(kit: Kit, rng: np.random.Generator, P: int) -> list[Case]:
    """L1, L0 and KSparse, with and without nonneg; one lam per latent, some of them 0."""
    lam = rng.uniform(0.05, 1, P)
    lam[[0, 3]] = 0
    return list(plain.cases(kit, lam, P // 3))


def _sizes(moves: Array) -> Array:
    return np.sqrt((moves * moves).sum(axis=-1))


def _at_most(small: Any, large: Any, what: str, slack: float = 1e-12) -> None:
    """Raise AssertionError unless small <= large, up to rounding of the larger one."""
    small, large = np.broadcast_arrays(np.atleast_1d(np.asarray(small, float)), np.atleast_1d(np.asarray(large, float)))
    with np.errstate(invalid="ignore"):  # infinity on both sides
        bad = ~((small == large) | (small <= large + slack * (1 + np.maximum(np.abs(small), np.abs(large)))))
    at = bad.argmax()
    insist(~bad, f"{what}: {small.flat[at]} exceeds {large.flat[at]} (at {at})")


def variant(
    *,
    scale: float = 1.0,
    prox_step: float | None = None,
    coefficient: Callable[[int], float] | None = None,
    always: bool = False,
    accumulate: bool = False,
    forget: tuple[str, ...] = (),
) -> Callable[..., Trace]:
    """An `ista` with a mistake: for planted errors, here and in the tests of the rates study.

    scale        every step is this many times as long as asked
    prox_step    the step that is passed to the prox, whatever mu is
    coefficient  the momentum of step k = 1, 2, ... in the place of (tau_k - 1) / tau_(k+1)
    always       momentum also where none was asked for
    accumulate   the next step starts from the argument of the prox, not from its value
    forget       "bias", "start" (z0 = 0 instead), or "residual" (the gradient is always that at 0)
    """

    def ista(
        x: Any,
        D: Any,
        R: Any,
        steps: int,
        step: Any = Lipschitz(),  # noqa: B008  (a frozen value without state)
        momentum: str | None = None,
        z0: Any = None,
        bias: Any = None,
        keep: str = "last",
    ) -> Trace:
        if not isinstance(step, (Lipschitz, FixedStep)):
            return reference.ista(x, D, R, steps, step, momentum, z0, bias, keep)
        c = x if bias is None else x - bias
        aim = x if "bias" in forget else c
        z = np.zeros(len(D)) if z0 is None or "start" in forget else z0
        mu = scale * (step.mu if isinstance(step, FixedStep) else 1 / lipschitz(D))
        y, passed, codes = z, z, [z]
        for k, beta in zip(range(1, steps + 1), extrapolations(), strict=False):
            g = D @ ((0 if "residual" in forget else y @ D) - aim)
            passed = (passed if accumulate else y) - mu * g
            new = R.prox(passed, prox_step or mu)
            beta = beta if coefficient is None else coefficient(k)
            y = new + beta * (new - z) if momentum or always else new
            z = new
            codes.append(z)
        F = np.array([0.5 * squared_error(c, D, code) + R.value(code) for code in codes])
        return Trace(z, F, np.zeros(steps + 1), tuple(codes) if keep == "all" else None)

    return ista


@statement(
    "def-ista",
    "A step is z+ = prox_{mu R}(z - mu D^T(Dz + b - x)), any mu > 0, and minimises a quadratic model of F plus R; "
    "FISTA extrapolates by (tau_k - 1)/tau_{k+1}.",
    source="Daubechies, Defrise and De Mol 2004; Beck and Teboulle 2009", code=("ista",),
    on_paper="a definition",
)  # fmt: skip
def definition(kit: Kit, rng: np.random.Generator) -> None:
    """Codes and objectives of 4 steps against the formula in plain NumPy; the model against random competitors."""
    P = 10
    x, b, D = _problem(rng, P=P, twins=False)  # two equal atoms would tie, and rounding would break the tie
    c, L, z0 = x - b, squared_norm(D), rng.standard_normal(P)
    for case in _cases(kit, rng, P):
        for mu in (0.3 / L, 1 / L, 1.7 / L):
            trace = kit.ista(x, D, case.R, 4, step=kit.FixedStep(mu), z0=z0, bias=b, keep="all")
            z = z0
            for t in range(5):
                assert_close(trace.steps[t], z, 1e-9, f"{case.name}: z_{t}")
                F = np.array(case.objective(c, D, z))
                assert_close(np.asarray(trace.objective[t]), F, 1e-9, f"{case.name}: F(z_{t})")
                z = case.prox(z - mu * gradient(c, D, z), mu)
            _minimises_model(case, gradient(c, D, z0), mu, z0, np.asarray(trace.steps[1]), rng)
        if case.convex:
            trace = kit.ista(x, D, case.R, 5, momentum="fista", z0=z0, bias=b, keep="all")
            old, y = z0, z0
            for k, beta in enumerate(islice(extrapolations(), 5), start=1):
                new = case.prox(y - gradient(c, D, y) / L, 1 / L)
                assert_close(trace.steps[k], new, 1e-9, f"{case.name} with momentum: z_{k}")
                y, old = new + beta * (new - old), new


def _minimises_model(case: Case, g: Array, mu: float, z: Array, new: Array, rng: np.random.Generator) -> None:
    def model(w: Array) -> float:
        return float(g @ (w - z) + (w - z) @ (w - z) / (2 * mu) + case.value(w))

    for _ in range(10):
        w = new + rng.choice([1e-3, 1.0]) * rng.standard_normal(len(z)) * (rng.random(len(z)) < 0.3)
        _at_most(model(new), model(plain.clipped(w, case.nonneg)), f"{case.name}: the model at z+")


plant("the bias is forgotten", "def-ista", ista=variant(forget=("bias",)))
plant("the gradient is that at 0 in every step", "def-ista", ista=variant(forget=("residual",)))
plant("z0 is ignored", "def-ista", ista=variant(forget=("start",)))
plant("the prox is told step 1, whatever mu is", "def-ista", ista=variant(prox_step=1.0))
plant("momentum (k-1)/(k+2), another method", "def-ista", ista=variant(coefficient=lambda k: (k - 1) / (k + 2)))


@statement(
    "thm-ista-descent",
    "F(z) - F(Tz) >= (1/mu - L/2)||Tz - z||² for convex R, and >= ½(1/mu - L)||Tz - z||² for any R; both are attained.",
    source="Beck 2017, Lemma 10.4 (convex R); Attouch, Bolte and Svaiter 2013",
    code=("ista", "theory.ista_descent"),
)  # fmt: skip
def descent(kit: Kit, rng: np.random.Generator) -> None:
    """One step from random codes, then the two examples that attain the constants, and one that rises beyond 1/L."""
    P = 10
    x, b, D = _problem(rng, P=P)
    c, L = x - b, squared_norm(D)
    for case in _cases(kit, rng, P):
        for scale in (0.4, 0.99, 1.0, 1.5, 1.99):
            mu = scale / L
            if scale > 1 and not case.convex:
                continue
            start = case.prox(3 * rng.standard_normal(P), mu)  # in the domain of R
            new = np.asarray(kit.ista(x, D, case.R, 1, step=kit.FixedStep(mu), z0=start, bias=b).codes)
            move = float(_sizes(new - start))
            drop = case.objective(c, D, start) - case.objective(c, D, new)
            _at_most(kit.ista_descent(L, mu, move, convex=case.convex), drop, f"{case.name}, mu = {scale}/L: descent")

    D = rng.standard_normal((7, 5))
    L = squared_norm(D)
    top = np.linalg.svd(D)[0][:, 0]
    for scale in (0.5, 1.0, 1.7):  # R = 0, along the top singular vector: equality
        new = np.asarray(kit.ista(np.zeros(5), D, kit.L1(0.0), 1, step=kit.FixedStep(scale / L), z0=top).codes)
        drop = 0.5 * np.sum((top @ D) ** 2) - 0.5 * np.sum((new @ D) ** 2)
        bound = kit.ista_descent(L, scale / L, float(_sizes(new - top)), convex=True)
        assert_close(np.array(bound), np.array(drop), 1e-12, f"convex R, mu = {scale}/L: the bound that is attained")

    for mu in (0.5, 0.9, 1.5):  # one atom of norm 1, L0, u = mu x a little above its threshold: almost equality
        u = 2.0
        R = kit.L0(u**2 / (2 * mu) * (1 - 1e-9))
        trace = kit.ista(np.array([u / mu]), np.ones((1, 1)), R, 1, step=kit.FixedStep(mu))
        drop = float(trace.objective[0] - trace.objective[1])
        bound = kit.ista_descent(1.0, mu, u, convex=False)
        assert_close(np.array(bound), np.array(drop), 1e-8, f"L0, mu = {mu}/L: the bound that is attained")
        insist(mu <= 1 or drop < 0, f"L0 should rise for mu = {mu}/L, but F falls by {drop}")


plant("steps are 2.5 times too long", "thm-ista-descent", ista=variant(scale=2.5))
plant("the descent of convex R is claimed for any R", "thm-ista-descent",
      ista_descent=lambda L, step, move, convex=False: (1 / step - L / 2) * move**2)  # fmt: skip
plant("the descent of any R is all that is claimed", "thm-ista-descent",
      ista_descent=lambda L, step, move, convex=False: (1 / step - L) / 2 * move**2)  # fmt: skip


@statement(
    "prop-depth-monotone",
    "With D and b fixed, F(z_T) never rises with depth T (mu <= 1/L, or mu <= 2/L for convex R), and one step is never "
    "worse than z = 0.",
    source="own; corollary of thm-ista-descent", code=("ista",),
)  # fmt: skip
def monotone(kit: Kit, rng: np.random.Generator) -> None:
    """25 steps of every penalty, from 0 and from a random code, atoms of norms 1 to 0.05; F is evaluated here."""
    P = 24
    x, b, D = _problem(rng, d=5, P=P)
    D *= np.geomspace(1, 0.05, P)[:, None]
    D[1] = D[0]
    c, L = x - b, squared_norm(D)
    zero = 0.5 * float(c @ c)
    for case in _cases(kit, rng, P):
        for scale in (None, 1.95 if case.convex else 0.5):
            rule = kit.Lipschitz() if scale is None else kit.FixedStep(scale / L)
            for z0 in (None, case.prox(rng.standard_normal(P), 1.0)):
                trace = kit.ista(x, D, case.R, 25, step=rule, z0=z0, bias=b, keep="all")
                F = [case.objective(c, D, z) for z in np.array(trace.steps)]
                _at_most(F[1:], F[:-1], f"{case.name}: the objective of the next depth")
                if z0 is None:
                    _at_most(F[1:], zero, f"{case.name}: the objective of a depth >= 1 against that of z = 0")


def _unit_steps(x: Any, D: Any, R: Any, steps: int, step: Any = None, **rest: Any) -> Trace:
    return variant()(x, D, R, steps, step=FixedStep(1.0), **rest)


plant("steps of 1 whatever L is", "prop-depth-monotone", ista=_unit_steps)
plant("momentum that nobody asked for", "prop-depth-monotone", ista=variant(always=True))
plant("the pre-activations are passed on", "prop-depth-monotone", ista=variant(accumulate=True))


def _twins(rng: np.random.Generator, a: float) -> tuple[Array, Array]:
    """A dictionary (9, 6) whose first two atoms are equal, and the code a (e_1 - e_2) that cancels."""
    D = rng.standard_normal((9, 6))
    D[1] = D[0]
    z0 = np.zeros(9)
    z0[:2] = a, -a
    return D, z0


def _convex_rates(kit: Kit, rng: np.random.Generator, momentum: str | None, bound: Callable[..., float]) -> None:
    """F(z_t) - F(w) against the bound, for w near the minimiser and for random w, and for three step rules."""
    P, T = 10, 25
    x, b, D = _problem(rng, P=P)
    c, L = x - b, squared_norm(D)
    lam = rng.uniform(0, 1, P)

    elastic = Case(kit.ElasticNet(lam, 0.2), "L1", lam, P, False, alpha=0.2)
    for case in (elastic, *(case for case in _cases(kit, rng, P) if case.convex)):
        best = np.zeros(P)
        for _ in range(400):  # near the minimiser; the bound holds for every w, near or not
            best = case.prox(best - gradient(c, D, best) / L, 1 / L)
        others = case.prox(best + 0.3 * rng.standard_normal(P), 1e-9)
        for z0 in (np.zeros(P), 3 * rng.standard_normal(P)):  # with nonneg, the second has F(z_0) = infinity
            # Backtracking starts at (1 - 2^-12) / max ||d_j||^2, which may lie that much below 1/L.
            for rule, slope in ((kit.Lipschitz(), L * (1 + 1e-9)), (kit.FixedStep(0.6 / L), L / 0.6),
                                (kit.Backtracking(), L * (1 + 2.0**-11))):  # fmt: skip
                trace = kit.ista(x, D, case.R, T, step=rule, momentum=momentum, z0=z0, bias=b, keep="all")
                F = np.array([case.objective(c, D, z) for z in np.array(trace.steps)])
                for w in (best, others) if momentum is None else (best,):
                    bounds = [bound(slope, float(_sizes(z0 - w)), t) for t in range(1, T + 1)]
                    _at_most(F[1:] - case.objective(c, D, w), bounds, f"{case.name}, {rule}: F(z_t) - F(w)")


@statement(
    "thm-ista-rate",
    "For convex R and mu = 1/L: F(z_t) - F* <= L||z_0 - z*||²/(2t), and half of it on a lasso with two equal atoms.",
    source="Beck and Teboulle 2009, Theorem 3.1", code=("ista", "theory.ista_rate", "theory.ista_worst"),
)  # fmt: skip
def ista_rates(kit: Kit, rng: np.random.Generator) -> None:
    """Random lassos and elastic nets against any w; and the lasso of two equal atoms, whose F(z_t) is known."""
    _convex_rates(kit, rng, None, kit.ista_rate)
    D, z0 = _twins(rng, a=3.0)
    L = squared_norm(D)
    for t in (1, 2, 7, 30):
        R = kit.L1(L * 3.0 / (2 * t))
        F = kit.ista(np.zeros(6), D, R, t, z0=z0).objective[-1]
        want = L * 3.0**2 / (2 * t)
        assert_close(np.asarray(F), np.array(want), 1e-9, f"F(z_{t}) on two equal atoms")
        assert_close(np.array(kit.ista_worst(L, 3 * 2**0.5, t)), np.array(want), 1e-12, "theory.ista_worst")
        _at_most(F, kit.ista_rate(L, 3 * 2**0.5, t), "F(z_t) on two equal atoms")


plant(
    "the bound is a quarter of what it is", "thm-ista-rate", ista_rate=lambda L, distance, t: L * distance**2 / (8 * t)
)
plant("the distance is not squared", "thm-ista-rate", ista_rate=lambda L, distance, t: L * distance / (2 * t))
plant("steps of half the length", "thm-ista-rate", ista=variant(scale=0.5))
plant("steps of 2.2/L", "thm-ista-rate", ista=variant(scale=2.2))


@statement(
    "thm-fista-rate",
    "For convex R, mu = 1/L and FISTA: F(z_t) - F* <= 2L||z_0 - z*||²/(t+1)², asymptotically attained; "
    "on one quadratic no first-order method is below 3/64 of it.",
    source="Beck and Teboulle 2009, Theorem 4.4; Nesterov 2004, Theorem 2.1.7",
    code=("ista", "theory.fista_rate", "theory.fista_worst", "theory.fista_travel", "theory.first_order_floor"),
)  # fmt: skip
def fista_rates(kit: Kit, rng: np.random.Generator) -> None:
    """As for ISTA, with the F(z_t) of two equal atoms from the scalar recursion; and Nesterov's chain from below."""
    _convex_rates(kit, rng, "fista", kit.fista_rate)
    D, z0 = _twins(rng, a=3.0)
    L = squared_norm(D)
    for t in (1, 2, 7, 30, 100):
        c, y = 1.0, 1.0  # in units of a, how far t steps get at slope 1
        for beta in islice(extrapolations(), t):
            before, c = c, y - 1.0
            y = c + beta * (c - before)
        travel = 1 - c
        F = kit.ista(np.zeros(6), D, kit.L1(L * 3.0 / (2 * travel)), t, momentum="fista", z0=z0).objective[-1]
        want = L * 3.0**2 / (2 * travel)
        assert_close(np.asarray(F / want), np.array(1.0), 1e-8, f"F(z_{t}) on two equal atoms, over its value")
        assert_close(np.array(kit.fista_travel(t)), np.array(travel), 1e-9, "theory.fista_travel")
        assert_close(np.array(kit.fista_worst(L, 3 * 2**0.5, t) / want), np.array(1.0), 1e-9, "theory.fista_worst")
        _at_most(F / want, kit.fista_rate(L, 3 * 2**0.5, t) / want, "F(z_t) on two equal atoms")
    insist(want > 0.93 * kit.fista_rate(L, 3 * 2**0.5, t), f"F is {want} after {t} steps: the bound is not attained")

    for t in (1, 3, 8):
        n = 2 * t + 1
        D = 0.5 * (np.eye(n, n + 1) - np.eye(n, n + 1, k=1))
        x = 0.5 * np.eye(n + 1)[0]
        best = 1 - np.arange(1, n + 1) / (n + 1)
        floor = kit.first_order_floor(1.0, float(_sizes(best)), t)  # L = 1 is above ||D||^2
        for momentum in (None, "fista"):
            F = kit.ista(x, D, kit.L1(0.0), t, momentum=momentum).objective[-1]
            _at_most(floor, F - 0.5 * squared_error(x, D, best), f"chain of {n}: the floor")
        span = np.linalg.lstsq(D[:t].T, x, rcond=None)[0]  # the best code in the span of the gradients
        gap = 0.5 * squared_error(x, D[:t], span) - 0.5 * squared_error(x, D, best)
        _at_most(floor, gap, f"chain of {n}: the floor against the best code within reach")
        _at_most(gap, 1.6 * floor, f"chain of {n}: the best code within reach against the floor")


plant("no momentum", "thm-fista-rate", ista=variant(coefficient=lambda k: 0.0))
plant("momentum k/(k+1)", "thm-fista-rate", ista=variant(coefficient=lambda k: k / (k + 1)))
plant("momentum 0.9 at every step", "thm-fista-rate", ista=variant(coefficient=lambda k: 0.9))
plant("the bound is half of what it is", "thm-fista-rate",
      fista_rate=lambda L, distance, t: L * distance**2 / (t + 1) ** 2)  # fmt: skip
plant("the floor is twice what it is", "thm-fista-rate",
      first_order_floor=lambda L, distance, t: 3 * L * distance**2 / (16 * (t + 1) ** 2))  # fmt: skip


@statement(
    "thm-stationarity-rate",
    "For any R and mu < 1/L: min_{s<t}||z_{s+1} - z_s||² <= 2(F(z_0) - F(z_t))/((1/mu - L)t); for convex R "
    "and mu < 2/L with ½(1/mu - L) replaced by 1/mu - L/2.",
    source="Beck 2017, chapter 10; telescoped thm-ista-descent", code=("theory.stationarity_rate",),
)  # fmt: skip
def stationarity(kit: Kit, rng: np.random.Generator) -> None:
    """Random problems of every penalty; and L0 dominoes, where the shortest of t steps is close to the bound."""
    P, T = 14, 40
    x, b, D = _problem(rng, d=8, P=P)
    c, L = x - b, squared_norm(D)
    for case in _cases(kit, rng, P):
        for scale in (0.5, 0.95, 1.9):
            if scale > 1 and not case.convex:
                continue
            mu = scale / L
            z0 = case.prox(rng.standard_normal(P), mu)
            codes = np.array(kit.ista(x, D, case.R, T, step=kit.FixedStep(mu), z0=z0, bias=b, keep="all").steps)
            moves = (np.diff(codes, axis=0) ** 2).sum(axis=1)
            F = np.array([case.objective(c, D, z) for z in codes])
            for t in range(1, T + 1):
                bound = kit.stationarity_rate(L, mu, F[0] - F[t], t, case.convex)
                _at_most(moves[:t].min(), bound, f"{case.name}, mu = {scale}/L: the shortest of {t} steps", slack=1e-10)
            if case.convex:
                _at_most(moves[1:], moves[:-1], f"{case.name}: the next step against this one")
    n, coupling = 30, 1e-3
    D = np.linalg.cholesky(np.eye(n) - coupling * (np.eye(n, k=1) + np.eye(n, k=-1)))
    L = squared_norm(D)
    mu = 0.9 / L
    x = np.linalg.solve(D, np.eye(n)[0] * coupling * mu + 1)
    trace = kit.ista(x, D, kit.L0(mu / 2 * (1 + coupling * mu / 2) ** 2), n, step=kit.FixedStep(mu), keep="all")
    moves = (np.diff(np.array(trace.steps), axis=0) ** 2).sum(axis=1)
    for t in (1, 5, n):
        bound = kit.stationarity_rate(L, mu, float(trace.objective[0] - trace.objective[t]), t)
        _at_most(moves[:t].min(), bound, f"dominoes: the shortest of {t} steps")
        _at_most(0.85 * bound, moves[:t].min(), f"dominoes: 0.85 of the bound for {t} steps")
    for mu, convex in ((1 / L, False), (2 / L, True)):
        insist(kit.stationarity_rate(L, mu, 1.0, 1, convex) == np.inf, f"mu = {mu * L} / L must have no bound")


plant("the bound falls like 1/t²", "thm-stationarity-rate",
      stationarity_rate=lambda *args: theory.stationarity_rate(*args) / args[3])  # fmt: skip
plant("the constant of convex R for any R", "thm-stationarity-rate",
      stationarity_rate=lambda L, step, drop, t, convex=False: drop / ((1 / step - L / 2) * t))  # fmt: skip
plant("steps are 2.4 times too long", "thm-stationarity-rate", ista=variant(scale=2.4))


@statement(
    "thm-linear-phase",
    "While the sign pattern on S stays (L1), or the support S (L0, KSparse), e_{t+1} = (I - mu D_S^T D_S)e_t: "
    "the error shrinks by max|1 - mu sigma²| a step, which is attained.",
    source="Bredies and Lorenz 2008; Tao, Boley and Zhang 2016", code=("theory.linear_phase_rate",),
)  # fmt: skip
def linear_phase(kit: Kit, rng: np.random.Generator) -> None:
    """Problems solved in closed form on S; steps of 0.5/L to 1.9/L along the slowest direction, and a random one.

    S holds four long atoms, nearly orthogonal, two of them equal in the second round; the others are short.
    """
    S, powers = np.arange(4), np.arange(7.0)
    for twins in (False, True):
        D = 0.1 * rng.standard_normal((12, 8))
        D[S, S] += 1
        D[1] = D[0] if twins else D[1]
        lam = np.where(np.arange(12) < 4, 0.01, 1.0) * rng.uniform(0.5, 1, 12)
        L, gram = squared_norm(D), D[S] @ D[S].T
        eigenvalues, vectors = np.linalg.eigh(gram)
        for nonneg in (False, True):
            sign = np.ones(4) if nonneg else rng.choice([-1.0, 1.0], 4)
            best = np.zeros(12)
            best[S] = sign * rng.uniform(2, 3, 4)
            for R in (kit.L1(lam, nonneg=nonneg), kit.L0(lam, nonneg=nonneg), kit.KSparse(4, nonneg=nonneg)):
                x = best @ D
                if R.convex and twins:
                    continue  # with equal atoms the equation on S has a solution only for equal lam and signs
                if R.convex:
                    x = x + D[S].T @ np.linalg.solve(gram, lam[S] * sign)
                for mu in (0.5 / L, 1 / L, 1.9 / L):
                    what = f"{type(R).__name__}{' nonneg' if nonneg else ''}, mu = {mu * L:.1f}/L"
                    slowest = np.abs(1 - mu * eigenvalues).argmax()
                    rate = kit.linear_phase_rate(mu, float(eigenvalues[0]), float(eigenvalues[-1]))
                    for e in (vectors[:, slowest], rng.standard_normal(4)):
                        start = best.copy()
                        start[S] += 0.3 * e
                        codes = np.array(kit.ista(x, D, R, 6, step=kit.FixedStep(mu), z0=start, keep="all").steps)
                        _in_phase(codes, best, S, gram, mu, what)
                        errors = _sizes(codes - best)
                        _at_most(errors, errors[0] * rate**powers, f"{what}: the error", slack=1e-9)
                        if np.array_equal(e, vectors[:, slowest]):
                            assert_close(errors, errors[0] * rate**powers, 1e-9, f"{what}: the slowest error")


def _in_phase(codes: Array, best: Array, S: NDArray[np.intp], gram: Array, mu: float, what: str) -> None:
    """Check e_(t+1) = (I - mu G) e_t at every step; the starts are so close that signs must stay."""
    for z, new in pairwise(codes):
        insist(np.sign(new) == np.sign(best), f"{what}: the signs change, though the start is close: {new}")
        e = (z - best)[S]
        assert_close((new - best)[S], e - mu * (gram @ e), 1e-10, f"{what}: e_(t+1)")


plant("the rate of the smallest eigenvalue only", "thm-linear-phase",
      linear_phase_rate=lambda step, smallest, largest: 1 - step * smallest)  # fmt: skip
plant("the rate of the largest eigenvalue only", "thm-linear-phase",
      linear_phase_rate=lambda step, smallest, largest: abs(1 - step * largest))  # fmt: skip
plant("steps of half the length", "thm-linear-phase", ista=variant(scale=0.5))
plant("momentum that nobody asked for", "thm-linear-phase", ista=variant(always=True))


@statement(
    "prop-lista-is-ista",
    "LISTA with W1 = mu D^T, W2 = I - mu D^T D and the prox of mu R as activation (for L1 soft thresholding at mu lam) "
    "is proximal gradient, for every T and z_0.",
    source="Gregor and LeCun 2010", code=("ista",),
)  # fmt: skip
def lista(kit: Kit, rng: np.random.Generator) -> None:
    """6 layers of LISTA with its two matrices, for every penalty, from 0 and from a random code."""
    P = 10
    x, b, D = _problem(rng, P=P, twins=False)
    mu = 0.8 / squared_norm(D)
    W1, W2, b_e = mu * D, np.eye(P) - mu * D @ D.T, -mu * D @ b
    for case in _cases(kit, rng, P):
        for z0 in (None, rng.standard_normal(P)):
            trace = kit.ista(x, D, case.R, 6, step=kit.FixedStep(mu), z0=z0, bias=b, keep="all")
            z = np.zeros(P) if z0 is None else z0
            for t in range(1, 7):
                z = case.prox(W1 @ x + b_e + W2 @ z, mu)
                assert_close(trace.steps[t], z, 1e-9, f"{case.name}: layer {t}")


plant("the pre-activations are passed on", "prop-lista-is-ista", ista=variant(accumulate=True))
plant("the threshold is lam, not mu lam", "prop-lista-is-ista", ista=variant(prox_step=1.0))
plant("the gradient is that at 0 in every layer", "prop-lista-is-ista", ista=variant(forget=("residual",)))

"""Hard thresholding (docs/theory/hard.md): statements and their checks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from proxsae import certificates
from proxsae.penalties import L0, L1, KSparse
from proxsae.statements.plain import (
    Array,
    clipped,
    dictionaries,
    gradient,
    hard_optimum,
    restricted_lipschitz,
    squared_error,
    squared_norm,
    unit,
)
from proxsae.statements.registry import Kit, insist, page, plant
from proxsae.testing.compare import assert_close

statement = page("hard", on_paper="matrices of any size")


def problems(rng: np.random.Generator) -> Iterator[tuple[Array, Array, Array, bool]]:
    """Yield (c, D, lam, nonneg) with P = 6; one lam is 0."""
    for D in dictionaries(rng, 6, 4):
        for nonneg in (False, True):
            lam = rng.uniform(0.05, 0.6, 6)
            lam[2] = 0.0
            yield 2 * rng.normal(size=len(D.T)), D, lam, nonneg


def with_gradient(z: Array, g: Array, A: Array) -> tuple[Array, Array]:
    """(x, D) at which the gradient at z is g, exact in binary fractions: D = [I, A], x = D z - (g, 0)."""
    D = np.concatenate([np.eye(len(z)), A], axis=1)
    return z @ D - np.concatenate([g, np.zeros(A.shape[1])]), D


def _best_error(u: Array, k: int, nonneg: bool) -> float:
    """min ||z - u||^2 over ||z||_0 <= k (and z >= 0), by trying all supports."""
    kept = [u[list(S)] for S in itertools.combinations(range(len(u)), min(k, len(u)))]
    return float(u @ u - max(np.sum(clipped(v, nonneg) ** 2) for v in kept))


def _ksparse_conditions(z: Array, g: Array, mu: float, k: int, nonneg: bool) -> tuple[bool, bool]:
    """By the conditions of the theorem: whether z is in T_mu(z), and whether the tie rule names it."""
    S = np.flatnonzero(z)
    off = np.flatnonzero(z == 0)
    pull = np.maximum(-g[off], 0) if nonneg else abs(g[off])
    if g[S].any() or (len(S) < k and pull.any()):
        return False, False
    if len(S) < k or k == 0:
        return True, True
    floor = abs(z[S]).min()
    last_tied = S[abs(z[S]) == floor].max()
    return bool((mu * pull <= floor).all()), bool(
        ((mu * pull < floor) | ((mu * pull == floor) & (off > last_tied))).all()
    )


@statement(
    "thm-ksparse-fixed-points",
    "k-sparse: z in T_mu(z) iff, for ||z||_0 = k, grad_S = 0 and mu |grad_j| ≤ min_S |z| off S; for ||z||_0 < k, "
    "grad = 0 (nonneg: grad_S = 0 and grad_j ≥ 0 off S).",
    source="Beck and Eldar 2013 (L-stationarity); nonneg and tie rule own",
    code=("fixed_point_residual",),
)
def ksparse_fixed_points(kit: Kit, rng: np.random.Generator) -> None:
    """Codes with a planted gradient, in exact arithmetic with ties: conditions, all supports and residual agree."""
    P, seen = 4, []
    for i in range(240):
        k, nonneg, mu = [0, 1, 2, 3, 4, 6][i % 6], bool(rng.integers(2)), float(rng.choice([0.25, 0.5, 2.0]))
        z = np.zeros(P)
        S = rng.permutation(P)[: min(k, P) if i % 4 else rng.integers(0, min(k, P) + 1)]
        z[S] = rng.choice([0.5, 0.5, 1.0], len(S)) * (1 if nonneg else rng.choice([-1, 1], len(S)))
        g = rng.choice([0.0, 0.5, -0.5, 0.25, -0.25, 1.0], P) / mu
        g[S] *= rng.random() < 0.2
        g *= len(S) == k or rng.random() < 0.3
        x, D = with_gradient(z, g, rng.integers(-2, 3, (P, 2)).astype(float))
        u = z - mu * g
        member, named = _ksparse_conditions(z, g, mu, k, nonneg)
        closest = np.sum((z - u) ** 2) == _best_error(u, k, nonneg)
        insist(member == closest, f"conditions say {member}, all supports {closest}: z={z}, u={u}, k={k}")
        residual = float(kit.fixed_point_residual(x, D, z, kit.KSparse(k, nonneg), mu))
        insist((residual == 0) == named, f"tie rule says {named}, residual {residual}: z={z}, u={u}, k={k}")
        seen.append((member, named))
    insist(min(seen.count(case) for case in ((True, True), (True, False), (False, False))) > 2, "a case is missing")
    for c, D, _, nonneg in problems(rng):
        found = kit.solve(c, D, kit.KSparse(2, nonneg), tol=1e-10)
        z, g = found.codes, gradient(c, D, found.codes)
        pull = (np.maximum(-g, 0) if nonneg else abs(g))[z == 0]
        insist(found.converged and abs(g[z != 0]).max(initial=0) < 1e-6, "solve: gradient on the support")
        reach = abs(z[z != 0]).min() if np.count_nonzero(z) == 2 else 0.0
        insist(pull <= reach * squared_norm(D) + 1e-6, "solve: gradient off the support")


def _one_sided(k: int, nonneg: bool = False) -> Any:
    return KSparse(k, nonneg=True)


plant("k-sparse: one too many", "thm-ksparse-fixed-points", KSparse=lambda k, nonneg=False: KSparse(k + 1, nonneg))
plant("k-sparse: one-sided", "thm-ksparse-fixed-points", KSparse=_one_sided)
plant(
    "fixed point: gradient without the step",
    "thm-ksparse-fixed-points",
    fixed_point_residual=lambda x, D, z, R, step: certificates.fixed_point_residual(x, D, z, R, 1.0),
)


@statement(
    "thm-l0-fixed-points",
    "L0: z in T_mu(z) iff grad_S = 0, |z_j| ≥ sqrt(2 mu lam_j) on S (tie rule: >) "
    "and |grad_j| ≤ sqrt(2 lam_j / mu) off S (nonneg: -grad_j); with two weights, that of the side of z_j or -grad_j.",
    source="Blumensath and Davies 2008; per-latent, nonneg and tie rule own",
    code=("fixed_point_residual",),
)
def l0_fixed_points(kit: Kit, rng: np.random.Generator) -> None:
    """Codes with a planted gradient at, above and below both bounds, in exact arithmetic, against the objective."""
    P, seen = 4, []
    for _ in range(200):
        nonneg, mu = bool(rng.integers(2)), float(rng.choice([0.25, 0.5, 2.0]))
        sides = rng.choice([0.0, 0.5, 1.0, 2.0], (2, P))  # sqrt(2 mu lam), binary fractions, for z > 0 and for z < 0
        sides[1] = sides[1] if rng.integers(2) and not nonneg else sides[0]
        lam, lam_minus = sides**2 / (2 * mu)
        positive = np.ones(P, bool) if nonneg else rng.integers(2, size=P) > 0
        theta, price = (np.where(positive, *pair) for pair in (sides, (lam, lam_minus)))  # of the side that is met
        z = np.where(rng.random(P) < 0.5, rng.choice([1.0, 1.0, 1.0, 1.5, 0.5], P) * np.where(theta > 0, theta, 1), 0.0)
        z *= np.where(positive, 1, -1)
        g = (
            np.where(z == 0, rng.choice([0, 1, -1, 1, -1, 0.5, 1.5, -1.5], P) * np.where(theta > 0, theta, 0.25), 0)
            / mu
        )
        g = abs(g) * np.where(positive, -1, 1) if (lam != lam_minus).any() else g
        g[theta == 0] *= rng.random() < 0.3
        g[z != 0] += (rng.random() < 0.1) * 0.5
        x, D = with_gradient(z, g, rng.integers(-2, 3, (P, 2)).astype(float))
        S = z != 0
        pull = np.maximum(-g, 0) if nonneg else abs(g)
        common = not g[S].any() and (mu * pull <= theta)[~S].all()
        member, named = common and (abs(z) >= theta)[S].all(), common and (abs(z) > theta)[S].all()
        u = z - mu * g
        rivals = [mu * price * (v != 0) + 0.5 * (v - u) ** 2 for v in (z, 0 * u, clipped(u, nonneg))]
        closest = rivals[0].sum() == np.min(rivals, axis=0).sum()
        insist(member == closest, f"conditions say {member}, the objective {closest}: z={z}, u={u}, theta={theta}")
        R = kit.L0(lam, nonneg) if (lam == lam_minus).all() else kit.L0(lam, lam_minus=lam_minus)
        residual = float(kit.fixed_point_residual(x, D, z, R, mu))
        insist((residual == 0) == named, f"tie rule says {named}, residual {residual}: z={z}, u={u}, theta={theta}")
        seen.append((bool(member), bool(named)))
    insist(min(seen.count(case) for case in ((True, True), (True, False), (False, False))) > 2, "a case is missing")


def _priced(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The constructor of L0 with another price for both sides."""
    return lambda lam, nonneg=False, **more: L0(change(lam), nonneg, **{name: change(w) for name, w in more.items()})


plant("l0: threshold lam", "thm-l0-fixed-points", L0=_priced(lambda lam: lam**2 / 2))
plant("l0: threshold sqrt(mu lam)", "thm-l0-fixed-points", L0=_priced(lambda lam: lam / 2))
plant("l0: one weight for both sides", "thm-l0-fixed-points", L0=lambda lam, nonneg=False, **_: L0(lam, nonneg))
plant(
    "fixed point: threshold without the step",
    "thm-l0-fixed-points",
    fixed_point_residual=lambda x, D, z, R, step: np.linalg.norm(z - R.prox(z - step * gradient(x, D, z), 1.0)),
)


@statement(
    "thm-optimal-is-stationary",
    "For any R, a global minimiser z of F is in T_mu(z) for every mu ≤ 1/L, and its only member for mu < 1/L.",
    source="Beck and Eldar 2013 (k-sparse, mu < 1/L); the proof for any R is folklore",
    code=("fixed_point_residual",),
)
def optimal_is_stationary(kit: Kit, rng: np.random.Generator) -> None:
    """Brute-force minimisers for L0 and k-sparse codes do not move; at mu = 1/L exactly a tie may move one."""
    for c, D, lam, nonneg in problems(rng):
        L = squared_norm(D)
        for R, z in (
            (kit.L0(lam, nonneg), hard_optimum(c, D, lam, 6, nonneg)),
            (kit.KSparse(2, nonneg), hard_optimum(c, D, 0 * lam, 2, nonneg)),
        ):
            for mu in (0.1 / L, 0.7 / L, 0.999 / L):
                residual = float(kit.fixed_point_residual(c, D, z, R, mu))
                insist(residual < 1e-9, f"a minimiser for {R} moves by {residual} at mu = {mu * L} / L")
    # d = P = L = 1, x = 1, lam = 1/2: z = 0 and z = 1 are both optimal, and at mu = 1 both are in T_mu(1) = {0, 1}
    x, D, R = np.ones(1), np.ones((1, 1)), kit.L0(0.5)
    for code, mu, want in ((1.0, 0.99, 0.0), (0.0, 0.99, 0.0), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0)):
        got = kit.fixed_point_residual(x, D, np.array([code]), R, mu)
        assert_close(got, np.asarray(want), 1e-12, f"residual of z = {code} at mu = {mu}")


plant("l0: threshold 2 sqrt(mu lam)", "thm-optimal-is-stationary", L0=lambda lam, nonneg=False: L0(2 * lam, nonneg))
plant("l0: soft thresholding", "thm-optimal-is-stationary", L0=lambda lam, nonneg=False: L1(lam, nonneg))
plant("k-sparse: one too few", "thm-optimal-is-stationary", KSparse=lambda k, nonneg=False: KSparse(k - 1, nonneg))


@statement(
    "thm-support-changes",
    "L0, mu < 1/L, from z_0 = 0: F drops by (1 - mu L) lam_j or more for each j that enters or leaves the support, "
    "lam_j that of its side; so at most F(0) / (lam (1 - mu L)) changes.",
    source="own; finiteness of changes in Blumensath and Davies 2008",
    code=("ista",),
)
def support_changes(kit: Kit, rng: np.random.Generator) -> None:
    """Step by step over runs of IHT, their total against F(z_0) / (lam (1 - mu L)), and a case of equality."""
    for c, D, lam, nonneg in problems(rng):
        L = squared_norm(D)
        for share in (0.3, 0.9):
            for z0 in (np.zeros(6), rng.normal(size=6)):
                z0 = abs(z0) if nonneg else z0
                minus = lam if nonneg else rng.permutation(lam)
                R = kit.L0(lam, nonneg) if nonneg else kit.L0(lam, lam_minus=minus)
                trace = kit.ista(c, D, R, 40, kit.FixedStep(share / L), z0=z0, keep="all")
                z = np.array(trace.steps)
                F = 0.5 * squared_error(c, D, z) + (lam * (z > 0) + minus * (z < 0)).sum(-1)
                paid = np.where(z[1:] + z[:-1] > 0, lam, minus)  # for the one of two that is not 0
                cost = (paid * ((z[1:] != 0) != (z[:-1] != 0))).sum(-1)
                free = int(z0.any())  # a random start may have entries below the threshold: leave its step out
                drop = (F[:-1] - F[1:])[free:]
                insist(drop >= (1 - share) * cost[free:] - 1e-9, "F falls by less than the changes of support cost")
    for c, D, _, _ in problems(rng):
        step = kit.FixedStep(0.5 / squared_norm(D))
        S = np.array(kit.ista(c, D, kit.L0(0.05), 60, step, keep="all").steps) != 0
        changes = (S[1:] != S[:-1]).any(axis=1)
        insist(changes.sum() <= 0.5 * c @ c / (0.05 * 0.5), f"{changes.sum()} changes of support")
    # one atom, L = 1, just above the threshold: the drop is (1 - mu) lam, the bound, to first order
    mu, price, eps = 0.5, 0.25, 1e-9
    x = np.array([np.sqrt(2 * price / mu) * (1 + eps)])
    F = kit.ista(x, np.ones((1, 1)), kit.L0(price), 1, kit.FixedStep(mu)).objective
    insist(0 <= F[0] - F[1] - (1 - mu) * price <= 10 * eps, f"the drop is {F[0] - F[1]}, not {(1 - mu) * price}")

    # such a start: F drops by 3/8 as its small entry leaves, less than (1 - mu L) lam = 1/2
    F = kit.ista(np.array([1.5]), np.ones((1, 1)), kit.L0(1.0), 1, kit.FixedStep(0.5), z0=np.array([0.5])).objective
    assert_close(F, np.array([1.5, 1.125]), 1e-12, "the free first step")


plant("l0: threshold sqrt(mu lam)", "thm-support-changes", L0=_priced(lambda lam: lam / 2))
plant("l0: threshold of 10 lam", "thm-support-changes", L0=_priced(lambda lam: 10 * lam))
plant("l0: one weight for both sides", "thm-support-changes", L0=lambda lam, nonneg=False, **_: L0(lam, nonneg))
plant("ista: l1 in place of l0", "thm-support-changes", L0=lambda lam, nonneg=False, **_: L1(lam / 10, nonneg))


@statement(
    "thm-restricted-descent",
    "k-sparse z, mu > 0: F(z) - F(z+) ≥ (1/mu - L_2k)/2 ||z+ - z||², with L_2k the largest ||D_S||² over |S| ≤ 2k.",
    source="Blumensath and Davies 2009/2010 and Garg and Khandekar 2009 (restricted isometry form); folklore",
    code=("KSparse",),
)
def restricted_descent(kit: Kit, rng: np.random.Generator) -> None:
    """One step from random k-sparse codes and whole runs, at steps up to 1/L_2k; a minimiser stays there too."""
    longer = 0
    chosen = ((1, False), (2, False), (2, True), (6, False))
    for k, nonneg in chosen:
        D = unit(rng.normal(size=(10, 6)))
        D[8], D[9] = D[0], 0.0
        L, L_2k, R = squared_norm(D), restricted_lipschitz(D, 2 * k), kit.KSparse(k, nonneg)
        x = rng.normal(size=(20, 6))
        z = np.where(np.argsort(rng.random((20, 10))) < k, 2 * rng.normal(size=(20, 10)), 0)
        z = abs(z) if nonneg else z
        z[0] = 0.0
        for share in (0.5, 1.0, 1.7):
            mu = share / L_2k
            new = R.prox(z - mu * gradient(x, D, z), mu)
            insist((np.count_nonzero(new, axis=1) <= k) & ((new >= 0).all(axis=1) | (not nonneg)), "z+ is outside")
            drop = 0.5 * squared_error(x, D, z) - 0.5 * squared_error(x, D, new)
            need = 0.5 * (1 / mu - L_2k) * ((new - z) ** 2).sum(-1)
            insist(drop >= need - 1e-9, f"F falls short of the bound by {(need - drop).max()} at mu = {share} / L_2k")
        mu = min(1 / L_2k, 1.99 / L)
        longer += mu > 1.01 / L
        F = kit.ista(x, D, R, 15, kit.FixedStep(mu), z0=z).objective
        insist(np.diff(F, axis=0) <= 1e-9, f"F rises at mu = {mu * L} / L, below 1 / L_2k")
        if k <= 2:
            best = hard_optimum(x[1], D, np.zeros(10), k, nonneg)
            insist(kit.fixed_point_residual(x[1], D, best, R, 0.999 / L_2k) < 1e-9, "a minimiser moves")
    insist(longer >= 2, "no step was longer than 1/L")


plant("k-sparse: one-sided", "thm-restricted-descent", KSparse=_one_sided)
plant("k-sparse: one too many", "thm-restricted-descent", KSparse=lambda k, nonneg=False: KSparse(k + 1, nonneg))
plant("k-sparse: one too few", "thm-restricted-descent", KSparse=lambda k, nonneg=False: KSparse(k - 1, nonneg))


@statement(
    "lem-hard-factor-two",
    "||H_k(b) - x|| ≤ 2 ||b - x|| for every k-sparse x; the best factor is the golden ratio (1 + sqrt 5)/2.",
    source="Foucart and Rauhut 2013 (factor 2); Shen and Li 2018 (golden ratio); the short proof is our own",
    code=("KSparse",),
    on_paper="vectors of any size",
)
def hard_factor(kit: Kit, rng: np.random.Generator) -> None:
    """Random and nearly extremal pairs, with ties and k >= P, and the pair that attains the golden ratio."""
    golden, worst = (1 + np.sqrt(5)) / 2, 0.0
    for P, k in ((2, 1), (6, 2), (6, 5), (5, 5), (4, 9), (3, 0)):
        for nonneg in (False, True):
            x = rng.normal(size=(300, P)) * (np.argsort(rng.random((300, P))) < k)
            x = abs(x) if nonneg else x
            noise = rng.normal(size=x.shape)
            b = rng.choice([0.0, 1.0, 1 / golden], size=(300, 1)) * x + noise * rng.choice([0.1, 1.0], size=(300, 1))
            b[:100] = np.round(b[:100])  # ties
            b[100:200] = np.where(
                x[100:200] != 0, x[100:200] / golden, abs(x[100:200]).max(axis=1, keepdims=True) / golden
            )
            far = np.linalg.norm(kit.KSparse(k, nonneg).prox(b) - x, axis=1)
            near = np.linalg.norm(b - x, axis=1)
            insist(far <= 2 * near + 1e-12, "farther than twice the distance")
            insist(far <= golden * near + 1e-12, "farther than the golden ratio times the distance")
            worst = max(worst, float((far[near > 0] / near[near > 0]).max()))
    far = np.linalg.norm(kit.KSparse(1).prox(np.array([1.0, 1.0])) - np.array([0.0, golden]))
    assert_close(far / np.hypot(1, golden - 1), np.float64(golden), 1e-12, "the extremal ratio")
    insist(worst > 1.5, f"no hard case was met: the largest ratio was {worst}")


plant("k-sparse: one-sided", "lem-hard-factor-two", KSparse=_one_sided)
plant("k-sparse: one too few", "lem-hard-factor-two", KSparse=lambda k, nonneg=False: KSparse(max(0, k - 1), nonneg))

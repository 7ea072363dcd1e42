"""Step rules (docs/theory/steps.md): statements and their checks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from proxsae.penalties import L1, KSparse
from proxsae.reference.iteration import ista
from proxsae.statements.plain import (
    SHORT,
    Array,
    Case,
    cases,
    cosines,
    degenerate,
    gradient,
    l1_optimum,
    longest,
    restricted_lipschitz,
    squared_error,
    squared_norm,
    unit,
)
from proxsae.statements.registry import Kit, insist, page, plant
from proxsae.steps import FixedStep, Lipschitz, Trace

statement = page("steps", on_paper="matrices of any size")


def problems(rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Yield (c, D): atoms of norm 1 with L > 1; degenerate ones of unequal norms; orthonormal ones."""
    spread = rng.normal(size=(8, 4)) * rng.uniform(0.2, 2, (8, 1))
    for D in (unit(rng.normal(size=(12, 5))), degenerate(spread), np.linalg.qr(rng.normal(size=(5, 5)))[0]):
        yield 2 * rng.normal(size=len(D.T)), D


def start(rng: np.random.Generator, D: Array, R: Any, size: float = 1.0) -> Array:
    """A code in the domain of R, 0 on zero atoms."""
    z = size * rng.normal(size=len(D)) * (rng.random(len(D)) < 0.5) * D.any(axis=1)
    return R.prox(z, 1e-9)


def shrink(case: Case, c: Array, D: Array, z: Array, mu: float, L: float) -> tuple[Array, float, int]:
    """The rule as the page states it: the code, the step and the number of trials that it took."""
    g, trials = gradient(c, D, z), 0
    while mu > 1 / L:
        dz = case.prox(z - mu * g, mu) - z
        trials += 1
        if mu * np.sum((dz @ D) ** 2) <= np.sum(dz**2):
            break
        mu = max(mu / 2, 1 / L)
    return case.prox(z - mu * g, mu), mu, trials


@statement(
    "lem-backtracking",
    "For any R, mu ||D dz||² ≤ ||dz||² implies F(z+) ≤ F(z). Halved from (1 - 2^-12) / max ||d_j||² while it fails, "
    "mu stays ≥ (1 - 2^-12)/L.",
    source="Beck and Teboulle 2009, section 3 (convex R); any R, floor and counts own",
    code=("Backtracking", "reference.iteration.shrink_until_safe"),
)
def backtracking(kit: Kit, rng: np.random.Generator) -> None:
    """The decrease at steps of every length, then runs against the rule in plain NumPy: codes, steps, products."""
    T, k = 8, 2
    for c, D in problems(rng):
        P, L, top = len(D), squared_norm(D) * (1 + 1e-13), longest(D)
        lam = rng.uniform(0, 0.5, P) * (np.arange(P) != 1)
        for case in cases(kit, lam, k):
            for z in (np.zeros(P), start(rng, D, case.R)):
                for mu in (0.2 / L, 1 / L, 3 / L, 20 / L):
                    new = case.R.prox(z - mu * gradient(c, D, z), mu)
                    dz = new - z
                    slack = (np.sum(dz**2) - mu * np.sum((dz @ D) ** 2)) / (2 * mu)
                    rise = case.objective(c, D, new) - case.objective(c, D, z) + slack
                    insist(rise <= 1e-9 * (1 + abs(slack)), f"F falls by {rise} too little at mu = {mu * L} / L")
                trace = kit.ista(c, D, case.R, T, kit.Backtracking(), z0=z, keep="all")
                mu, spent, owed = SHORT / top, 0, int(z.any())
                halvings = max(0, math.ceil(math.log2(L * mu)))
                insist(halvings <= math.ceil(math.log2(P)), "more halvings than log2 P")
                before = z
                for t in range(T + 1):
                    insist(abs(trace.steps[t] - before).max() <= 1e-9 * (1 + abs(before).max()), f"z_{t} differs")
                    insist(trace.products[t] == spent, f"products[{t}] is {trace.products[t]}, but must be {spent}")
                    after, mu, trials = shrink(case, c, D, before, mu, L)
                    spent, owed = spent + 1 + owed + trials, int(mu <= 1 / L)
                    rise = case.objective(c, D, after) - case.objective(c, D, before)
                    insist(rise <= 1e-9, f"F rises by {rise} in step {t}")
                    before = after
                insist(mu >= SHORT / L * (1 - 1e-12), f"the step fell to {mu * L} / L")
                insist(trace.products[T] <= 2 * T + bool(z.any()) + halvings, "more products than 2 T + 1 + halvings")
                if isinstance(case.R, KSparse):
                    insist(mu >= min(SHORT / top, 0.5 / restricted_lipschitz(D, 2 * k)), "fell below 1 / (2 L_2k)")


def _first_trial(x: Array, D: Array, R: Any, steps: int, step: Any, **other: Any) -> Trace:
    return ista(x, D, R, steps, FixedStep(min(1 / longest(D), 1.99 / squared_norm(D))), **other)


def _trials_not_counted(x: Array, D: Array, R: Any, steps: int, step: Any, **other: Any) -> Trace:
    trace = ista(x, D, R, steps, step, **other)
    return replace(trace, products=2.0 * np.arange(steps + 1))


plant("backtracking: takes the first trial", "lem-backtracking", ista=_first_trial)
plant("backtracking: trials not counted", "lem-backtracking", ista=_trials_not_counted)
plant("l1: twice the threshold", "lem-backtracking", L1=lambda lam, nonneg=False: L1(2 * lam, nonneg))
plant("backtracking: always 1/L", "lem-backtracking", Backtracking=Lipschitz)


@statement(
    "thm-exact-step",
    "L1, L0, k-sparse: while the face holds (for L1 its signs, else its support), the exact step minimises F along "
    "the face gradient; F never rises, whether it holds or not; k-sparse: it is NIHT.",
    source="Blumensath and Davies 2010 (k-sparse); for L1 and L0 own",
    code=("ExactStep", "reference.iteration.exact_step"),
)
def exact_step(kit: Kit, rng: np.random.Generator) -> None:
    """Runs from 0 and from random codes: descent; a line search on a grid of the face; NIHT in plain NumPy."""
    T, k, on_face, niht = 8, 3, 0, 0
    for c, D in problems(rng):
        P, L, largest = len(D), squared_norm(D), SHORT / longest(D)
        lam = rng.uniform(0, 0.3, P) * (np.arange(P) != 1)
        for case in cases(kit, lam, k):
            for first in (np.zeros(P), start(rng, D, case.R), start(rng, D, case.R, 0.1)):
                codes = kit.ista(c, D, case.R, T, kit.ExactStep(), z0=first, keep="all").steps
                for z, new in itertools.pairwise(codes):
                    F, drop = case.objective(c, D, z), case.objective(c, D, z) - case.objective(c, D, new)
                    insist(drop >= -1e-9, f"F rises by {-drop}")
                    g = gradient(c, D, z)
                    face = z if z.any() else case.prox(-largest * g, largest)
                    h = np.where(face != 0, g + case.slope(face), 0)
                    curve = np.sum((h @ D) ** 2)
                    if np.sum(h**2) <= 1e-12 * (1 + F) or curve <= 1e-12:
                        continue
                    mu = np.sum(h**2) / curve
                    signs = case.family == "L1" or case.nonneg
                    if same_face(case.prox(z - mu * g, mu), face, signs):
                        on_face += 1
                        insist(abs(new - (z - mu * h)).max() <= 1e-9 * (1 + abs(z).max()), "not z - mu h")
                        insist(abs(h @ (gradient(c, D, new) + case.slope(new))) <= 1e-8 * (1 + F), "F has a slope left")
                        for s in (0.5, 0.9, 1.1, 1.5):
                            other = z - s * mu * h
                            if same_face(other, face, signs):
                                insist(case.objective(c, D, other) >= F - drop - 1e-9, f"{s} mu is a better step")
                    elif isinstance(case.R, KSparse):
                        want, _, _ = shrink(case, c, D, z, mu, L)  # a shorter step on the face is safe as well
                        niht += 1
                        insist(abs(new - want).max() <= 1e-9 * (1 + abs(z).max()), "not the step of NIHT")
    insist(on_face > 50 and niht > 3, f"too few cases: {on_face} on a face, {niht} off it")


def same_face(z: Array, face: Array, signs: bool) -> bool:
    """Whether z has the signs of `face`, or only its support."""
    return bool((np.sign(z) == np.sign(face)).all() if signs else ((z != 0) == (face != 0)).all())


def _never_shrunk(x: Array, D: Array, R: Any, steps: int, step: Any, z0: Array, keep: str) -> Trace:
    codes = [z0]
    for _ in range(steps):
        z = codes[-1]
        g = gradient(x, D, z)
        face = z if z.any() else R.prox(-g / longest(D))
        h = np.where(face != 0, g + R.slope(face), 0)
        mu = float(np.sum(h**2) / max(np.sum((h @ D) ** 2), 1e-30)) or 1.0
        codes.append(R.prox(z - mu * g, mu))
    return Trace(codes[-1], None, None, tuple(codes))


class _WithoutSlope(L1):
    def _slope(self, z: Any) -> Any:
        return 0 * z


plant("exact step: not shrunk where signs change", "thm-exact-step", ista=_never_shrunk)
plant("exact step: 1/L", "thm-exact-step", ExactStep=Lipschitz)
plant("exact step: slope of l1 forgotten", "thm-exact-step", L1=_WithoutSlope)


@statement(
    "thm-refit",
    "L1, L0, k-sparse: least squares on the support, for L1, L0 with two weights and nonneg up to a sign change, "
    "never raises F, and is exact where support and signs are those of an optimum.",
    source="Foucart 2011 (HTP); with signs held own",
    code=("Refit", "reference.refit.refit", "pytorch.refit.refit"),
)
def refit(kit: Kit, rng: np.random.Generator) -> None:
    """One Refit step against a backtracking step in plain NumPy: F, signs, normal equations; and from optima of L1."""
    held, solved = 0, 0
    close = np.array([[1.0, 0.0], [0.9, np.sqrt(0.19)]])  # least squares wants the codes (2, -1/2): the move is stopped
    for c, D in (*problems(rng), (np.array([2.0, -0.5]) @ close, close)):
        P, L, largest = len(D), squared_norm(D) * (1 + 1e-13), SHORT / longest(D)
        lam = rng.uniform(0, 0.3, P) * (np.arange(P) != 1)
        for case in cases(kit, lam, 3):
            for z in (np.zeros(P), start(rng, D, case.R), start(rng, D, case.R), start(rng, D, case.R, 0.1)):
                new = kit.ista(c, D, case.R, 1, kit.Refit(), z0=z).codes
                middle, _, _ = shrink(case, c, D, z, largest, L)
                S = middle != 0
                insist(not new[~S].any(), "a latent outside the support moved")
                rise = case.objective(c, D, new) - case.objective(c, D, middle)
                insist(rise <= 1e-9, f"the refit raises F by {rise}")
                h = gradient(c, D, new)[S] + case.slope(middle)[S]
                if case.family == "L1" or case.nonneg:
                    insist((np.sign(new) == np.sign(middle))[S & (new != 0)], "a sign changed")
                    blocked = S & (new == 0)
                    if blocked.any() and np.linalg.matrix_rank(D[S]) == S.sum():
                        held += 1
                        best = middle.copy()
                        best[S] -= np.linalg.solve(D[S] @ D[S].T, gradient(c, D, middle)[S] + case.slope(middle)[S])
                        cross = [middle[j] / (middle[j] - best[j]) for j in np.flatnonzero(best * middle < 0)]
                        want = middle + min(cross, default=1.0) * (best - middle)
                        insist(abs(new - want).max() <= 1e-8 * (1 + abs(want).max()), "not at the first sign change")
                    elif not blocked.any() and np.linalg.matrix_rank(D[S]) == S.sum():
                        insist(abs(h).max(initial=0) <= 1e-8, f"gradient left on the support: {h}")
                else:
                    insist(abs(h).max(initial=0) <= 1e-8, f"gradient left on the support: {h}")
                    left = squared_error(c, D, new)
                    best = np.linalg.lstsq(D[S].T, c, rcond=None)[0] if S.any() else np.zeros(0)
                    insist(left <= squared_error(c, D[S], best) + 1e-9, "not least squares on the support")
    for c, D in (*problems(rng), (np.array([2.0, -0.5]) @ close, close)):
        for minus in (np.inf, 0.4):
            trace = kit.ista(c, D, kit.L0(0.01, lam_minus=minus), 6, kit.Refit(), keep="all")
            z = np.array(trace.steps)
            with np.errstate(invalid="ignore"):
                price = np.where(z < 0, minus, np.where(z > 0, 0.01, 0)).sum(-1)
            F = 0.5 * squared_error(c, D, z) + price
            insist(F[1:] <= F[:-1] + 1e-9, f"F rises where negative codes cost {minus}: {F}")
    for nonneg in (False, True):
        D, c, lam = rng.normal(size=(6, 4)), 2 * rng.normal(size=4), rng.uniform(0.1, 0.5, 6)
        case = Case(kit.L1(lam, nonneg), "L1", lam, 6, nonneg)
        best, L = l1_optimum(c, D, lam, nonneg), squared_norm(D) * (1 + 1e-13)
        for z in (best, best * (1 + 1e-3 * rng.normal(size=6)), best * (1 + 0.3 * rng.normal(size=6))):
            new = kit.ista(c, D, case.R, 1, kit.Refit(), z0=z).codes
            middle, _, _ = shrink(case, c, D, z, SHORT / longest(D), L)
            if (np.sign(middle) == np.sign(best)).all():
                insist(abs(new - best).max() <= 1e-8, "the refit misses the optimum")
                solved += 1
    insist(held > 0 and solved >= 2, f"too few cases: {held} moves stopped, {solved} optima")


def _plain_least_squares(x: Array, D: Array, R: Any, steps: int, step: Any, z0: Array) -> Trace:
    L = squared_norm(D)
    new = R.prox(z0 - gradient(x, D, z0) / L, 1 / L)
    S = np.flatnonzero(new)
    new[S] = np.linalg.lstsq(D[S].T, x, rcond=None)[0]
    return Trace(new, None, None, None)


plant("refit: plain least squares for every penalty", "thm-refit", ista=_plain_least_squares)
plant("refit: left out", "thm-refit", Refit=Lipschitz)
plant("refit: slope of l1 forgotten", "thm-refit", L1=_WithoutSlope)


@statement(
    "prop-restricted-lipschitz",
    "L_s = max ||D_S||² over |S| ≤ s lies between max ||d_j||² and max ||d_j||² (1 + (s - 1) m), where m is the "
    "coherence of D and s ≥ 1.",
    source="Foucart and Rauhut 2013 (Gershgorin); Donoho and Elad 2003",
    code=("coherence",),
)
def restricted(kit: Kit, rng: np.random.Generator) -> None:
    """All supports of random dictionaries, with duplicates and zero atoms; equiangular atoms attain equality."""
    for _, D in problems(rng):
        top, m, previous = longest(D), kit.coherence(D), 0.0
        for s in range(1, 5):
            L_s = restricted_lipschitz(D, s)
            insist(L_s <= top * (1 + (s - 1) * m) + 1e-9, f"L_{s} = {L_s} exceeds {top} (1 + {s - 1} {m})")
            insist(L_s >= max(top, previous) - 1e-9, f"L_{s} = {L_s} is below {max(top, previous)}")
            previous = L_s
        insist(abs(restricted_lipschitz(D, 1) - top) < 1e-9, "L_1 is not max ||d_j||^2")
        insist(squared_norm(D) <= top * (1 + (len(D) - 1) * m) + 1e-9, "L exceeds its bound")
    for cosine, P in ((0.3, 5), (-0.5, 2)):
        gram = (1 - cosine) * np.eye(P) + cosine
        D = np.linalg.cholesky(gram)
        for s in range(1, P + 1):
            insist(abs(restricted_lipschitz(D, s) - (1 + (s - 1) * kit.coherence(D))) < 1e-9, "no equality")


plant("coherence: mean, not max", "prop-restricted-lipschitz", coherence=lambda D: abs(cosines(D)).mean())
plant("coherence: without |.|", "prop-restricted-lipschitz", coherence=lambda D: cosines(D).max())

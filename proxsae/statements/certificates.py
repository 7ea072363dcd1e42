"""Certificates (docs/theory/certificates.md): statements and their checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np

from proxsae import certificates
from proxsae.penalties import L1
from proxsae.reference.iteration import solve
from proxsae.statements.plain import (
    Array,
    Numbers,
    clipped,
    cosines,
    dictionaries,
    gradient,
    hard,
    keep_largest,
    l1_objective,
    l1_optimum,
    soft,
    unit,
)
from proxsae.statements.registry import Kit, insist, page, plant
from proxsae.testing.compare import assert_close, numpy_of

statement = page("certificates", on_paper="matrices of any size")


def problems(rng: np.random.Generator) -> Iterator[tuple[Array, Array, Array, Numbers, bool]]:
    """Yield (x, bias, D, lam, nonneg), with one lam, or one per latent and a lam_j = 0."""
    for D in dictionaries(rng, 5, 3):
        P, d = len(D), len(D.T)
        for lam in (0.3, np.append(rng.uniform(0.2, 0.8, P - 1), 0.0)):
            for nonneg in (False, True):
                yield 2 * rng.normal(size=d), rng.normal(size=d), D, lam, nonneg


def violation(c: Array, D: Array, z: Array, lam: Numbers, nonneg: bool) -> Array:
    """v_j: by how much the optimality condition of latent j fails, as the page defines it."""
    s = -gradient(c, D, z)
    at_zero = np.maximum((s if nonneg else abs(s)) - lam, 0)
    return np.where(z != 0, abs(s - lam * np.sign(z)), at_zero)


@statement(
    "thm-l1-optimality",
    "For L1 (lam_j ≥ 0, signed or nonneg): z is optimal iff the KKT conditions hold, iff z = T_mu(z) for one mu > 0, "
    "iff for every mu > 0.",
    source="Beck 2017 (prox-gradient fixed points); Tibshirani 2013; the two-sided bound is our own",
    code=("fixed_point_residual",),
)
def l1_optimality(kit: Kit, rng: np.random.Generator) -> None:
    """The residual lies between the two bounds by the violation v, and F - F* below sum v_j |z_j - z*_j|."""
    for x, b, D, lam, nonneg in problems(rng):
        c, R = x - b, kit.L1(lam, nonneg)
        best = l1_optimum(c, D, lam, nonneg)
        insist(violation(c, D, best, lam, nonneg) < 1e-9, "an optimum breaks the KKT conditions")
        dropped, moved = best.copy(), best + 0.3 * rng.normal(size=len(D))
        dropped[np.argmax(abs(best))] = 0.0
        for z in (best, 0 * best, dropped, abs(moved) if nonneg else moved):
            v = violation(c, D, z, lam, nonneg)
            excess = l1_objective(c, D, z, lam) - l1_objective(c, D, best, lam)
            insist(-1e-9 <= excess <= v @ abs(z - best) + 1e-9, "F - F* exceeds sum v_j |z_j - z*_j|")
            for mu in (0.01, 0.5, 40.0):
                residual = float(kit.fixed_point_residual(x, D, z, R, mu, bias=b))
                least = np.minimum(mu * v, np.where(z != 0, abs(z), np.inf)).max()
                tolerance = 1e-9 * (1 + mu)
                insist(residual >= least - tolerance, f"residual {residual} where v asks for {least}")
                insist(residual <= mu * np.linalg.norm(v) + tolerance, f"residual {residual} exceeds mu ||v||")


def _threshold_without_step(x: Array, D: Array, z: Array, R: Any, step: float, bias: Numbers = 0.0) -> Array:
    return np.linalg.norm(z - R.prox(z - step * gradient(x - bias, D, z), 1.0), axis=-1)


plant("fixed point: threshold without the step", "thm-l1-optimality", fixed_point_residual=_threshold_without_step)
plant(
    "fixed point: bias forgotten",
    "thm-l1-optimality",
    fixed_point_residual=lambda x, D, z, R, step, bias=None: certificates.fixed_point_residual(x, D, z, R, step),
)
plant("l1: one lam for all latents", "thm-l1-optimality", L1=lambda lam, nonneg=False: L1(float(np.max(lam)), nonneg))
plant("l1: nonneg forgotten", "thm-l1-optimality", L1=lambda lam, nonneg=False: L1(lam))


@statement(
    "def-fixed-point",
    "The fixed-point residual is ||z - T_mu(z)|| with T_mu(z) = prox_{mu R}(z - mu D^T (D z + b - x)): "
    "0 exactly at the fixed points of T_mu under the tie rule.",
    source="Beck and Eldar 2013 (L-stationarity, for k-sparse codes)",
    code=("fixed_point_residual",),
    on_paper="a definition",
)
def fixed_point(kit: Kit, rng: np.random.Generator) -> None:
    """The residual of random rows against formulas in plain NumPy, and at a tie, where the set has two members."""
    D, b, mu, k = rng.normal(size=(6, 4)), rng.normal(size=4), 0.3, 2
    D[5] = 0.0
    x, z, lam = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 6)), rng.uniform(0, 1, 6)
    z[:, 0] = 0.0
    for nonneg in (False, True):
        u = clipped(z - mu * gradient(x - b, D, z), nonneg)
        for R, image in (
            (kit.L1(lam, nonneg), soft(u, mu * lam)),
            (kit.L0(lam, nonneg), hard(u, np.sqrt(2 * mu * lam))),
            (kit.KSparse(k, nonneg), keep_largest(u, k)),
        ):
            want = np.sqrt(((z - image) ** 2).sum(-1))
            assert_close(kit.fixed_point_residual(x, D, z, R, mu, bias=b), want, 1e-12, f"residual for {R}")
    # u = (1, 1): both (1, 0) and (0, 1) are in T_mu, and the tie rule names the first
    for code, want in (([1.0, 0.0], 0.0), ([0.0, 1.0], np.sqrt(2))):
        got = kit.fixed_point_residual(np.array([1.0, 1.0]), np.eye(2), np.array(code), kit.KSparse(1), 1.0)
        assert_close(got, np.asarray(want), 1e-12, "residual at a tie")


plant(
    "fixed point: squared",
    "def-fixed-point",
    fixed_point_residual=lambda *a, **b: certificates.fixed_point_residual(*a, **b) ** 2,
)
plant(
    "fixed point: gradient norm, no prox",
    "def-fixed-point",
    fixed_point_residual=lambda x, D, z, R, step, bias=0.0: step * np.linalg.norm(gradient(x - bias, D, z), axis=-1),
)
plant("fixed point: threshold without the step", "def-fixed-point", fixed_point_residual=_threshold_without_step)


def feasible(r: Array, z: Array, D: Array, lam: Array, nonneg: bool) -> Array:
    """The dual point of the page: r off the unpenalised atoms, scaled into the rest of the dual domain."""
    free = (lam == 0) & D.any(axis=1) & ((z != 0) | (D @ r > 0) | (not nonneg))
    off = r - D[free].T @ np.linalg.lstsq(D[free].T, r, rcond=None)[0]
    s = D @ off if nonneg else abs(D @ off)
    return off * min([1.0, *(lam[j] / s[j] for j in range(len(D)) if s[j] > lam[j] and not free[j])])


@statement(
    "thm-duality-gap",
    "For L1, lam_j ≥ 0: gap(z) = F(z) - dual(theta) ≥ F(z) - F* ≥ 0, and gap(z) = 0 iff z is optimal; "
    "gap -> 0 as F(z) -> F* if every lam_j > 0.",
    source="Kim et al. 2007 and Mairal 2010 (scaled residual); Fenchel duality; the explicit bound is our own",
    code=("duality_gap",),
)
def gap(kit: Kit, rng: np.random.Generator) -> None:
    """The gap against the dual value of a feasible point, a brute-force optimum, and its upper bound."""
    for x, b, D, lam, nonneg in problems(rng):
        c, R, lams = x - b, kit.L1(lam, nonneg), np.broadcast_to(lam, len(D))
        best = l1_optimum(c, D, lam, nonneg)
        least, r_best = l1_objective(c, D, best, lam), c - best @ D
        noise = rng.normal(size=(6, len(D))) * 10.0 ** -np.arange(0, 12, 2)[:, None]
        z = best + noise * (best != 0)
        z[0], z[1] = 0.0, noise[0]
        z = abs(z) if nonneg else z
        got = kit.duality_gap(np.tile(x, (6, 1)), D, z, R, b)
        r = c - z @ D
        theta = np.stack([feasible(*row, D, lams, nonneg) for row in zip(r, z, strict=True)])
        insist((theta @ D.T if nonneg else abs(theta @ D.T)) <= lams + 1e-12, "theta is not dual feasible")
        excess = l1_objective(c, D, z, lam) - least
        dual = 0.5 * c @ c - 0.5 * ((theta - c) ** 2).sum(-1)
        assert_close(got, excess + least - dual, 1e-10, "gap against F - dual(theta)")
        insist(got >= excess - 1e-10, "the gap is below F - F*")
        if (lams > 0).all():  # the bound of the page: gap -> 0 as F -> F*
            root = np.sqrt(2 * np.maximum(excess, 0) + 1e-13)
            steepest = max(np.linalg.norm(D, axis=1) / lams)
            rho = root * (1 + steepest * np.linalg.norm(r, axis=1))
            insist(got <= excess + 0.5 * rho**2 + rho * np.linalg.norm(c - r_best) + 1e-9, "gap above its bound")
            insist(kit.duality_gap(x, D, best, R, b) < 1e-8, "the gap is not 0 at the optimum")
    outside = kit.duality_gap(np.ones(2), np.eye(2), np.array([1.0, -1.0]), kit.L1(1.0, nonneg=True))
    insist(np.isinf(outside), "outside z >= 0 the gap is infinite")


def _not_scaled(x: Array, D: Array, z: Array, R: Any, bias: Numbers = 0.0) -> Array:
    r = x - bias - z @ D
    return R.value(z) - (z * (r @ D.T)).sum(-1)


def _scaled_by_magnitude(x: Array, D: Array, z: Array, R: Any, bias: Numbers = 0.0) -> Array:
    gap_of_signed = certificates.duality_gap(x, D, z, L1(R.lam), bias * np.ones(D.shape[1]))
    return np.where((z < 0).any(axis=-1) & R.nonneg, np.inf, gap_of_signed)


plant("gap: residual not scaled to feasibility", "thm-duality-gap", duality_gap=_not_scaled)
plant("gap: |d_j^T r| where only its positive part counts", "thm-duality-gap", duality_gap=_scaled_by_magnitude)
plant(
    "gap: bias forgotten",
    "thm-duality-gap",
    duality_gap=lambda x, D, z, R, bias=None: certificates.duality_gap(x, D, z, R),
)
plant("gap: half of it", "thm-duality-gap", duality_gap=lambda *a, **b: certificates.duality_gap(*a, **b) / 2)


@statement(
    "lem-unpenalised",
    "Where lam_j = 0, the residual projected off these atoms (nonneg: where z_j > 0 or d_j^T r > 0), then scaled, is "
    "dual feasible; its gap bounds F(z) - F*, is 0 at optima, and is that of the lasso without them.",
    source="own; the elimination is folklore (Frisch and Waugh 1933 for least squares)",
    code=("duality_gap", "solve"),
)
def unpenalised(kit: Kit, rng: np.random.Generator) -> None:
    """The gap against a feasible point and a brute-force optimum, beside it and at it; `solve` certifies its codes."""
    for count in (1, 2):
        for x, b, D, _, nonneg in problems(rng):
            c, lam = x - b, np.append(rng.uniform(0.2, 0.8, len(D) - count), np.zeros(count))
            independent = np.linalg.matrix_rank(D[-count:]) == D[-count:].any(axis=1).sum()
            R, best = kit.L1(lam, nonneg), l1_optimum(c, D, lam, nonneg)
            least = l1_objective(c, D, best, lam)
            z = best + rng.normal(size=(8, len(D))) * 10.0 ** -np.arange(8)[:, None]
            z = np.maximum(z, 0) if nonneg else z
            got = kit.duality_gap(np.tile(x, (8, 1)), D, z, R, b)
            insist(got >= l1_objective(c, D, z, lam) - least - 1e-12, "the gap is below F - F*")
            if independent:
                theta = np.stack([feasible(c - one @ D, one, D, lam, nonneg) for one in z])
                violates = (theta @ D.T if nonneg else abs(theta @ D.T)) > lam + 1e-9
                dual = np.where(violates.any(axis=1), 0, 0.5 * c @ c - 0.5 * ((theta - c) ** 2).sum(-1))
                assert_close(got, l1_objective(c, D, z, lam) - dual, 1e-8, "gap against F - dual(theta)")
                insist(kit.duality_gap(x, D, best, R, b) < 1e-7 * max(1, least), "the gap is not 0 at the optimum")
                if least > 1e-3:
                    insist(kit.solve(x, D, R, 1e-6, 3000, b).converged, "solve certifies no code")
    # in exact numbers: beside the optimum (2, 1/2) of latents of which the first is free, the gap is F - F*
    for first in (2.0, 1.75):
        z = np.array([first, 0.5])
        got = kit.duality_gap(np.array([2.0, 1.5]), np.eye(2), z, kit.L1(np.array([0.0, 1.0])))
        assert_close(got, np.asarray(0.5 * (2 - first) ** 2), 1e-12, "gap where a lam is 0")
    # the optimum of a latent that would shrink: z_1 = 0 and d_1^T r = -1, which no projection may take off
    got = kit.duality_gap(np.array([-1.0, 2.0]), np.eye(2), np.array([0.0, 1.0]), kit.L1(np.array([0.0, 1.0]), True))
    assert_close(got, np.asarray(0.0), 1e-12, "gap where a latent would shrink")


def _theta_is_zero(x: Array, D: Array, z: Array, R: Any, bias: Numbers = 0.0) -> Array:
    slope = (x - bias - z @ D) @ D.T
    stuck = ((R.lam == 0) & ((slope if R.nonneg else abs(slope)) > 1e-12)).any(-1)
    F = l1_objective(x - bias, D, z, R.lam)
    return np.where(stuck, F, certificates.duality_gap(x, D, z, R, bias * np.ones(D.shape[1])))


def _free_is_ignored(x: Array, D: Array, z: Array, R: Any, bias: Numbers = 0.0) -> Array:
    return certificates.duality_gap(x, D, z, L1(np.where(R.lam == 0, 1e9, R.lam), R.nonneg), bias * np.ones(len(D.T)))


def _off_all(x: Array, D: Array, z: Array, R: Any, bias: Numbers = 0.0) -> Array:
    return certificates.duality_gap(x, D, z, L1(R.lam), bias * np.ones(D.shape[1]))


plant("gap: none where a lam is 0", "lem-unpenalised", duality_gap=_theta_is_zero)
plant("gap: unpenalised latents taken for forbidden ones", "lem-unpenalised", duality_gap=_free_is_ignored)
plant("gap: off all unpenalised atoms with nonneg too", "lem-unpenalised", duality_gap=_off_all)


def exact_gap(c: Any, D: Any, z: Any, lam: Any) -> tuple[Fraction, Fraction]:
    """(gap, F) of one row in exact arithmetic, by equation (3) of the page."""
    row, atoms, codes, lams = ([Fraction(v) for v in np.ravel(a).tolist()] for a in (c, D, z, lam))
    none = Fraction(0)
    d, P = len(row), len(codes)
    r = [row[i] - sum((codes[j] * atoms[j * d + i] for j in range(P) if codes[j]), none) for i in range(d)]
    s = [sum((atoms[j * d + i] * r[i] for i in range(d)), none) for j in range(P)]
    scale = min([Fraction(1), *(lams[j] / abs(s[j]) for j in range(P) if abs(s[j]) > lams[j])])
    square, cost = sum((v * v for v in r), none), sum((lams[j] * abs(codes[j]) for j in range(P)), none)
    inner = sum((codes[j] * s[j] for j in range(P)), none)
    return (1 - scale) ** 2 * square / 2 + cost - scale * inner, square / 2 + cost


@statement(
    "lem-sure-gap",
    "What float64 computes for gap(z) of c = x - b, with a stated allowance for rounding and rounded up to x's dtype, "
    "bounds F(z) - F* where nothing under- or overflows; so converged from solve on L1 is true of the returned code.",
    source="own; the model of floating point is Higham 2002's",
    code=("certificates.l1_gap",),
    on_paper="sums of any length in floating point",
)
def sure_gap(kit: Kit, rng: np.random.Generator) -> None:
    """Rows that `solve` calls converged have an exact gap <= tol F, also where lam is tiny; and some do converge.

    A tolerance just below an exact gap is where rounding decides what the plain gap says.
    """
    import torch

    D = unit(rng.normal(size=(12, 8)))
    x, some, said = rng.normal(size=(4, 8)), np.full(12, 0.3), 0
    some[:3] = 1e-10
    for lam, tol in ((1e-10, 1e-6), (1e-6, 1e-10), (some, 1e-6), (0.3, 1e-11)):
        R, lams = kit.L1(lam), np.broadcast_to(lam, 12)
        for row in x:
            ratio = tol
            for _ in range(2):
                found = kit.solve(torch.tensor(row), torch.tensor(D), R, tol=ratio, max_steps=30)
                z = found.codes.numpy()
                gap, F = exact_gap(row, D, z, lams)
                holds = gap <= Fraction(ratio) * F
                insist(holds or not found.converged, f"converged at {ratio}, but the gap is {float(gap / F)} F")
                insist(Fraction(float(kit.duality_gap(row, D, z, R))) >= gap, "too small an allowance")
                insist(Fraction(float(found.gap)) >= gap, "solve reports less than the gap")
                said += bool(found.converged)
                ratio = 0.99 * max(float(gap / F), 1e-14)
    insist(said >= 4, f"only {said} rows are certified: the allowance is too large")
    for dtype in (np.float16, np.float32, np.float64):
        less = -(2.0 ** -(np.finfo(dtype).nmant + 2))
        row, atom, bias = np.ones(1, dtype), np.eye(1, dtype=dtype), np.full(1, less, dtype)
        c, lam = [Fraction(1) - Fraction(float(bias[0]))], np.array([2.0**-7])
        for at in ((row, atom, bias), tuple(map(torch.tensor, (row, atom, bias)))):  # x - b is no number of this dtype
            found = kit.solve(at[0], at[1], kit.L1(2.0**-7), bias=at[2])
            gap, F = exact_gap(c, atom, numpy_of(found.codes), lam)
            insist(not found.converged or gap <= Fraction(1e-6) * F, "c was rounded in the dtype of x")
            insist(Fraction(float(found.gap)) >= gap, "solve reports less than the gap of c")
        codes = rng.uniform(0.9, 1.1, (40, 1)).astype(dtype)
        told = kit.duality_gap(np.ones((40, 1), dtype), atom, codes, kit.L1(0.3), bias)
        exact = [exact_gap(c, atom, z, np.array([0.3]))[0] for z in codes]
        insist([Fraction(float(a)) >= gap for a, gap in zip(told, exact, strict=True)], "a gap is rounded down")
        insist(told.dtype == dtype, "the gap has another dtype")


def _by_the_plain_gap(x: Any, D: Any, R: Any, tol: float = 1e-6, max_steps: int = 100, bias: Any = None) -> Any:
    found = solve(x, D, R, tol, max_steps, bias)
    c = certificates.centred(x, bias)
    _, F, gap = certificates.l1_gap(c, certificates.wide(D), certificates.wide(found.codes), R)
    return replace(found, converged=gap <= tol * F)


def _of_rounded_rows(x: Any, D: Any, R: Any, bias: Any = None, **given: Any) -> Any:
    return solve(x if bias is None else x - bias, D, R, **given)


def _to_nearest(x: Any, D: Any, z: Any, R: Any, bias: Any = None) -> Any:
    c, D, z = certificates.centred(x, bias), certificates.wide(D), certificates.wide(z)
    return certificates.narrow(certificates.duality_gap(c, D, z, R), x)


def _gap_without_allowance(x: Any, D: Any, z: Any, R: Any, bias: Any = None) -> Any:
    c, D, z = certificates.centred(x, bias), certificates.wide(D), certificates.wide(z)
    return certificates.l1_gap(c, D, z, R)[2].astype(x.dtype)


plant("solve: rounding is not allowed for", "lem-sure-gap", solve=_by_the_plain_gap)
plant("solve: c is rounded in the dtype of x", "lem-sure-gap", solve=_of_rounded_rows)
plant("gap: rounded to nearest", "lem-sure-gap", duality_gap=_to_nearest)
plant("gap: rounding is not allowed for", "lem-sure-gap", duality_gap=_gap_without_allowance)


def _never_certified(*args: Any, **given: Any) -> Any:
    found = solve(*args, **given)
    return replace(found, converged=found.converged & False)


plant("solve: nothing is certified", "lem-sure-gap", solve=_never_certified)


@statement(
    "prop-lambda-max",
    "For L1 with one lam, b = 0: z = 0 is optimal iff lam ≥ lambda_max = max_j |d_j^T x| (nonneg: max_j (d_j^T x)_+), "
    "and then the only optimum if lam > 0.",
    source="Kim et al. 2007; KKT conditions at 0",
    code=("lambda_max",),
)
def zero_is_optimal(kit: Kit, rng: np.random.Generator) -> None:
    """The brute-force optimum is 0 just above lambda_max and not just below it."""
    for x, b, D, _, nonneg in problems(rng):
        c = x - b
        top = float(kit.lambda_max(c, D, nonneg))
        insist(top >= 0, f"lambda_max is {top}")
        for lam, zero in ((1.001 * top, True), (0.999 * top, False)):
            z = l1_optimum(c, D, lam, nonneg)
            insist(z.any() != zero or top == 0, f"lam = {lam / max(top, 1e-300)} lambda_max, optimum {z}")
        z = kit.ista(c, D, kit.L1(top * (1 + 1e-12), nonneg), 3).codes
        insist(not z.any(), f"at lambda_max the iteration leaves 0 for {z}")
        other = rng.normal(size=(20, len(D)))
        other = abs(other) if nonneg else other
        others = l1_objective(c, D, 0.1 * other, top)
        insist((others > 0.5 * c @ c) | (top == 0), "at lambda_max, 0 is not the only minimiser")
    D = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])
    x = np.array([[-2.0, 0.0], [0.0, 0.0], [-1.0, 3.0]])  # nonneg: no atom points towards the first row
    assert_close(kit.lambda_max(x, D), np.array([2.0, 0.0, 1.0]), 1e-12, "lambda_max")
    assert_close(kit.lambda_max(x, D, True), np.array([0.0, 0.0, 1.0]), 1e-12, "lambda_max, nonneg")


plant(
    "lambda_max: without |.|",
    "prop-lambda-max",
    lambda_max=lambda x, D, nonneg=False: certificates.lambda_max(x, D, True),
)
plant(
    "lambda_max: |.| with nonneg too",
    "prop-lambda-max",
    lambda_max=lambda x, D, nonneg=False: certificates.lambda_max(x, D),
)
plant(
    "lambda_max: Euclidean norm of D^T x",
    "prop-lambda-max",
    lambda_max=lambda x, D, nonneg=False: np.linalg.norm(x @ D.T, axis=-1),
)


@statement(
    "def-coherence",
    "m(D) = max |<d_i, d_j>| / (||d_i|| ||d_j||) over pairs of non-zero atoms, 0 if there is no pair; 0 ≤ m ≤ 1.",
    source="Mallat and Zhang 1993; Donoho and Elad 2003",
    code=("coherence",),
    on_paper="a definition",
)
def coherence(kit: Kit, rng: np.random.Generator) -> None:
    """Against two loops, also after scaling, signs, reordering, rotation and a zero atom; parallel and orthogonal.

    In exact numbers it is never below the largest cosine, whatever the lengths of the atoms.
    """
    for P, d in ((7, 4), (3, 6), (2, 1)):
        D = rng.normal(size=(P, d))
        want = max(abs(D[i] @ D[j]) / (np.linalg.norm(D[i]) * np.linalg.norm(D[j])) for i in range(P) for j in range(i))
        rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
        scaled = D * rng.choice([-5.0, -0.2, 0.2, 5.0], size=(P, 1))
        for same in (D, scaled, D[::-1], D @ rotation, np.insert(D, 1, 0.0, axis=0)):
            m = kit.coherence(same)
            insist(abs(m - want) < 1e-12 and 0 <= m <= 1, f"coherence {m}, but two loops say {want}")
        rows = [[Fraction(float(v)) for v in row] for row in D]
        lengths = [sum((v * v for v in row), Fraction(0)) for row in rows]
        for i, j in combinations(range(P), 2):
            dot = sum((v * w for v, w in zip(rows[i], rows[j], strict=True)), Fraction(0))
            for size in (1.0, 2.0**600, 2.0**-600):  # exact factors, whose squares are no floats
                most = Fraction(float(kit.coherence(size * D[[i, j]])))
                insist(most**2 * lengths[i] * lengths[j] >= dot**2, f"coherence {float(most)} is below the cosine")
    for D, want in (
        (np.eye(3), 0.0),
        (np.ones((1, 3)), 0.0),
        (np.eye(3)[[0, 0, 1]], 1.0),
        (np.eye(2)[[0]] * [[1], [-3]], 1.0),
    ):
        insist(abs(kit.coherence(D) - want) < 1e-12, f"coherence of {D.tolist()} is not {want}")


plant("coherence: without |.|", "def-coherence", coherence=lambda D: cosines(D).max(initial=0))
plant("coherence: mean, not max", "def-coherence", coherence=lambda D: abs(cosines(D)).mean())
plant("coherence: rounded to nearest", "def-coherence", coherence=lambda D: abs(cosines(D / abs(D).max())).max())
plant(
    "coherence: atoms not normalised",
    "def-coherence",
    coherence=lambda D: float(abs((D @ D.T)[np.triu_indices(len(D), 1)]).max(initial=0)),
)


def equiangular(cosine: float, P: int) -> Array:
    """P unit-norm atoms whose inner products are all `cosine`, in as few dimensions as they need."""
    values, vectors = np.linalg.eigh((1 - cosine) * np.eye(P) + cosine)
    kept = values > 1e-12
    return vectors[:, kept] * np.sqrt(values[kept])


@statement(
    "prop-welch",
    "P non-zero atoms in R^d, P ≥ max(2, d), have coherence ≥ sqrt((P - d) / (d (P - 1))), with equality iff, "
    "normalised, they are an equiangular tight frame.",
    source="Welch 1974; Strohmer and Heath 2003; Foucart and Rauhut 2013",
    code=("coherence",),
)
def welch(kit: Kit, rng: np.random.Generator) -> None:
    """Random frames lie above the bound, equiangular tight frames on it, and a frame that is only tight above it."""
    for P, d in ((2, 1), (5, 4), (12, 4), (40, 3), (4, 4)):
        D, bound = rng.normal(size=(P, d)), np.sqrt((P - d) / (d * (P - 1)))
        insist(kit.coherence(D) >= bound - 1e-12, f"coherence {kit.coherence(D)} of {P} atoms is below {bound}")
    golden = (1 + np.sqrt(5)) / 2
    icosahedron = np.array(
        [[0, 1, golden], [0, 1, -golden], [1, golden, 0], [1, -golden, 0], [golden, 0, 1], [-golden, 0, 1]]
    )
    orthonormal = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    for D in (icosahedron, equiangular(-0.5, 3), equiangular(-0.25, 5), orthonormal):
        D = D @ np.linalg.qr(rng.normal(size=(D.shape[1], D.shape[1])))[0]
        P, d = D.shape
        bound = np.sqrt((P - d) / (d * (P - 1)))
        insist(abs(kit.coherence(D) - bound) < 1e-7, f"{P} equiangular atoms in R^{d}: {kit.coherence(D)}, not {bound}")
    tight = np.concatenate([np.eye(2), np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)])
    insist(kit.coherence(tight) > np.sqrt(1 / 3) + 0.1, "tight, not equiangular, yet on the bound")


plant("coherence: without |.|", "prop-welch", coherence=lambda D: cosines(D).max(initial=0))
plant("coherence: squared", "prop-welch", coherence=lambda D: (cosines(D) ** 2).max(initial=0))

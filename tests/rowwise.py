"""The oracle: ISTA, FISTA, IHT and their step rules in NumPy, one row at a time, as the docs define them.

    min_z F(z),   F(z) = 1/2 ||x - b - D z||^2 + R(z)
    z+ = prox_{mu R}(z - mu g),   g = D^T (D z + b - x)                                              (def-ista)

It shares no step with `proxsae.reference.iteration`, which takes all rows together, and which it judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numpy as np

from proxsae.certificates import FAINT, centred, certify, lengths, lipschitz, squared_norm
from proxsae.conventions import check_count, check_problem
from proxsae.penalties import Penalty
from proxsae.penalties.base import Floats
from proxsae.steps import (
    FIRST_TRIAL,
    REACHES,
    REFIT_RTOL,
    RIDGE,
    WINDOW,
    Backtracking,
    ExactStep,
    GivenStep,
    Lipschitz,
    Momentum,
    Solution,
    StepRule,
    Trace,
    as_rule,
    check_reached,
    check_rule,
    check_tol,
    how_to_solve,
    step_dtype,
)


def ista(
    x: Any,
    D: Any,
    R: Penalty,
    steps: int,
    step: Any = Lipschitz(),  # noqa: B008  (a frozen value without state)
    momentum: str | None = None,
    z0: Any = None,
    bias: Any = None,
    keep: str = "last",
) -> Trace:
    c, D, z0, lead = check_problem(x, D, z0, bias, R)
    steps, (least, L), rule = check_count("steps", steps, 0), squared_norm(D), as_rule(step, c)
    check_rule(rule, momentum, keep, R, least, steps)
    start = np.zeros((*lead, len(D)), c.dtype) if z0 is None else z0
    wide = np.result_type(c.dtype, np.float32)  # half precision accumulates in float32
    kept = steps + 1 if keep == "all" else 1
    codes = np.zeros((kept, int(np.prod(lead)), len(D)), c.dtype)
    objective = np.zeros((steps + 1, codes.shape[1]), c.dtype)
    products = np.zeros(objective.shape)
    for i, (row, z) in enumerate(zip(c.reshape(-1, c.shape[-1]), start.reshape(-1, len(D)), strict=True)):
        for t, (code, spent) in zip(range(steps + 1), iterate(row, D, R, rule, momentum, z, L), strict=False):
            codes[t if keep == "all" else 0, i], products[t, i] = code, spent
            objective[t, i] = 0.5 * np.sum((row - code @ D).astype(wide, copy=False) ** 2) + R.value(code)
    codes = codes.reshape(kept, *lead, len(D))
    check_reached(codes)
    return Trace(
        codes[-1],
        objective.reshape(steps + 1, *lead),
        products.reshape(steps + 1, *lead),
        tuple(codes) if keep == "all" else None,
    )


def solve(x: Any, D: Any, R: Penalty, tol: float = 1e-6, max_steps: int = 10_000, bias: Any = None) -> Solution:
    c, D, _, lead = check_problem(x, D, None, bias, R)
    tol, max_steps, dtype = check_tol(tol), check_count("max_steps", max_steps, 0), c.dtype
    rows, D = centred(x, bias).reshape(-1, c.shape[-1]), D.astype(np.float64)
    L, norm = lipschitz(D), lengths(D)
    codes, gaps = np.full((len(rows), len(D)), np.inf), np.zeros(len(rows))
    taken = np.zeros(len(rows), dtype=int)
    converged, at_rounding = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for i, row in enumerate(rows):
        for t, z in enumerate(_codes(row, D, R, L)):
            rounded = z.astype(dtype).astype(np.float64)  # the certificate is that of the code as returned
            _, good, settled = certify(row, D, rounded, codes[i], R, tol, L, norm)
            if dtype != np.float64 and not good:
                settled = certify(row, D, z, codes[i], R, tol, L, norm)[2]
            enough = good or settled
            codes[i], taken[i] = z, t
            if enough or t == max_steps:
                break
        gaps[i], good, _ = certify(row, D, rounded, codes[i], R, tol, L, norm)
        converged[i], at_rounding[i] = good and enough, enough and not good
    shaped = codes.astype(dtype).reshape(*lead, len(D))
    return Solution(shaped, *(a.reshape(lead) for a in (gaps, taken, converged, at_rounding)))


def _codes(c: Floats, D: Floats, R: Penalty, L: float) -> Iterator[Floats]:
    """Yield the codes from 0 on by which `solve` goes, for one row.

    Where R is not convex, and no least squares end the work, each `WINDOW` of plain steps ends with a leap to the
    lowest F among: that combination of their codes which would move least, were the step an affine map (Anderson
    acceleration, as Bertrand and Massias 2021 have it), if it changes no sign; and the last move, `REACHES` times on,
    at most to the first change of sign.
    """
    rule, momentum = how_to_solve(R)
    z: Floats = np.zeros(len(D))
    window = None if R.convex or R.affine else WINDOW + 1
    yield z
    while True:
        path = [z]
        for new, _ in islice(iterate(c, D, R, rule, momentum, z, L), 1, window):
            yield new
            if window:
                path.append(new)
        moves = np.diff(path, axis=0)
        gram = moves @ moves.T
        gram = gram / max(np.trace(gram), np.finfo(float).tiny) + RIDGE * np.eye(WINDOW)
        weights, z = np.linalg.solve(gram, np.ones(WINDOW)), path[-1]
        guess = np.where(z != 0, weights / weights.sum() @ np.array(path[1:]), 0)
        trials = [z, guess] if np.array_equal(np.sign(guess), np.sign(z)) else [z]
        move = np.where(z != 0, z - path[-2], 0)
        ends = [-code / by if code * by < 0 else np.inf for code, by in zip(z, move, strict=True)]
        for reach in REACHES:
            far = min(reach, *ends)
            trials.append(np.where(far < np.array(ends), z + far * move, 0))
        z = min(trials, key=lambda code: 0.5 * np.sum((c - code @ D) ** 2) + R.value(code))


def iterate(
    c: Floats, D: Floats, R: Penalty, rule: StepRule, momentum: str | None, z: Floats, L: float
) -> Iterator[tuple[Floats, float]]:
    """Yield (z_t, products spent so far) for t = 0, 1, 2, ... on one centred row c (d,)."""
    # where only the longest atom moves, no longer step satisfies lem-backtracking
    largest = FIRST_TRIAL / float((D.astype(np.float64) ** 2).sum(axis=1).max())
    mu, spent, y, t = largest, 0.0, z, 1.0
    owed = float(z.any())  # the product D z that the next gradient needs; none at z = 0
    yield z, spent
    for n in count():
        g = D @ (y @ D - c)
        spent, owed = spent + owed + 1, 1.0
        if isinstance(rule, GivenStep):
            mu = rule.size(n, L)
            new = R.prox(y - times(mu, g, L), mu)
        elif isinstance(rule, Backtracking):
            new, mu, tried = shrink_until_safe(y, g, D, R, mu, L)
            spent, owed = spent + tried, float(mu <= 1 / L)
        elif isinstance(rule, ExactStep):
            new, tried, owed = exact_step(y, g, D, R, largest, L)
            spent += tried
        else:
            new, mu, tried = shrink_until_safe(y, g, D, R, largest, L)
            size = np.count_nonzero(new)
            # the Gram matrix of the support, its right-hand side and its residual, in units of P d multiply-adds
            spent, owed = spent + tried + (mu <= 1 / L) + size * (size + 2) / len(D), 0.0
            new = refit(new, c, D, R)
        if momentum is None:
            y = new
        else:
            if momentum == Momentum.RESTART and (y - new) @ (new - z) > 0:  # momentum points uphill
                t = 1.0
            after = (1 + np.sqrt(1 + 4 * t * t)) / 2
            y, t = new + (t - 1) / after * (new - z), after
        z = new
        yield z, spent


def times(mu: Any, g: Floats, L: float) -> Floats:
    """mu g, where mu itself may be no number of the dtype of g."""
    return (mu * g.astype(step_dtype(L, g), copy=False)).astype(g.dtype, copy=False)


def square(a: Floats) -> float:
    """||a||^2 in float64."""
    with np.errstate(over="ignore"):
        return float(np.sum(a.astype(np.float64) ** 2))


def fulfils(mu: float, dz: Floats, D: Floats) -> bool:
    """Whether  mu ||D dz||^2 <= ||dz||^2,  as squares that over- or underflow cannot tell."""
    move, size = mu * square(dz @ D), square(dz)
    return move <= size and move < np.inf and (size > FAINT or not dz.any())


def shrink_until_safe(z: Floats, g: Floats, D: Floats, R: Penalty, mu: float, L: float) -> tuple[Floats, float, int]:
    """Halve mu down to 1/L until  mu ||D dz||^2 <= ||dz||^2  (lem-backtracking): the code, mu, and products tried."""
    tried = 0
    while True:
        new = R.prox(z - times(mu, g, L), mu)
        if mu <= 1 / L:
            return new, mu, tried
        dz, tried = new - z, tried + 1
        if fulfils(mu, dz, D):
            return new, mu, tried
        mu = max(mu / 2, 1 / L)


def exact_step(z: Floats, g: Floats, D: Floats, R: Penalty, largest: float, L: float) -> tuple[Floats, int, float]:
    """The exact line step on the support (thm-exact-step): the code, products tried, and products owed for D z+.

    Along -h, F is a quadratic with minimiser mu = ||h||^2 / ||D h||^2, for which dz = -mu h fulfils the descent
    inequality with equality.  That holds while R stays affine along the way: while no sign changes for L1, no support
    for the others.  Elsewhere mu is halved as in backtracking.
    """
    face = z if z.any() else R.prox(z - times(largest, g, L), largest)  # at z = 0, the support that a step would open
    h = np.where(face != 0, g + R.slope(face), 0)
    with np.errstate(all="ignore"):  # atoms that nearly cancel make mu huge, and the trial is then refused
        along = square(h @ D)
    # what leaves the range of the dtype says nothing: the step is then a `Backtracking` one
    known = float(np.finfo(h.dtype).tiny) ** 2 < along < np.inf
    mu, tried = max(square(h) / along, 1 / L) if known else largest, 1  # at least 1/L, but for rounding
    while True:
        new = R.prox(z - times(mu, g, L), mu)
        same = np.array_equal(np.sign(new), np.sign(face)) if R.convex else np.array_equal(new != 0, face != 0)
        if (known or not h.any()) and same:
            return new, tried, 0.0
        if mu <= 1 / L:
            return new, tried, 1.0
        dz, tried = new - z, tried + 1
        if fulfils(mu, dz, D):
            return new, tried, 0.0
        mu = max(mu / 2, 1 / L)


def refit(z: Floats, c: Floats, D: Floats, R: Penalty) -> Floats:
    """Least squares on the support S of z, signs held where R fixes them (thm-refit).

    Move by delta, where  D_S^T D_S delta = -(D_S^T (D z - c) + slope), or as far along it as the first sign change.
    """
    (S,) = np.nonzero(z)
    if not len(S):
        return z
    wide = np.result_type(z.dtype, np.float32)
    A, new = D[S].astype(wide), z.copy()
    h = A @ (z[S] @ A - c) + R.slope(z)[S]
    norms = np.linalg.norm(A.astype(np.float64), axis=1).astype(wide)  # squares of float32 may be no float32
    norms = np.where(norms > 0, norms, 1)  # atoms are compared by direction: a short one is not a dependent one
    cosines = (A / norms[:, None]) @ (A / norms[:, None]).T
    delta = np.linalg.lstsq(cosines, -h / norms, rcond=float(REFIT_RTOL * np.finfo(wide).eps))[0] / norms
    target = z[S] + delta
    if R.convex or R.nonneg or getattr(R, "lam_minus", None) is not None:  # R is known on the sides of z only
        flips = np.sign(target) == -np.sign(z[S])
        if flips.any():
            fraction = np.where(flips, z[S] / np.where(flips, -delta, 1), np.inf)
            target = np.where(fraction == fraction.min(), 0, z[S] + fraction.min() * delta)
    new[S] = target
    return new

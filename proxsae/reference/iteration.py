"""ISTA, FISTA, IHT and their step rules in NumPy, all rows together.

    min_z F(z),   F(z) = 1/2 ||x - b - D z||^2 + R(z)
    z+ = prox_{mu R}(z - mu g),   g = D^T (D z + b - x)                                              (def-ista)

In code a dictionary holds atoms as rows, so D z is `z @ D` and D^T r is `r @ D.T`.  What a rule decides by row is
masked: a row that has found its step waits for the others.  Torch tensors go to `proxsae.pytorch.iteration`, which
shares no step with this file; `tests/rowwise.py` takes one row at a time, as the docs define them, and judges both.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.certificates import FAINT, centred, certify, lengths, lipschitz, squared_norm
from proxsae.conventions import check_count, check_problem, torch_twin
from proxsae.penalties import L1, Penalty
from proxsae.penalties.base import Floats, runs
from proxsae.reference import lasso_path
from proxsae.reference.refit import refit
from proxsae.steps import (
    FIRST_TRIAL,
    REACHES,
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


@torch_twin("proxsae.pytorch.iteration")
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
    """Proximal gradient from z0 (default 0):  z+ = prox_{mu R}(z - mu D^T (D z + b - x)),  `steps` times (def-ista).

    Atoms are rows of D in code, so D z is `z @ D`: x (..., d), D (P, d), z0 (..., P), bias b (d,), of one float dtype.

    step      a step rule, such as `ExactStep()`; a number mu; or one mu per step, a list or an array (steps,).  A torch
              tensor, with no axis or (steps,), carries gradients: learned step sizes.  Each must be below 2/L.
    momentum  "fista": Nesterov's extrapolation; "restart": the same, begun anew where it points uphill, as in `solve`.
              Both need a convex R and steps that never grow; a given step size must be at most 1/L.
    keep      "last", or "all" for every iterate in `.steps`

    Returns a `Trace`: the codes z_T are `.codes`, F(z_0) ... F(z_T) are `.objective`.  For L0 and KSparse this is
    iterative hard thresholding.

    Statements: thm-ista-descent, thm-ista-rate, thm-fista-rate (Beck and Teboulle 2009; for k-sparse Beck and Eldar
    2013), thm-stationarity-rate, prop-depth-monotone, thm-linear-phase, thm-support-changes, prop-lista-is-ista,
    prop-one-step-orthonormal.
    Raises `Error` for NaN or infinite data, shapes that do not fit, a dictionary of zeros, steps < 0, a step size of
    2/L or more, and rules or momentum whose hypotheses R breaks.

    >>> import proxsae as px
    >>> trace = px.ista(np.array([3.0, 0.2]), np.eye(2), px.L1(1.0), steps=1)
    >>> trace.codes, trace.objective
    (array([2., 0.]), array([4.52, 2.52]))
    >>> px.ista(np.array([3.0, 0.2]), np.eye(2), px.L1(1.0), steps=2, step=[0.5, 0.25]).codes
    array([1.25, 0.  ])
    """
    c, D, z0, lead = check_problem(x, D, z0, bias, R)
    steps, (least, L), rule = check_count("steps", steps, 0), squared_norm(D), as_rule(step, c)
    check_rule(rule, momentum, keep, R, least, steps)
    rows = c.reshape(-1, c.shape[-1])
    z = np.zeros((len(rows), len(D)), c.dtype) if z0 is None else z0.reshape(-1, len(D))
    iteration = Iteration(rows, D, R, rule, momentum, z, L)
    kept, objective, products = [z], [iteration.objective()], [iteration.spent]
    for _ in range(steps):
        iteration.advance()
        if keep == "all":
            kept.append(iteration.z)
        objective.append(iteration.objective())
        products.append(iteration.spent)
    check_reached(iteration.z)
    shape = (*lead, len(D))
    return Trace(
        iteration.z.reshape(shape),
        np.stack(objective).reshape(steps + 1, *lead),
        np.stack(products).reshape(steps + 1, *lead),
        tuple(codes.reshape(shape) for codes in kept) if keep == "all" else None,
    )


@torch_twin("proxsae.pytorch.iteration")
def solve(x: Any, D: Any, R: Penalty, tol: float = 1e-6, max_steps: int = 10_000, bias: Any = None) -> Solution:
    """Minimise F(z) = 1/2 ||x - b - D z||^2 + R(z), until a certificate bounds what is left.

    Atoms are rows of D in code, so D z is `z @ D`: x (..., d), D (P, d), bias b (d,).  The codes of the `Solution` that
    is returned are `.codes`.  The certificate is a duality gap <= tol * F for L1, else ||z - T(z)|| <= tol ||z||.

    A convex R is solved by FISTA with restarts.  L1 first follows its path down from the least lam whose solution is 0,
    where a step is a change of support; in torch it is solved by working sets, many rows at once, where `steps` counts
    products with D^T and a row leaves when it is certified.  L0 and KSparse take `Refit` steps from z = 0 until the
    code stays, other non-convex R plain steps of 1/L, with leaps where these lower F; their limit depends on that start
    (the best k-sparse code is NP-hard to find).
    Iterates are in float64, codes are returned in the dtype of x.  The certificate is that of the codes as returned and
    allows for rounding (lem-sure-gap); a row that did not reach it has converged = False.  Rounding codes to float32
    alone can cost a gap of some 1e-7 of the objective, and far more where lam is tiny: such rows have at_rounding =
    True.
    For L1, L0 and KSparse torch codes are differentiable in x, D, bias and a tensor lam by the implicit function
    theorem on the support (thm-implicit-gradient); F at the solution needs no such thing (thm-envelope).
    Statements: thm-duality-gap, lem-sure-gap, lem-unpenalised.
    Raises `Error` as `ista` does, and for tol not finite and > 0.

    >>> import proxsae as px
    >>> px.solve(np.array([3.0, 0.2]), np.eye(2), px.L1(1.0)).codes
    array([2., 0.])
    """
    c, D, _, lead = check_problem(x, D, None, bias, R)
    tol, max_steps, dtype = check_tol(tol), check_count("max_steps", max_steps, 0), c.dtype
    rows, D = centred(x, bias).reshape(-1, c.shape[-1]), D.astype(np.float64)
    L, norm = lipschitz(D), lengths(D)
    codes, taken = np.full((len(rows), len(D)), np.inf), np.zeros(len(rows), dtype=np.int64)
    enough, left = np.zeros(len(rows), dtype=bool), np.arange(len(rows))
    start, used = lasso_path.follow(rows, D, R, max_steps) if runs(R, L1) else (np.zeros_like(codes), 0 * taken)
    path = _Path(rows, D, R, L, start)
    for t in count():
        z = path.iteration.z
        rounded = z.astype(dtype).astype(np.float64)  # the certificate is that of the code as returned
        _, good, settled = certify(rows[left], D, rounded, codes[left], R, tol, L, norm)
        if dtype != np.float64:
            settled = certify(rows[left], D, z, codes[left], R, tol, L, norm)[2]
        codes[left], taken[left] = z, used[left] + t
        enough[left] = good | settled
        on = ~enough[left] & (taken[left] < max_steps)
        if not on.any():
            break
        if not on.all():
            left = left[on]
            path.keep(on)
        path.advance()
    rounded = codes.astype(dtype).astype(np.float64)
    gaps, good, _ = certify(rows, D, rounded, codes, R, tol, L, norm)
    shaped = rounded.astype(dtype).reshape(*lead, len(D))
    return Solution(shaped, *(a.reshape(lead) for a in (gaps, taken, good & enough, enough & ~good)))


class _Path:
    """The codes from `start` on by which `solve` goes.

    Where R is not convex, and no least squares end the work, each `WINDOW` of plain steps ends with a leap to the
    lowest F among: that combination of the window's codes which would move least, were the step an affine map (Anderson
    acceleration, as Bertrand and Massias 2021 have it), and the last move `REACHES` times on, at most to the first
    change of sign.  The first goes where steps contract to, the others away from a saddle, near which steps grow
    slowly.  F never rises, and no sign changes, as a leap that does may end in a worse minimum.
    """

    def __init__(self, c: Floats, D: Floats, R: Penalty, L: float, start: Floats) -> None:
        rule, momentum = how_to_solve(R)
        self.iteration = Iteration(c, D, R, rule, momentum, start, L)
        self.leaps = not (R.convex or R.affine)
        self.window = [self.iteration.z]

    def keep(self, on: NDArray[np.bool_]) -> None:
        """Go on with some of the rows."""
        self.iteration.keep(on)
        self.window = [codes[on] for codes in self.window]

    def advance(self) -> None:
        """Take one step, after a whole window from where it leads."""
        if self.leaps:
            if len(self.window) > WINDOW:
                self.iteration.z = self._leap()
                self.iteration.begin()
                self.window = [self.iteration.z]
            self.iteration.advance()
            self.window.append(self.iteration.z)
        else:
            self.iteration.advance()

    def _leap(self) -> Floats:
        it, z = self.iteration, self.iteration.z
        guess = np.where(z != 0, _anderson(np.stack(self.window, axis=1)), 0)
        held = (np.sign(guess) == np.sign(z)).all(axis=1, keepdims=True)
        best, least = _lower(z, it.objective(), guess, guess @ it.D - it.c, it.R, held)
        move = np.where(z != 0, z - self.window[-2], 0)
        ends = np.where(z * move < 0, -z / np.where(move != 0, move, 1), np.inf)
        first, along = ends.min(axis=1, keepdims=True), move @ it.D
        for reach in REACHES:
            far = np.minimum(reach, first)
            code = np.where(far < ends, z + far * move, 0)
            best, least = _lower(best, least, code, it.r + far * along, it.R)
        return best


def _lower(best: Floats, least: Floats, code: Floats, r: Floats, R: Penalty, may: Any = True) -> tuple[Floats, Floats]:
    """By row the lower of `best`, of objective `least`, and of `code`, of residual r, where it `may`; and its F."""
    F = 0.5 * np.einsum("bd,bd->b", r, r) + R.value(code)
    lower = (least > F)[:, None] & may
    return np.where(lower, code, best), np.where(lower[:, 0], F, least)


def _anderson(path: Floats) -> Floats:
    """The combination of codes 1, 2, ... of each path (B, WINDOW + 1, P) whose moves cancel best, weights of sum 1."""
    moves = np.diff(path, axis=1)
    gram = moves @ moves.mT
    trace = np.trace(gram, axis1=1, axis2=2).clip(min=np.finfo(float).tiny)
    weights = np.linalg.solve(gram / trace[:, None, None] + RIDGE * np.eye(WINDOW), np.ones((len(gram), WINDOW, 1)))
    return np.asarray((weights / weights.sum(axis=1, keepdims=True) * path[:, 1:]).sum(axis=1))


class Iteration:
    """Where the iteration stands on centred rows c (B, d): codes z (B, P), residual D z - c, and what a rule remembers.

    `spent` (B,) counts products with D or D^T: 1 for each gradient, 1 for the residual before it unless z = 0 or a
    trial has already paid for it, and 1 for each trial.
    """

    def __init__(
        self, c: Floats, D: Floats, R: Penalty, rule: StepRule, momentum: str | None, z: Floats, L: float
    ) -> None:
        self.c, self.D, self.R, self.rule, self.momentum, self.L = c, D, R, rule, momentum, L
        self.DT = np.ascontiguousarray(D.T)
        # where only the longest atom moves, no longer step satisfies lem-backtracking
        self.largest = FIRST_TRIAL / float((D.astype(np.float64) ** 2).sum(axis=1).max())
        self.z, self.spent = z, np.zeros(len(c))
        self.begin()

    def begin(self) -> None:
        """Begin at z: no step is known, and no momentum."""
        self.n = 0
        self.r = self.z @ self.D - self.c
        self.y, self.ry = self.z, self.r  # the point where the gradient is taken, and its residual
        self.mu, self.t = np.full(len(self.c), self.largest), np.ones(len(self.c))
        self.owed = self.z.any(axis=1).astype(float)  # the product D z that the next gradient needs; none at z = 0

    def keep(self, on: NDArray[np.bool_]) -> None:
        """Go on with some of the rows."""
        for name in ("c", "z", "r", "y", "ry", "mu", "t", "owed", "spent"):
            setattr(self, name, getattr(self, name)[on])

    def objective(self) -> Floats:
        """F(z) by row."""
        r = self.r.astype(np.result_type(self.r.dtype, np.float32), copy=False)  # half precision adds in float32
        return (0.5 * np.einsum("bd,bd->b", r, r) + self.R.value(self.z)).astype(self.z.dtype, copy=False)

    def advance(self) -> None:
        """One step."""
        D, R, L, y = self.D, self.R, self.L, self.y
        g = self.ry @ self.DT
        self.spent, self.owed = self.spent + self.owed + 1, np.ones_like(self.owed)
        if isinstance(self.rule, GivenStep):
            mu = self.rule.size(self.n, L)
            new = R.prox(y - times(mu, g, L), mu)
        elif isinstance(self.rule, Backtracking):
            new, self.mu, tried = shrink_until_safe(y, g, D, R, self.mu, L)
            self.spent, self.owed = self.spent + tried, (self.mu <= 1 / L).astype(float)
        elif isinstance(self.rule, ExactStep):
            new, tried, self.owed = exact_step(y, g, D, R, self.largest, L)
            self.spent = self.spent + tried
        else:
            new, mu, tried = shrink_until_safe(y, g, D, R, np.full_like(self.mu, self.largest), L)
            size = np.count_nonzero(new, axis=1)
            # the Gram matrix of the support, its right-hand side and its residual, in units of P d multiply-adds
            self.spent = self.spent + tried + (mu <= 1 / L) + size * (size + 2) / len(D)
            self.owed = np.zeros_like(self.owed)
            new = refit(new, self.c, D, R)
        r = new @ D - self.c
        if self.momentum is None:
            self.y, self.ry = new, r
        else:
            move = new - self.z
            if self.momentum == Momentum.RESTART:  # where momentum points uphill
                self.t = np.where(((y - new) * move).sum(axis=1) > 0, 1.0, self.t)
            after = (1 + np.sqrt(1 + 4 * self.t * self.t)) / 2
            beta = ((self.t - 1) / after)[:, None].astype(new.dtype)
            self.y, self.ry, self.t = new + beta * move, r + beta * (r - self.r), after
        self.z, self.r, self.n = new, r, self.n + 1


def times(mu: Any, g: Floats, L: float) -> Floats:
    """mu g, where mu itself may be no number of the dtype of g; mu is one number, or one a row."""
    wide = step_dtype(L, g)
    mu = mu if np.ndim(mu) == 0 else mu[:, None].astype(wide)
    return (mu * g.astype(wide, copy=False)).astype(g.dtype, copy=False)


def squares(a: Floats) -> Floats:
    """||a||^2 of rows in float64."""
    wide = a.astype(np.float64, copy=False)
    with np.errstate(over="ignore"):
        return np.asarray((wide * wide).sum(axis=1))


def fulfils(mu: Floats, dz: Floats, D: Floats) -> NDArray[np.bool_]:
    """By row whether  mu ||D dz||^2 <= ||dz||^2,  as squares that over- or underflow cannot tell."""
    with np.errstate(over="ignore"):
        move, size = mu * squares(dz @ D), squares(dz)
    return (move <= size) & (move < np.inf) & ((size > FAINT) | ~dz.any(axis=1))


def shrink_until_safe(
    z: Floats,
    g: Floats,
    D: Floats,
    R: Penalty,
    mu: Floats,
    L: float,
    known: Callable[[Floats, NDArray[np.int64]], NDArray[np.bool_]] | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Halve mu by row down to 1/L until  mu ||D dz||^2 <= ||dz||^2  (lem-backtracking): codes, mu, products tried.

    `known(codes, rows)` says of which trials this needs no product.
    """
    new, mu, tried, rows = np.empty_like(z), mu.copy(), np.zeros(len(z)), np.arange(len(z))
    while len(rows):
        new[rows] = R.prox(z[rows] - times(mu[rows], g[rows], L), mu[rows])
        if known is not None:
            rows = rows[~known(new[rows], rows)]
        rows = rows[mu[rows] > 1 / L]
        tried[rows] += 1
        rows = rows[~fulfils(mu[rows], new[rows] - z[rows], D)]
        mu[rows] = np.maximum(mu[rows] / 2, 1 / L)
    return new, mu, tried


def exact_step(z: Floats, g: Floats, D: Floats, R: Penalty, largest: float, L: float) -> tuple[Floats, Floats, Floats]:
    """The exact line step on the support (thm-exact-step): codes, products tried, and products owed for D z+.

    Along -h, F is a quadratic with minimiser mu = ||h||^2 / ||D h||^2, for which dz = -mu h fulfils the descent
    inequality with equality.  That holds while R stays affine along the way: while no sign changes for L1, no support
    for the others (with two weights of L0 the inequality holds so too, and F falls).  Elsewhere mu is halved as in
    backtracking.
    """
    face, opened = z, (z != 0).any(axis=1, keepdims=True)
    if not opened.all():  # at z = 0, the support that a step would open
        face = np.where(opened, z, R.prox(z - times(largest, g, L), largest))
    h = np.where(face != 0, g + R.slope(face), 0)
    with np.errstate(all="ignore"):  # atoms that nearly cancel make mu huge, and the trial is then refused
        along = squares(h @ D)
        # what leaves the range of the dtype says nothing: the step is then a `Backtracking` one
        known = (along > float(np.finfo(h.dtype).tiny) ** 2) & (along < np.inf)
        mu = np.where(known, np.maximum(squares(h) / along, 1 / L), largest)  # at least 1/L, but for rounding
    exact = known | ~h.any(axis=1)

    def held(codes: Floats, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        kept = np.sign(codes) == np.sign(face[rows]) if R.convex else (codes != 0) == (face[rows] != 0)
        return np.asarray(exact[rows] & kept.all(axis=1))

    new, mu, tried = shrink_until_safe(z, g, D, R, mu, L, held)
    owed = (mu <= 1 / L) & ~held(new, np.arange(len(z)))
    return new, tried + 1, owed.astype(float)

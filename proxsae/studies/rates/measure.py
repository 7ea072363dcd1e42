"""The rates study: how close ISTA, FISTA, IHT and their linear phase come to what is proved (docs/theory/descent.md).

Half of the problems are random and show how loose a bound is in practice; the others are adversarial and show that it
could not be much tighter, so that a wrong step or a wrong momentum breaks a bound or misses a value known exactly.

    random     unit-norm Gaussian atoms and planted codes
    twins      two equal atoms whose codes cancel: only lam moves them        (thm-ista-rate, thm-fista-rate)
    one mode   one atom, orthogonal to the rest, short enough for momentum to swing
    chain      Nesterov's tridiagonal quadratic, lam = 0; short: 2 t + 1 latents       (thm-fista-rate)
    top atom   a code along the top singular vector of D, lam = 0             (thm-ista-descent)
    dominoes   L0 codes that fire one after the other, each set off by the last        (thm-stationarity-rate)
    slowest    an error along the slowest eigenvector of the support; settled: as it comes   (thm-linear-phase)

Where F* has no closed form it is certified: `measured` takes the whole duality gap on itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from proxsae import theory
from proxsae.certificates import duality_gap, lambda_max, lipschitz
from proxsae.conventions import check_count, check_seed
from proxsae.penalties import L0, L1, KSparse, Penalty
from proxsae.penalties.base import Floats
from proxsae.reference.iteration import ista, solve
from proxsae.steps import FixedStep, Trace

TIMES = (1, 4, 16, 64, 256)
SLACK = 1e-9  # of the bound, for rounding
TIGHT = 1e-6  # relative tolerance of a value that is known exactly
IHT_STEP = 0.9  # times 1/L: the rate of non-convex penalties needs a step below 1/L


@dataclass(frozen=True)
class Rate:
    """One measurement against its theorem.

    problem    the problem, named in this file's first lines
    method     ISTA, FISTA, IHT or linear phase
    statement  label of the theorem
    t          number of steps
    measured   F(z_t) - F* and its certificate; a total descent; a squared step; or an error over that at the start
    theory     what the theorem says about it
    kind       "upper" bound, "lower" bound, or "tight", a value that is known exactly
    """

    problem: str
    method: str
    statement: str
    t: int
    measured: float
    theory: float
    kind: Literal["upper", "tight", "lower"]


def holds(row: Rate) -> bool:
    """Whether the measurement obeys its theorem: bounds up to 1e-9, tight values up to 1e-6, both relative."""
    if row.kind == "tight":
        return abs(row.measured - row.theory) <= TIGHT * abs(row.theory)
    if row.kind == "upper":
        return row.measured <= row.theory + SLACK * abs(row.theory)
    return row.measured >= row.theory - SLACK * abs(row.theory)


def rates(
    seed: int = 0, d: int = 200, times: tuple[int, ...] = TIMES, iteration: Callable[..., Trace] = ista
) -> list[Rate]:
    """Measure every theorem at every t of `times`, on dictionaries of width d with 2 d atoms: about 80 rows, 3 seconds.

    `iteration` is what is judged, a function with the arguments of `proxsae.ista`.  Problems that need more width than
    d for some t leave that t out.  Raises `Error` for a seed below 0, and for d < 8.

    Statements: thm-ista-descent, thm-ista-rate, thm-fista-rate, thm-stationarity-rate, thm-linear-phase.
    """
    check_seed(seed)
    check_count("d", d, 8)
    rng = np.random.default_rng(seed)
    lasso, chained = Lasso.random(rng, d), chain(d, d - 1)
    rows: list[Rate] = []
    for method, momentum, bound in (("ISTA", None, theory.ista_rate), ("FISTA", "fista", theory.fista_rate)):
        statement = f"thm-{method.lower()}-rate"
        for name, problem in (("random", lasso), ("chain", chained)):
            gaps = problem.gaps(iteration, max(times), momentum)
            rows += (
                Rate(name, method, statement, t, gaps[t], bound(problem.L, problem.distance, t), "upper") for t in times
            )
        rows += _twins(rng, d, times, iteration, method, statement)
    rows += _momentum(rng, d, times, iteration)
    rows += _top_atom(rng, d, times, iteration)
    rows += _iht("random", *_planted(rng, d), times, iteration)
    rows += _iht("dominoes", *_dominoes(d), [t for t in times if t <= d], iteration)
    rows += _linear_phase(rng, d, times, iteration)
    order = {method: i for i, method in enumerate(("ISTA", "FISTA", "IHT", "linear phase"))}
    return sorted(rows, key=lambda row: (order[row.method], row.statement, row.kind != "upper"))


# Problems ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lasso:
    """An l1 problem, a point `best` that is optimal up to the duality gap `gap`, and L = ||D||^2."""

    x: Floats
    D: Floats
    R: Penalty
    best: Floats
    gap: float
    L: float

    @classmethod
    def random(cls, rng: np.random.Generator, d: int) -> Lasso:
        """Gaussian x and lam = lambda_max / 50, solved, and solved again in closed form on the support found."""
        x, D = rng.standard_normal(d), _atoms(rng, d)
        R = L1(0.02 * float(lambda_max(x, D)))
        z = solve(x, D, R, tol=1e-6).codes
        (S,) = np.nonzero(z)
        on_support = np.zeros_like(z)
        on_support[S] = np.linalg.solve(D[S] @ D[S].T, D[S] @ x - R.lam * np.sign(z[S]))
        best = min((z, on_support), key=lambda code: float(duality_gap(x, D, code, R)))
        return cls(x, D, R, best, float(duality_gap(x, D, best, R)), lipschitz(D))

    @property
    def distance(self) -> float:
        """||z_0 - z*|| for z_0 = 0."""
        return float(np.linalg.norm(self.best))

    def gaps(self, iteration: Callable[..., Trace], steps: int, momentum: str | None) -> list[float]:
        """F(z_t) - F* from z_0 = 0, at most: the duality gap of `best` is counted as an error of F(z_t)."""
        F = iteration(self.x, self.D, self.R, steps, momentum=momentum).objective
        least = 0.5 * np.sum((self.x - self.best @ self.D) ** 2) + self.R.value(self.best) - self.gap
        return [float(value - least) for value in F]


def chain(d: int, n: int) -> Lasso:
    """Nesterov's quadratic as a lasso with lam = 0: n < d atoms (e_j - e_{j+1}) / 2, the rest zero, and x = e_1 / 2.

    Its best code is z_j = 1 - j / (n + 1), with F* = 1 / (8 (n + 1)); each step of a gradient method opens one latent.
    """
    D = np.zeros((2 * d, d))
    D[:n] = 0.5 * (np.eye(n, d) - np.eye(n, d, k=1))
    best = np.zeros(2 * d)
    best[:n] = 1 - np.arange(1, n + 1) / (n + 1)
    return Lasso(0.5 * np.eye(d)[0], D, L1(0.0), best, 0.0, lipschitz(D))


def _atoms(rng: np.random.Generator, d: int) -> Floats:
    D = rng.standard_normal((2 * d, d))
    return D / np.linalg.norm(D, axis=1, keepdims=True)


def _planted(rng: np.random.Generator, d: int) -> tuple[Floats, Floats, Penalty]:
    """Random unit-norm atoms and a noisy d/20-sparse combination of them, with the penalty that asks for as many."""
    D, k = _atoms(rng, d), max(1, d // 20)
    z = np.zeros(2 * d)
    z[rng.permutation(2 * d)[:k]] = rng.standard_normal(k)
    return z @ D + 0.1 / d**0.5 * rng.standard_normal(d), D, KSparse(k)


def _dominoes(d: int) -> tuple[Floats, Floats, Penalty]:
    """Unit-norm atoms, neighbours at an inner product -c: only the first fires by itself, and each sets off the next.

    The other d atoms are zero.
    """
    c = 1e-3
    D = np.zeros((2 * d, d))
    D[:d] = np.linalg.cholesky(np.eye(d) - c * (np.eye(d, k=1) + np.eye(d, k=-1)))
    step = IHT_STEP / lipschitz(D)
    pull = np.ones(d)  # D x; a neighbour that fires at z = step adds c step to it
    pull[0] += c * step
    return np.linalg.solve(D[:d], pull), D, L0(step / 2 * (1 + c * step / 2) ** 2)


# Measurements --------------------------------------------------------------------------------------------------------


def _twins(
    rng: np.random.Generator, d: int, times: tuple[int, ...], iteration: Callable[..., Trace], method: str, label: str
) -> Iterator[Rate]:
    """Two equal atoms with the codes 1 and -1, x = 0 and lam chosen for t: F* = 0, and F(z_t) is known."""
    D, z0 = _atoms(rng, d), np.zeros(2 * d)
    D[1], z0[0], z0[1] = D[0], 1.0, -1.0
    L, fast = lipschitz(D), method == "FISTA"
    bound, worst = (theory.fista_rate, theory.fista_worst) if fast else (theory.ista_rate, theory.ista_worst)
    for t in times:
        travel = theory.fista_travel(t) if fast else t
        trace = iteration(np.zeros(d), D, L1(L / (2 * travel)), t, momentum="fista" if fast else None, z0=z0)
        value = float(trace.objective[-1])
        yield Rate("twins", method, label, t, value, bound(L, 2**0.5, t), "upper")
        yield Rate("twins", method, label, t, value, worst(L, 2**0.5, t), "tight")


def _momentum(
    rng: np.random.Generator, d: int, times: tuple[int, ...], iteration: Callable[..., Trace]
) -> Iterator[Rate]:
    """FISTA where too much momentum shows, in one mode, and on chains, where no first-order method can be fast."""
    for t in times:
        D, z0 = np.zeros((2 * d, d)), np.eye(2 * d)[0]
        D[1:, 1:] = _atoms(rng, d)[1:, 1:]
        L = lipschitz(D)
        D[0, 0] = 1.84 / (t + 2) * L**0.5  # 1.84 is where the Bessel function J_1 is largest
        value = float(iteration(np.zeros(d), D, L1(0.0), t, momentum="fista", z0=z0).objective[-1])
        yield Rate("one mode", "FISTA", "thm-fista-rate", t, value, theory.fista_rate(L, 1.0, t), "upper")
    for t in times:
        if 2 * t + 2 <= d:
            link = chain(d, 2 * t + 1)
            floor = theory.first_order_floor(link.L, link.distance, t)
            yield Rate("short chain", "FISTA", "thm-fista-rate", t, link.gaps(iteration, t, "fista")[t], floor, "lower")


def _top_atom(
    rng: np.random.Generator, d: int, times: tuple[int, ...], iteration: Callable[..., Trace]
) -> Iterator[Rate]:
    """Steps of 1.5/L along the top singular vector with lam = 0: each descends by exactly the bound."""
    D = _atoms(rng, d)
    L, z0 = lipschitz(D), np.linalg.svd(D)[0][:, 0]
    trace = iteration(np.zeros(d), D, L1(0.0), max(times), step=FixedStep(1.5 / L), z0=z0, keep="all")
    for t, moved in _moved(trace, times):
        drop = float(trace.objective[0] - trace.objective[t])
        bound = theory.ista_descent(L, 1.5 / L, float(moved.sum() ** 0.5), convex=True)
        yield Rate("top atom", "ISTA", "thm-ista-descent", t, drop, bound, "tight")


def _iht(
    problem: str, x: Floats, D: Floats, R: Penalty, times: tuple[int, ...] | list[int], iteration: Callable[..., Trace]
) -> Iterator[Rate]:
    """Total descent and shortest step of IHT from z_0 = 0; what F has fallen by stands in for F(z_0) - inf F."""
    L = lipschitz(D)
    step = IHT_STEP / L
    trace = iteration(x, D, R, max(times), step=FixedStep(step), keep="all")
    for t, moved in _moved(trace, times):
        drop = float(trace.objective[0] - trace.objective[t])
        shortest = theory.stationarity_rate(L, step, drop, t)
        yield Rate(problem, "IHT", "thm-stationarity-rate", t, float(moved.min()), shortest, "upper")
        descent = theory.ista_descent(L, step, float(moved.sum() ** 0.5))
        yield Rate(problem, "IHT", "thm-ista-descent", t, drop, descent, "lower")


def _moved(trace: Trace, times: tuple[int, ...] | list[int]) -> Iterator[tuple[int, Floats]]:
    """For each t the squared lengths of the steps before it."""
    moved = (np.diff(np.array(trace.steps), axis=0) ** 2).sum(axis=1)
    for t in times:
        yield t, moved[:t]


def _linear_phase(
    rng: np.random.Generator, d: int, times: tuple[int, ...], iteration: Callable[..., Trace]
) -> Iterator[Rate]:
    """Errors from a start along the slowest eigenvector (tight), and from z_0 = 0 once the signs stay (upper)."""
    k, D = max(1, d // 20), _atoms(rng, d)
    S = np.sort(rng.permutation(2 * d)[:k])
    best: Floats = np.zeros(2 * d)
    best[S] = rng.choice([-1.0, 1.0], k) * rng.uniform(2, 3, k)
    lam = np.where(best != 0, 0.1, 0.3)  # off the support no step comes near it
    values, vectors = np.linalg.eigh(D[S] @ D[S].T)
    start = best.copy()
    start[S] += 0.1 * vectors[:, np.abs(1 - values / lipschitz(D)).argmax()]
    pull = np.linalg.solve(D[S] @ D[S].T, lam[S] * np.sign(best[S])) @ D[S]  # moves the least squares point to l1's
    tuned: tuple[tuple[str, Floats, Penalty], ...] = (
        ("L1", best @ D + pull, L1(lam)),
        ("KSparse", best @ D, KSparse(k)),
    )
    for name, x, R in tuned:
        codes = np.array(iteration(x, D, R, max(times), z0=start, keep="all").steps)
        yield from _phase(f"slowest, {name}", codes, best, D, times, "tight")
    x, D, few = _planted(rng, d)
    drawn: tuple[tuple[str, Penalty], ...] = (("L1", L1(0.1 * float(lambda_max(x, D)))), ("KSparse", few))
    for name, R in drawn:
        codes = np.array(iteration(x, D, R, 2 * max(times), keep="all").steps)
        (S,) = np.nonzero(codes[-1])
        limit = np.zeros(2 * d)
        limit[S] = np.linalg.solve(D[S] @ D[S].T, D[S] @ x - R.slope(codes[-1])[S])
        unsettled = np.flatnonzero((np.sign(codes) != np.sign(codes[-1])).any(axis=1))
        yield from _phase(f"settled, {name}", codes[unsettled.max(initial=-1) + 1 :], limit, D, times, "upper")


def _phase(
    problem: str, codes: Floats, best: Floats, D: Floats, times: tuple[int, ...], kind: Literal["upper", "tight"]
) -> Iterator[Rate]:
    """Errors of codes whose signs stay, against the rate of their support, as far as rounding lets them be seen."""
    (S,) = np.nonzero(best)
    values = np.linalg.eigvalsh(D[S] @ D[S].T)
    rate = theory.linear_phase_rate(1 / lipschitz(D), float(values[0]), float(values[-1]))
    errors = np.linalg.norm(codes - best, axis=1)
    for t in times:
        if t < len(errors) and rate**t > 1e-7:
            yield Rate(problem, "linear phase", "thm-linear-phase", t, float(errors[t] / errors[0]), rate**t, kind)

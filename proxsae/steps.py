"""What an iteration is told and what it gives back: step rules and results.  Data only; the arithmetic is elsewhere.

`reference/iteration.py` carries the rules out in NumPy, `pytorch/iteration.py` in torch.  Here g = D^T (D z + b - x) is
the gradient of the quadratic part, dz = z+ - z, and mu the step size in  z+ = prox_{mu R}(z - mu g).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from proxsae.conventions import Error
from proxsae.penalties import Penalty

# The first trial step is this much of 1/max_j ||d_j||^2: for a move along that one atom the descent inequality is an
# equality there, and must not hang on rounding.
FIRST_TRIAL = 1 - 2.0**-12
REFIT_RTOL = 1000  # eigenvalues of a support's Gram matrix below this many eps of the largest count as zero


@dataclass(frozen=True)
class Lipschitz:
    """mu = 1/L with L = ||D||^2: the objective never rises, for any penalty (thm-ista-descent)."""


@dataclass(frozen=True)
class FixedStep:
    """The same mu at every step.  Convergence needs mu < 2/L, and a non-convex penalty descends only for mu <= 1/L.

    A mu of 2/L or more raises `Error` when the dictionary is known (thm-ista-descent).  What mu does to a first step
    from 0 is prop-step-scaling.
    """

    mu: float

    def __post_init__(self) -> None:
        if isinstance(self.mu, bool) or not isinstance(self.mu, (int, float)) or not 0 < self.mu < math.inf:
            msg = f"FixedStep: mu={self.mu!r} must be finite and > 0 (thm-ista-descent)"
            raise Error(msg)


@dataclass(frozen=True)
class Backtracking:
    """Per row, the first of mu, mu/2, ... with  mu ||D dz||^2 <= ||dz||^2;  mu starts at 1/max_j ||d_j||^2, never
    rises, and stops at 1/L, where the inequality always holds.  It implies descent for any penalty (lem-backtracking).
    """


@dataclass(frozen=True)
class ExactStep:
    """Per row, the exact line step on the current support, mu = ||h||^2 / ||D h||^2 with h the gradient there.

    Where the support changes, or for L1 a sign, mu is halved down to 1/L until  mu ||D dz||^2 <= ||dz||^2,  so that the
    objective never rises (thm-exact-step; for k-sparse codes NIHT, Blumensath and Davies 2010).
    """


@dataclass(frozen=True)
class Refit:
    """A `Backtracking` step from 1/max_j ||d_j||^2, then least squares on the support it found (thm-refit).

    Where R fixes signs (l1, or `nonneg`) the move towards the least-squares point stops at the first sign change.
    For k-sparse codes this is HTP (Foucart 2011) with a safeguarded step.  It ends what one right support began
    (prop-refit-recovers), and may mend a wrong one (prop-dynamic-range).
    """


@dataclass(frozen=True)
class LearnedSteps:
    """One trained mu per step after the first and, for a penalty with lam, one trained factor of it: SAEs only.

    They start at 1/L and 1.  Nothing holds them there, so no descent is promised (learned ISTA, Gregor and LeCun 2010).
    """


StepRule = Lipschitz | FixedStep | Backtracking | ExactStep | Refit
RULES = {rule.__name__: rule for rule in (Lipschitz, FixedStep, Backtracking, ExactStep, Refit)}


@dataclass(frozen=True)
class Trace:
    """What `ista` returns.

    codes      z_T, shape (..., P)
    objective  F(z_0) ... F(z_T) per row, shape (T+1, ...), with F(z) = 1/2 ||x - b - D z||^2 + R(z)
    products   multiplications by D or D^T spent to reach z_0 ... z_T, per row, shape (T+1, ...); an encoder spends 1
    steps      with keep="all" the tuple (z_0, ..., z_T), else None
    """

    codes: Any
    objective: Any
    products: Any
    steps: tuple[Any, ...] | None


@dataclass(frozen=True)
class Solution:
    """What `solve` returns: codes (..., P) and, per row, the certificate `gap`, `steps` taken and `converged`.

    For L1, gap is the duality gap, and converged means gap <= tol * objective: a proof.  For other penalties gap is the
    fixed-point residual ||z - T(z)|| at step 1/L, and converged means that it and the last move are <= tol * ||z||:
    necessary for an optimum, not sufficient.
    """

    codes: Any
    gap: Any
    steps: Any
    converged: Any


def check_rule(rule: StepRule, momentum: str | None, keep: str, R: Any, L: float) -> None:
    """Raise `Error` for a rule, momentum or keep that is unknown, or whose hypothesis the penalty R or L breaks."""
    if not isinstance(rule, StepRule):
        msg = f"step={rule!r} must be Lipschitz(), FixedStep(mu), Backtracking(), ExactStep() or Refit()"
        raise Error(msg)
    if momentum not in (None, "fista"):
        msg = f"momentum={momentum!r} must be None or 'fista'"
        raise Error(msg)
    if keep not in ("last", "all"):
        msg = f"keep={keep!r} must be 'last' or 'all'"
        raise Error(msg)
    if isinstance(rule, FixedStep) and rule.mu >= 2 / L:
        msg = f"step={rule.mu:g} is not below 2/L={2 / L:.4g}: the iteration diverges (thm-ista-descent)"
        raise Error(msg)
    if isinstance(rule, (ExactStep, Refit)) and not R.affine:
        label = "thm-exact-step" if isinstance(rule, ExactStep) else "thm-refit"
        msg = f"{type(rule).__name__}() needs a penalty that is affine while no sign changes, not {R!r} ({label})"
        raise Error(msg)
    if momentum is None:
        return
    if not R.convex:
        msg = f"momentum='fista' needs a convex penalty, not {R!r} (thm-fista-rate)"
        raise Error(msg)
    if isinstance(rule, (ExactStep, Refit)):
        msg = f"momentum='fista' bars {type(rule).__name__}(): its rate needs steps that never grow (thm-fista-rate)"
        raise Error(msg)
    if isinstance(rule, FixedStep) and rule.mu > 1 / L:
        msg = f"step={rule.mu:g} exceeds 1/L={1 / L:.4g}, and momentum='fista' needs mu <= 1/L (thm-fista-rate)"
        raise Error(msg)


def check_tol(tol: float) -> float:
    """Return tol when it is finite and > 0, else raise `Error`."""
    if isinstance(tol, bool) or not isinstance(tol, (int, float)) or not 0 < tol < math.inf:
        msg = f"tol={tol!r} must be finite and > 0: no certificate reaches 0 in floating point"
        raise Error(msg)
    return float(tol)


def how_to_solve(R: Penalty) -> tuple[StepRule, str | None]:
    """The step rule and momentum of `solve`."""
    if R.convex:
        return Lipschitz(), "restart"
    return (Refit() if R.affine else Lipschitz()), None

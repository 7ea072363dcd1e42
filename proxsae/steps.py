"""Step rules and results as values, with the checks of their hypotheses.

`reference/iteration.py` carries the rules out in NumPy and `pytorch/iteration.py` in torch, each on its own: an oracle
that shared their arithmetic with what it judges would judge nothing.  What a rule needs of R and L stands here, once.
In this file g = D^T (D z + b - x) is the gradient of the quadratic part, dz = z+ - z, and mu the step size in
z+ = prox_{mu R}(z - mu g).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np

from proxsae.conventions import Error, as_number, as_reals, check_number, is_torch, may_look, namespace, shown
from proxsae.penalties import Penalty

# The first trial step is this much of 1/max_j ||d_j||^2: for a move along that one atom the descent inequality is an
# equality there, and must not hang on rounding.
FIRST_TRIAL = 1 - 2.0**-12
WINDOW = 5  # plain steps of `solve` on a non-convex penalty between leaps
REACHES = tuple(4.0**n for n in range(1, 8))  # the multiples of the last move that a leap tries
RIDGE = 1e-10  # of their Gram matrix, of trace 1
REFIT_RTOL = 1000  # eigenvalues of a support's Gram matrix below this many eps of the largest count as zero


class Momentum(StrEnum):
    """Nesterov's extrapolation for a convex R, plain or restarted."""

    FISTA = "fista"  # thm-fista-rate
    RESTART = "restart"  # from t = 1 again where it points uphill (O'Donoghue and Candes 2015)


class Rule:
    """How an encoder goes from code to code: a `StepRule`, or what an SAE has beside those (`learned`)."""


@dataclass(frozen=True)
class StepRule(Rule):
    """A rule for mu, as a frozen value: how it is carried out is for the two iterations.

    affine  the theorem behind it that asks for a penalty which is affine while no sign changes, if one does
    falls   mu never grows from step to step, as momentum needs
    """

    affine: ClassVar[str | None] = None
    falls: ClassVar[bool] = True


class GivenStep(StepRule, ABC):
    """A rule whose mu is known before the step is taken."""

    @abstractmethod
    def size(self, n: int, L: float) -> Any:
        """mu of step n = 0, 1, ..., for L = ||D||^2."""


@dataclass(frozen=True)
class Lipschitz(GivenStep):
    """mu = 1/L with L = ||D||^2: the objective never rises, for any penalty (thm-ista-descent)."""

    def size(self, n: int, L: float) -> float:
        """1/L."""
        return 1 / L


@dataclass(frozen=True)
class FixedStep(GivenStep):
    """The same mu at every step.  Convergence needs mu < 2/L, and a non-convex penalty descends only for mu <= 1/L.

    mu: a number, or in torch a tensor without axes, through which gradients flow.  `ista(..., step=0.05)` is short for
    `step=FixedStep(0.05)`.  A mu of 2/L or more raises `Error` when the dictionary is known (thm-ista-descent).  What
    mu does to a first step from 0 is prop-step-scaling.

    >>> FixedStep(np.float32(0.5))
    FixedStep(mu=0.5)
    """

    mu: Any

    def __post_init__(self) -> None:
        learned = is_torch(self.mu) and self.mu.is_floating_point()
        mu = self.mu.detach() if learned else self.mu
        number = check_number("FixedStep: mu", mu, "> 0", ", one number (thm-ista-descent)")
        if not learned:
            object.__setattr__(self, "mu", number)

    def size(self, n: int, L: float) -> Any:
        """mu."""
        return self.mu


_EACH = ": one number per iteration (thm-ista-descent)"


@dataclass(frozen=True, eq=False)
class StepSizes(GivenStep):
    """One mu per step, mu_0 ... mu_{T-1}, each below 2/L: what `ista(..., step=[0.2, 0.1, 0.05])` is short for.

    mu: a list, an array (T,), or in torch a tensor (T,), through which gradients flow: learned step sizes.  For `ista`
    only; an SAE trains its step sizes by `LearnedSteps()`.  A non-convex penalty descends only where mu_t <= 1/L.
    """

    mu: Any

    falls = False

    def __post_init__(self) -> None:
        for n, mu in enumerate(self.mu if isinstance(self.mu, (list, tuple)) else ()):
            if is_torch(mu) and mu.requires_grad:
                msg = f"step[{n}] is a tensor: give all as one tensor, torch.stack([...]), so that each is learned"
                raise Error(msg)
            check_number(f"step[{n}]", mu, "> 0", _EACH)
        given = as_reals("step", self.mu)
        if given.ndim != 1:
            msg = f"step has shape {tuple(given.shape)}, but must be one number, or one per iteration: shape (steps,)"
            raise Error(msg)
        sizes = tuple(check_number(f"step[{n}]", mu, "> 0", _EACH) for n, mu in enumerate(given.tolist()))
        object.__setattr__(self, "mu", given if is_torch(self.mu) else sizes)

    def size(self, n: int, L: float) -> Any:
        """mu_n."""
        return self.mu[n]


@dataclass(frozen=True)
class Backtracking(StepRule):
    """Per row, the first of mu, mu/2, ... with  mu ||D dz||^2 <= ||dz||^2;  mu starts at 1/max_j ||d_j||^2, never
    rises, and stops at 1/L, where the inequality always holds.  It implies descent for any penalty (lem-backtracking).
    """


@dataclass(frozen=True)
class ExactStep(StepRule):
    """Per row, the exact line step on the current support, mu = ||h||^2 / ||D h||^2 with h the gradient there.

    Where the support changes, or for L1 a sign, mu is halved down to 1/L until  mu ||D dz||^2 <= ||dz||^2,  so that the
    objective never rises (thm-exact-step; for k-sparse codes NIHT, Blumensath and Davies 2010).
    """

    affine = "thm-exact-step"
    falls = False


@dataclass(frozen=True)
class Refit(StepRule):
    """A `Backtracking` step from 1/max_j ||d_j||^2, then least squares on the support it found (thm-refit).

    Where R fixes signs (l1, or `nonneg`) the move towards the least-squares point stops at the first sign change.
    For k-sparse codes this is HTP (Foucart 2011) with a safeguarded step.  It ends what one right support began
    (prop-refit-recovers), and may mend a wrong one (prop-dynamic-range).
    """

    affine = "thm-refit"
    falls = False


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
    """What `solve` returns: codes (..., P) and, per row, `gap`, `steps`, `converged` and `at_rounding`.

    For L1, gap is the duality gap in float64, raised as in `duality_gap`: an upper bound on F - F* whatever was
    rounded, and converged means gap <= tol * objective, a proof.  For other penalties gap is the fixed-point residual
    ||z - T(z)|| at step 1/L, and converged means that it and the last move are <= tol * ||z||: necessary for an
    optimum, not sufficient.

    at_rounding marks rows that have not converged although the code, before it was rounded to the dtype of x, was good
    enough but for rounding: more steps cannot help, a larger tol or a wider dtype can.
    """

    codes: Any
    gap: Any
    steps: Any
    converged: Any
    at_rounding: Any


def as_rule(step: Any, x: Any) -> StepRule:
    """The step rule that `ista` was given for x: a number stands for `FixedStep`, several for `StepSizes`.

    Raises `Error` for what is none of these, for learned and greedy rules, and for a tensor beside NumPy arrays.
    """
    if isinstance(step, Rule) and not isinstance(step, StepRule):
        msg = (
            f"step={step!r} is for px.SAE and px.Unrolled: give ista a tensor (steps,) that requires grad, one mu per "
        )
        msg += "step"
        raise Error(msg)
    rule = step
    if (is_torch(step) and not step.ndim) or as_number(step) is not None:
        rule = FixedStep(step)
    elif is_torch(step) or isinstance(step, (list, tuple, np.ndarray)):
        rule = StepSizes(step)
    if isinstance(rule, FixedStep) and not (is_torch(x) or (is_torch(rule.mu) and rule.mu.requires_grad)):
        return FixedStep(as_number(rule.mu))
    if is_torch(getattr(rule, "mu", None)) and not is_torch(x):
        msg = "step is a torch tensor, but x is a numpy array: give numbers, or all of x, D and step as tensors"
        raise Error(msg)
    return rule


def check_rule(rule: StepRule, momentum: str | None, keep: str, R: Any, least: float, steps: int | None = None) -> None:
    """Raise `Error` for a rule, momentum or keep that is unknown, or whose hypothesis the penalty R or L breaks.

    `least` is the least that L = ||D||^2 may be (`certificates.squared_norm`): a step size that is right is not refused
    for how L was rounded.  `steps` is their number in `ista`, and None in an SAE, which trains its step sizes by
    `LearnedSteps` alone.
    """
    if not isinstance(rule, StepRule):
        rules = "Lipschitz(), FixedStep(mu), Backtracking(), ExactStep() or Refit()"
        msg = f"step={shown(rule)} must be {rules}" + ("" if steps is None else ", a number, or one number per step")
        raise Error(msg)
    if not (momentum is None or (isinstance(momentum, str) and momentum in tuple(Momentum))):
        msg = f"momentum={shown(momentum)} must be None, 'fista' or 'restart'"
        raise Error(msg)
    if not (isinstance(keep, str) and keep in ("last", "all")):
        msg = f"keep={shown(keep)} must be 'last' or 'all'"
        raise Error(msg)
    sizes = _sizes(rule, steps)
    for name, mu in sizes.items():
        if mu * least >= 2:
            size, bound = _apart(mu, 2 / least)
            msg = f"{name}={size} is not below 2/L={bound}, and may diverge: give Lipschitz() (thm-ista-descent)"
            raise Error(msg)
    if rule.affine and not R.affine:
        msg = f"{type(rule).__name__}() needs a penalty that is affine while no sign changes, not {R!r} ({rule.affine})"
        raise Error(msg)
    if momentum is None:
        return
    given = f"momentum={str(momentum)!r}"
    if not R.convex:
        msg = f"{given} needs a convex penalty, not {R!r} (thm-fista-rate)"
        raise Error(msg)
    if not rule.falls:
        msg = f"{given} bars {type(rule).__name__}(): its rate needs steps that never grow (thm-fista-rate)"
        raise Error(msg)
    for name, mu in sizes.items():
        if mu * least > 1:
            size, bound = _apart(mu, 1 / least)
            msg = f"{name}={size} exceeds 1/L={bound}, and {given} needs mu <= 1/L: give Lipschitz() (thm-fista-rate)"
            raise Error(msg)


def _apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers with as many digits as tell them apart."""
    return next((one, other) for n in (4, 8, 12, 17) if (one := f"{a:.{n}g}") != (other := f"{b:.{n}g}") or n == 17)


def _sizes(rule: StepRule, steps: int | None) -> dict[str, float]:
    """The step sizes that a user gave, each with its name in a message."""
    if not isinstance(rule, (FixedStep, StepSizes)):
        return {}
    if steps is None and (is_torch(rule.mu) or isinstance(rule, StepSizes)):
        msg = f"step={rule!r} is for ista: an SAE takes one number, or trains one mu per step by LearnedSteps()"
        raise Error(msg)
    mu: Any = rule.mu.tolist() if is_torch(rule.mu) else rule.mu
    if isinstance(rule, FixedStep):
        return {"step": mu}
    if len(mu) != steps:
        msg = f"step holds {len(mu)} step sizes, but steps={steps} needs one each"
        raise Error(msg)
    return {f"step[{n}]": one for n, one in enumerate(mu)}


def step_dtype(L: float, a: Any) -> Any:
    """The dtype in which mu g is worked out for g of the dtype of `a`: its own, but float32 for half precision.

    It is float64 where mu, which is 1/L or some times that, could leave the range of float32.
    """
    xp = namespace(a)
    return xp.promote_types(a.dtype, xp.float32 if 2.0**-100 < L < 2.0**100 else xp.float64)


def check_reached(codes: Any) -> None:
    """Raise `Error` where codes have left the range of their dtype on the way."""
    bad = ~namespace(codes).isfinite(codes)
    if may_look(codes) and bool(bad.any()):
        dtype = str(codes.dtype).removeprefix("torch.")
        wider = "" if dtype == "float64" else ", or give all in float64"
        msg = f"{int(bad.sum())} entries of the codes left the range of {dtype}, and def-ista is about numbers: rescale"
        msg += f" x, D and lam{wider}"
        raise Error(msg)


def check_tol(tol: float) -> float:
    """Return tol when it is finite and > 0, else raise `Error`."""
    return check_number("tol", tol, "> 0", ": no certificate reaches 0 in floating point")


def how_to_solve(R: Penalty) -> tuple[StepRule, str | None]:
    """The step rule and momentum of `solve`."""
    if R.convex:
        return Lipschitz(), Momentum.RESTART
    return (Refit() if R.affine else Lipschitz()), None

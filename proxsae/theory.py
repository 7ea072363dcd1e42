"""Bounds and thresholds: a theorem is a function of its parameters, named by its statement."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

from proxsae.conventions import check_count, check_number

F = TypeVar("F", bound=Callable[..., float])


EIGENVALUES = ("smallest", "largest")  # which rounding may leave below 0


def _of_numbers(function: F) -> F:
    """Check the arguments of a bound: t and sizes are whole numbers >= 1, eigenvalues numbers, the others >= 0."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> float:
        given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            if signature.parameters[name].annotation == "int":
                given[name] = check_count(name, value, 1)
            elif name != "convex":
                least = "> 0" if name in ("L", "step") else "> -inf" if name in EIGENVALUES else ">= 0"
                given[name] = check_number(name, value, least)
        return function(**given)

    return checked  # type: ignore[return-value]


@_of_numbers
def ista_descent(L: float, step: float, move: float, convex: bool = False) -> float:
    """Lower bound on F(z) - F(T z), where T moves z by `move` = ||T z - z||:  (1/mu - L)/2 move^2  for any R.

    For a convex R it is  (1/mu - L/2) move^2.  Both are attained; they are negative for mu > 1/L and mu > 2/L.
    Statement: thm-ista-descent (Beck 2017, Lemma 10.4, for convex R).
    """
    return (1 / step - L / 2 if convex else (1 / step - L) / 2) * move**2


@_of_numbers
def ista_rate(L: float, distance: float, t: int) -> float:
    """Upper bound on F(z_t) - F* for convex R and mu = 1/L:  L ||z_0 - z*||^2 / (2 t).

    Statement: thm-ista-rate (Beck and Teboulle 2009, Theorem 3.1).  `distance` is ||z_0 - z*||, t >= 1.
    For a smaller step mu put 1/mu in the place of L.
    """
    return L * distance**2 / (2 * t)


@_of_numbers
def ista_worst(L: float, distance: float, t: int) -> float:
    """What F(z_t) - F* is for ISTA on a lasso chosen for t:  L ||z_0 - z*||^2 / (4 t),  half of `ista_rate`.

    Two equal atoms with opposite codes, lam = L |z_0j| / (2 t).  Statement: thm-ista-rate (own; the exact worst case of
    convex problems has the same value, Taylor, Hendrickx and Glineur 2017).
    """
    return L * distance**2 / (4 * t)


@_of_numbers
def fista_rate(L: float, distance: float, t: int) -> float:
    """Upper bound on F(z_t) - F* for convex R, mu = 1/L and FISTA momentum:  2 L ||z_0 - z*||^2 / (t + 1)^2.

    Statement: thm-fista-rate (Beck and Teboulle 2009, Theorem 4.4).  `distance` is ||z_0 - z*||, t >= 1.
    For a smaller step mu put 1/mu in the place of L.
    """
    return 2 * L * distance**2 / (t + 1) ** 2


@_of_numbers
def fista_worst(L: float, distance: float, t: int) -> float:
    """What F(z_t) - F* is for FISTA on a lasso chosen for t:  L ||z_0 - z*||^2 / (4 A_t),  A_t = `fista_travel`(t).

    Two equal atoms with opposite codes, lam = L |z_0j| / (2 A_t).  It tends to `fista_rate`: that bound is sharp.
    Statement: thm-fista-rate (own; after the one-dimensional worst cases of Taylor, Hendrickx and Glineur 2017).
    """
    return L * distance**2 / (4 * fista_travel(t))


@_of_numbers
def fista_travel(t: int) -> float:
    """How many plain steps t FISTA steps are worth under a constant slope:  A_t = (tau_1^3 + ... + tau_t^3) / tau_t^2.

    tau_1 = 1 and tau_(k+1) = (1 + sqrt(1 + 4 tau_k^2)) / 2, so that A_t ~ t^2 / 8.  Statement: thm-fista-rate (own).
    """
    number, cubes = 1.0, 1.0
    for _ in range(t - 1):
        number = (1 + (1 + 4 * number**2) ** 0.5) / 2
        cubes += number**3
    return cubes / number**2


@_of_numbers
def first_order_floor(L: float, distance: float, t: int) -> float:
    """Lower bound on F(z_t) - F* of every first-order method on one quadratic:  3 L ||z_0 - z*||^2 / (32 (t + 1)^2).

    The quadratic is a lasso with lam = 0 on a chain of 2 t + 1 latents; it needs d_in >= 2 t + 2.
    Statement: thm-fista-rate (Nesterov 2004, Theorem 2.1.7).
    """
    return 3 * L * distance**2 / (32 * (t + 1) ** 2)


@_of_numbers
def stationarity_rate(L: float, step: float, drop: float, t: int, convex: bool = False) -> float:
    """Upper bound on min_{s<t} ||z_{s+1} - z_s||^2 for any R and mu < 1/L:  2 drop / ((1/mu - L) t).

    `drop` is F(z_0) - F(z_t), or F(z_0) - inf F, which is larger.  For a convex R and mu < 2/L the bound is
    drop / ((1/mu - L/2) t).  A longer step has no bound: infinity.
    Statement: thm-stationarity-rate (telescoped thm-ista-descent; Beck 2017, chapter 10).
    """
    least = ista_descent(L, step, 1.0, convex)
    return drop / (least * t) if least > 0 else math.inf


@_of_numbers
def linear_phase_rate(step: float, smallest: float, largest: float) -> float:
    """Factor by which a step shrinks the error while the sign pattern stays:  max(|1 - mu s|, |1 - mu l|).

    s and l are the smallest and largest eigenvalue of D_S^T D_S on the support S.  It is attained along their vectors.
    Statement: thm-linear-phase (Bredies and Lorenz 2008; Tao, Boley and Zhang 2016).
    """
    return max(abs(1 - step * smallest), abs(1 - step * largest))


@_of_numbers
def lipschitz_floor(d_in: int, d_sae: int) -> float:
    """Lower bound on L = ||D||^2 for unit-norm atoms:  max(1, d_sae / d_in).

    Tight frames reach it where d_sae >= d_in, and orthonormal atoms where d_sae <= d_in.

    So a step mu = 1 on an expanding unit-norm dictionary (d_sae >= 2 d_in) is never below 2/L.
    Statement: prop-lipschitz-floor (trace of the Gram matrix).
    """
    return max(1.0, d_sae / d_in)


@_of_numbers
def one_step_sparsity(coherence: float, dynamic_range: float) -> float:
    """The k below which one step of k-sparse thresholding finds the support:  (1 + 1 / (coherence * range)) / 2.

    Unit-norm atoms, no noise; `dynamic_range` is max |z| / min |z| over the support, at least 1.
    Statement: thm-one-step-support (Tropp 2004; Donoho and Elad 2003).
    """
    return 0.5 * (1 + 1 / (coherence * dynamic_range)) if coherence else math.inf


@_of_numbers
def alista_rate(coherence: float, k: int, step: float, largest: float, t: int) -> float:
    """Upper bound on ||z_t - z*||_1 for layers of ALISTA:  k B q^t,  q = |1 - mu| + mu m (2 k - 1).

    x - b = D z*, at most k entries z*_j != 0, |z*_j| <= B = `largest`; m = `coherence` is max_{j != i} |w_i^T d_j| of
    the weights W, and the thresholds are those of `alista_threshold`.  It falls if k < (1 + 1/m) / 2 and
    mu < 2 / (1 + m (2 k - 1)), fastest at mu = 1; for mu <= 1 it is attained.
    Statement: thm-alista-rate (Liu, Chen, Wang and Yin 2019).
    """
    return k * largest * (abs(1 - step) + step * coherence * (2 * k - 1)) ** t


@_of_numbers
def alista_threshold(coherence: float, k: int, step: float, largest: float, t: int) -> float:
    """The threshold of layer t = 1, 2, ... of ALISTA with no false support:  mu m k B q^(t - 1),  as in `alista_rate`.

    Statement: thm-alista-rate.
    """
    bound = k * largest if t == 1 else alista_rate(coherence, k, step, largest, t - 1)
    return step * coherence * bound


@_of_numbers
def coupling_defect(before: float, after: float, norm: float, largest: float) -> float:
    """Upper bound on |S + W D - I|, entry by entry, in a layer z+ = soft(S z + W x, theta):  4 eta / B.

    eta = after + norm * before, where `before` and `after` are the largest errors |z_j - z*_j| ahead of the layer and
    behind it, over the codes z* with one or two entries that are B = `largest` or B/2, and norm = max_i sum_j |S_ij|.
    It is infinite where after >= B/2: a layer that is so wrong can have any weights.  Then theta <= 3 eta as well.
    Statement: thm-coupling-is-necessary (the limit: Chen, Liu, Wang and Yin 2018).
    """
    return 4 * (after + norm * before) / largest if after < largest / 2 else math.inf

"""Bounds and thresholds: a theorem is a function of its parameters, named by its statement."""

from __future__ import annotations


def ista_rate(L: float, distance: float, t: int) -> float:
    """Upper bound on F(z_t) - F* for convex R and mu = 1/L:  L ||z_0 - z*||^2 / (2 t).

    Statement: thm-ista-rate (Beck and Teboulle 2009, Theorem 3.1).  `distance` is ||z_0 - z*||, t >= 1.
    """
    return L * distance**2 / (2 * t)


def fista_rate(L: float, distance: float, t: int) -> float:
    """Upper bound on F(z_t) - F* for convex R, mu = 1/L and FISTA momentum:  2 L ||z_0 - z*||^2 / (t + 1)^2.

    Statement: thm-fista-rate (Beck and Teboulle 2009, Theorem 4.4).  `distance` is ||z_0 - z*||, t >= 1.
    """
    return 2 * L * distance**2 / (t + 1) ** 2


def lipschitz_floor(d_in: int, d_sae: int) -> float:
    """Lower bound on L = ||D||^2 for unit-norm atoms:  d_sae / d_in, reached by tight frames.

    So a step mu = 1 on an expanding unit-norm dictionary (d_sae >= 2 d_in) is never below 2/L.
    Statement: prop-lipschitz-floor (trace of the Gram matrix).
    """
    return d_sae / d_in


def one_step_sparsity(coherence: float, dynamic_range: float) -> float:
    """The k below which one step of k-sparse thresholding finds the support:  (1 + 1 / (coherence * range)) / 2.

    Unit-norm atoms, no noise; `dynamic_range` is max |z| / min |z| over the support, at least 1.
    Statement: thm-one-step-support (Tropp 2004; Donoho and Elad 2003).
    """
    return 0.5 * (1 + 1 / (coherence * dynamic_range))

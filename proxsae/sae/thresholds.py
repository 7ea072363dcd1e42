"""Selections become thresholds: what a selection keeps last, on average, is a threshold that asks no other entry.

k-sparse       z_t = H_k(u_t)                        theta_t = mean over rows of the smallest |z_t| that is kept
by thresholds  z_t = u_t where |u_t| > theta_t       of an L0 whose lam has a factor in each step (thm-prox-l0)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proxsae.certificates import lipschitz
from proxsae.conventions import Error
from proxsae.learned import LearnedSteps
from proxsae.penalties import L0, BatchKSparse, KSparse
from proxsae.sae.encoding import Encoding
from proxsae.steps import FixedStep, Lipschitz


def of_batches(sae: Any) -> Any:
    """The twin of a trained one-step `BatchKSparse` SAE with L0 at the threshold that its training found."""
    R = sae.common.penalty
    if sae.steps > 1:
        msg = f"steps={sae.steps} have no common threshold, since that of L0 goes with mu: unrolled(1) has one"
        raise Error(msg)
    if not isinstance(R, BatchKSparse) or not bool(sae.batch_threshold >= 0):
        msg = f"{type(R).__name__} has no threshold: only training with BatchKSparse leaves one, and KSparse needs rows"
        raise Error(msg)
    return _with_threshold(sae, sae.batch_threshold.detach().to(torch.float64), Encoding())


@torch.no_grad()
def of_rows(sae: Any, rows: Any) -> Any:
    """The twin of a k-sparse SAE with L0, at thresholds that keep on average as much in each step on these rows."""
    R, rule = sae.common.penalty, sae.step
    if not isinstance(R, KSparse) or (sae.steps > 1 and not isinstance(rule, (Lipschitz, FixedStep, LearnedSteps))):
        msg = f"{R!r} with step={rule!r} has no threshold a step: rows are for KSparse with steps of given sizes"
        raise Error(msg)
    found = torch.stack([_least(point.z) for point in sae.walk(sae.rows(rows))])
    if not bool((found > 0).all() & found.isfinite().all()):
        msg = f"k={R.k} keeps no entry on these rows, or all, so that there is no threshold between: give other rows"
        raise Error(msg)
    twin = _with_threshold(sae, found[0], Encoding(sae.steps, LearnedSteps()) if sae.steps > 1 else Encoding())
    if sae.steps > 1:
        mu = found.new_full((sae.steps - 1,), rule.mu if isinstance(rule, FixedStep) else 1 / lipschitz(sae.W_dec))
        log_mu = sae.log_step.double() if isinstance(rule, LearnedSteps) else mu.log()
        twin.set_weight("log_step", log_mu)  # lam = theta_1^2 / 2, and mu lam times the factor is theta_t^2 / 2
        twin.set_weight("log_lam_factor", 2 * (found[1:] / found[0]).log() - log_mu)
    return twin


def _with_threshold(sae: Any, theta: Tensor, encoding: Encoding) -> Any:
    R = sae.common.penalty
    whole = theta.to(sae.W_dec).expand(sae.d_sae).clone()
    twin = sae.twin(penalty=L0(float(theta.square() / 2), nonneg=R.nonneg), encoding=encoding)
    twin.set_weight("threshold", whole)
    return twin


def _least(z: Tensor) -> Tensor:
    """The mean over rows of the smallest magnitude that a row keeps; rows that keep none are left out."""
    sizes = z.abs().double()
    least = torch.where(sizes > 0, sizes, torch.inf).amin(dim=1)
    return least[least < torch.inf].mean()

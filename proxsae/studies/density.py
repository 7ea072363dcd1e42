"""The same SAE at another density: lam changed at inference, so that codes of unequal density are never compared.

An SAE that was trained to k non-zeros in one step has another number of them after more steps.  A denser code of the
same dictionary has less error whatever the steps, so that lam is set anew for every number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from proxsae.metrics import l0
from proxsae.penalties import L0
from proxsae.penalties.base import lams, with_lams
from proxsae.sae import SAE
from proxsae.sae.parameters import THRESHOLDS

NEAR = 0.01  # relative distance of L0 at which the search is over
FINE = 0.01  # of log lam, to which it goes on otherwise
WIDEST = 8.0  # of |log lam|, beyond which no lam gives that density
MOST = 512  # rows on which a density is matched, where there are as many


def with_lam(sae: SAE, factor: float) -> SAE:
    """The same weights with lam times `factor`; for L0, theta = sqrt(2 lam) times its root.  k-sparse ones stay."""
    R: Any = sae.penalty
    if isinstance(R, L0):
        root = math.sqrt(factor)
        return sae.twin(weights={name: theta.detach() * root for name, theta in _thresholds(sae).items()})
    return sae.twin(penalty=with_lams(R, lambda lam: lam * factor)) if hasattr(R, "lam") else sae.twin()


def _thresholds(sae: SAE) -> dict[str, Tensor]:
    """The thresholds of an L0 SAE by name, one for each side that has a weight of its own."""
    return {name: getattr(sae, name) for name in THRESHOLDS.values() if hasattr(sae, name)}


def sample(x: Tensor) -> Tensor:
    """The rows of x (n, d) on which densities are matched: the first 512.

    They may be the held-out rows that are measured: one number, lam, is fitted to them, and not the error.
    """
    return x[:MOST]


@torch.no_grad()
def matched(
    sae: SAE, x: Tensor, k: float, start: float = 1.0, codes: Callable[[SAE, Tensor], Tensor] = SAE.encode
) -> tuple[SAE, float]:
    """The SAE whose lam gives k non-zeros a row, on average over the rows x (n, d_in), and the factor of lam.

    Codes are those of all `sae.steps` steps, or what `codes` makes of an SAE and rows.  The factor is found by Brent's
    method in log lam, from the factor `start`, to 1 %; where no lam gives k, it is that of the nearest density.  An SAE
    without a lam > 0 is returned as it is, with factor 1: k-sparse ones have none, and a factor changes no lam of 0.
    """
    if not any(bool((torch.as_tensor(lam) > 0).any()) for lam in lams(sae.penalty).values()):
        return sae, 1.0

    def excess(log_factor: float) -> float:
        found = l0(codes(with_lam(sae, math.exp(log_factor)), x)) / k - 1
        return 0.0 if abs(found) < NEAR else found

    near = math.log(start)
    best = math.exp(_root(excess, near if abs(near) < WIDEST else 0.0))
    return with_lam(sae, best), best


def _root(excess: Callable[[float], float], near: float) -> float:
    """The place where the decreasing function `excess` is 0, or where it is nearest to 0."""
    known: dict[float, float] = {}

    def at(place: float) -> float:
        if place not in known:
            known[place] = excess(place)
        return known[place]

    step = math.copysign(0.1, at(near))
    far = near
    while at(far) * at(near) > 0:
        if abs(far) > WIDEST:
            return far
        near, far = far, far + step
        step *= 2
    return float(brentq(at, near, far, xtol=FINE)) if near != far else near

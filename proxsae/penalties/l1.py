"""The l1 penalty: soft thresholding.  With `nonneg` it is the ReLU SAE.

R(z) = sum_i lam_i |z_i|,   lam_i >= 0
prox_{mu R}(u)_i = sign(u_i) max(|u_i| - mu lam_i, 0)                                        (thm-prox-l1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from proxsae.penalties.base import Floats, Penalty, check_lam, rounded


@dataclass(frozen=True, eq=False)
class L1(Penalty):
    """lam ||z||_1, whose prox shrinks by step * lam: the soft-threshold SAE, and with `nonneg` the ReLU SAE.

    lam: one number >= 0, or one per latent, shape (P,); a torch tensor stays one, and carries gradients.
    Statement: thm-prox-l1 (Beck 2017, Example 6.8; Zhu, Khalili and Zhu 2025, Lemma 1).

    >>> L1(lam=1.0).prox(np.array([3.0, -0.5, -2.0]), step=0.5)
    array([ 2.5,  0. , -1.5])
    """

    lam: Any
    nonneg: bool = False

    convex = True
    separable = True
    indicator = False
    statement = "thm-prox-l1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", check_lam("L1", self.lam))

    def _value(self, z: Floats) -> Floats:
        return (self.lam * np.abs(z)).sum(axis=-1)

    def _prox(self, u: Floats, step: float | Floats) -> Floats:
        t = rounded(step * self.lam, u)
        with np.errstate(invalid="ignore"):  # infinity minus an infinite threshold, in a branch not taken
            shrunk = u - np.copysign(t, u)
        return np.where(np.abs(u) > t, shrunk, np.where(np.isnan(u), u, u.dtype.type(0)))

    def _slope(self, z: Floats) -> Floats:
        return (self.lam * np.sign(z)).astype(z.dtype)

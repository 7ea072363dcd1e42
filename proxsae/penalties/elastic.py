"""The elastic net: soft thresholding, then a shrinkage of what is kept.

R(z) = sum_i lam_i |z_i| + alpha/2 z_i^2,   lam_i >= 0, alpha >= 0
prox_{mu R}(u)_i = sign(u_i) max(|u_i| - mu lam_i, 0) / (1 + mu alpha)                       (thm-prox-elastic)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from proxsae.penalties.scalar import Separable


@dataclass(frozen=True, eq=False)
class ElasticNet(Separable):
    """lam ||z||_1 + alpha/2 ||z||^2, whose prox shrinks by step * lam and divides by 1 + step * alpha.

    lam: one number in [0, inf], or one per latent, shape (P,); alpha: one number >= 0.
    alpha = 0 is L1; lam = 0 is ridge.
    Statement: thm-prox-elastic (Zou and Hastie 2005; Parikh and Boyd 2014, section 6.5.3).

    >>> import numpy as np
    >>> ElasticNet(lam=1.0, alpha=1.0).prox(np.array([3.0, -0.5, -2.0]))
    array([ 1. ,  0. , -0.5])
    """

    lam: Any
    alpha: float
    nonneg: bool = False

    convex = True
    statement = "thm-prox-elastic"
    domain: ClassVar = {"lam": ">= 0 per latent", "alpha": ">= 0"}

    @staticmethod
    def entry_value(o: Any, z: Any, lam: Any, alpha: Any) -> Any:
        """lam |z| + alpha/2 z^2."""
        return lam * o.abs(z) + alpha / 2 * (z * z)

    @staticmethod
    def entry_prox(o: Any, u: Any, mu: Any, lam: Any, alpha: Any) -> Any:
        """Soft thresholding at mu lam, divided by 1 + mu alpha; + 0 so that an underflow is not -0.0."""
        return o.rounded(o.wide(o.soft(u, o.rounded(mu * lam))) / (1 + mu * alpha)) + 0

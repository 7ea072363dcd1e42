"""The l1 penalty: soft thresholding.  With `nonneg` it is the ReLU SAE.

R(z) = sum_i lam_i |z_i|,   lam_i >= 0
prox_{mu R}(u)_i = sign(u_i) max(|u_i| - mu lam_i, 0)                                        (thm-prox-l1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from proxsae.penalties.base import Floats, lam_at
from proxsae.penalties.scalar import Separable


@dataclass(frozen=True, eq=False)
class L1(Separable):
    """lam ||z||_1, whose prox shrinks by step * lam: the soft-threshold SAE, and with `nonneg` the ReLU SAE.

    lam: one number in [0, inf], or one per latent, shape (P,); a torch tensor stays one, and carries gradients.
    Statement: thm-prox-l1 (Beck 2017, Example 6.8; Zhu, Khalili and Zhu 2025, Lemma 1).

    >>> import numpy as np
    >>> L1(lam=1.0).prox(np.array([3.0, -0.5, -2.0]), step=0.5)
    array([ 2.5,  0. , -1.5])
    """

    lam: Any
    nonneg: bool = False

    convex = True
    affine = True
    many_passes = False
    statement = "thm-prox-l1"
    domain: ClassVar = {"lam": ">= 0 per latent"}

    @staticmethod
    def entry_value(o: Any, z: Any, lam: Any) -> Any:
        """lam |z|."""
        return lam * o.abs(z)

    @staticmethod
    def entry_prox(o: Any, u: Any, mu: Any, lam: Any) -> Any:
        """Soft thresholding at mu lam."""
        return o.soft(u, o.rounded(mu * lam))

    def _slope(self, z: Floats) -> Floats:
        return (lam_at(self.lam, z) * np.sign(z)).astype(z.dtype)

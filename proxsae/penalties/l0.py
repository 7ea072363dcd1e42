"""The l0 penalty: hard thresholding.  With `nonneg` it is the JumpReLU SAE.

    R(z) = sum_i lam_i 1[z_i != 0],   lam_i >= 0
    prox_{mu R}(u)_i = u_i if |u_i| > sqrt(2 mu lam_i), else 0                                   (thm-prox-l0)

At |u_i| = sqrt(2 mu lam_i) both 0 and u_i are minimisers; by convention the prox is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from proxsae.penalties.domain import check_parameter
from proxsae.penalties.scalar import Separable


@dataclass(frozen=True, eq=False)
class L0(Separable):
    """lam ||z||_0, whose prox keeps |u| > sqrt(2 step lam): two-sided JumpReLU, and with `nonneg` the JumpReLU SAE.

    lam: one number in [0, inf], or one per latent, shape (P,); a trained threshold theta is lam = theta^2 / 2.
    bandwidth: width of the rectangle kernel through which a *tensor* lam gets its gradient.  The true derivative is
    zero almost everywhere, so this is a modelling choice (prop-threshold-gradient; Rajamanoharan et al. 2024); values
    never depend on it.
    Statement: thm-prox-l0 (Beck 2017, Example 6.10; Zhu, Khalili and Zhu 2025, Lemma 1).

    >>> import numpy as np
    >>> L0(lam=0.5).prox(np.array([3.0, -1.0, -2.0]))
    array([ 3.,  0., -2.])
    """

    lam: Any
    nonneg: bool = False
    bandwidth: float = 0.1

    convex = False
    affine = True
    statement = "thm-prox-l0"
    domain: ClassVar = {"lam": ">= 0 per latent"}

    def __post_init__(self) -> None:
        super().__post_init__()
        # of the gradient, so it is no parameter of the formulas, which `domain` is about
        object.__setattr__(self, "bandwidth", check_parameter("L0", "bandwidth", self.bandwidth, "> 0"))

    @staticmethod
    def entry_value(o: Any, z: Any, lam: Any) -> Any:
        """lam where z is not 0."""
        return o.where(z == 0, 0, lam)

    @staticmethod
    def entry_prox(o: Any, u: Any, mu: Any, lam: Any) -> Any:
        """u where it costs more to remove it than lam."""
        return o.where(o.abs(u) <= o.rounded(o.sqrt(2 * (mu * lam))), 0, u)

"""The l0 penalty, with a weight for each sign: hard thresholding.  With `nonneg` it is the JumpReLU SAE.

    R(z) = sum_i lam_i 1[z_i > 0] + lam_minus_i 1[z_i < 0],   lam_i, lam_minus_i >= 0
    prox_{mu R}(u)_i = u_i if u_i > sqrt(2 mu lam_i) or u_i < -sqrt(2 mu lam_minus_i), else 0    (thm-prox-l0)

At a threshold both 0 and u_i are minimisers; by convention the prox is 0.  With lam_minus = lam this is lam ||z||_0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from proxsae.conventions import Error, shown
from proxsae.penalties.domain import check_parameter
from proxsae.penalties.scalar import Separable


@dataclass(frozen=True, eq=False)
class L0(Separable):
    """lam ||z||_0, whose prox keeps |u| > sqrt(2 step lam): two-sided JumpReLU, and with `nonneg` the JumpReLU SAE.

    With `lam_minus` the two signs are weighed apart, sum_i lam_i 1[z_i > 0] + lam_minus_i 1[z_i < 0], and the prox
    keeps u > sqrt(2 step lam) and u < -sqrt(2 step lam_minus).  lam_minus = inf is `nonneg=True`, bit for bit.

    lam: one number in [0, inf], or one per latent, shape (P,); a trained threshold theta is lam = theta^2 / 2.
    bandwidth: width of the rectangle kernel through which a *tensor* lam gets its gradient.  The true derivative is
    zero almost everywhere, so this is a modelling choice (prop-threshold-gradient; Rajamanoharan et al. 2024); values
    never depend on it.
    lam_minus: the weight of negative codes, as lam; None, the default, makes it lam.  Not beside `nonneg=True`, which
    has no negative codes.
    Statement: thm-prox-l0 (Beck 2017, Example 6.10; Zhu, Khalili and Zhu 2025, Lemma 1; two weights: own).

    >>> import numpy as np
    >>> L0(lam=0.5).prox(np.array([3.0, -1.0, -2.0]))
    array([ 3.,  0., -2.])
    >>> L0(lam=0.5, lam_minus=4.5).prox(np.array([3.0, 2.0, -2.0, -4.0]))
    array([ 3.,  2.,  0., -4.])
    """

    lam: Any
    nonneg: bool = False
    bandwidth: float = 0.1
    lam_minus: Any = None

    convex = False
    affine = True
    statement = "thm-prox-l0"
    domain: ClassVar = {"lam": ">= 0 per latent", "lam_minus": ">= 0 per latent"}

    def __post_init__(self) -> None:
        if self.nonneg and self.lam_minus is not None:
            msg = f"L0: lam_minus={shown(self.lam_minus)} must be None beside nonneg=True: that is lam_minus=inf"
            msg += " (thm-prox-l0)"
            raise Error(msg)
        super().__post_init__()
        # of the gradient, so it is no parameter of the formulas, which `domain` is about
        object.__setattr__(self, "bandwidth", check_parameter("L0", "bandwidth", self.bandwidth, "> 0"))

    @staticmethod
    def entry_value(o: Any, z: Any, lam: Any, lam_minus: Any) -> Any:
        """The weight of the side on which z lies, 0 where z is 0."""
        return o.where(z == 0, 0, o.by_sign(z, lam, lam_minus))

    @staticmethod
    def entry_prox(o: Any, u: Any, mu: Any, lam: Any, lam_minus: Any) -> Any:
        """u where it costs more to remove it than the weight of its side."""
        return o.where(o.abs(u) <= o.rounded(o.sqrt(2 * (mu * o.by_sign(u, lam, lam_minus)))), 0, u)

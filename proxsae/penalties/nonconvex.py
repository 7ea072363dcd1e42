"""MCP and SCAD: l1 near 0, flat far out, so that large codes are not shrunk.  Right for every step.

Both are weakly convex: mu R(z) + 1/2 (z - u)^2 is convex while mu <= gamma (MCP) or mu <= a - 1 (SCAD).  Past that a
middle piece has its minimum at an end, and the prox jumps: it becomes hard thresholding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from proxsae.penalties.scalar import Separable, larger, signed, smaller


@dataclass(frozen=True, eq=False)
class MCP(Separable):
    """The minimax concave penalty, sum_i lam_i |z_i| - z_i^2 / (2 gamma), and gamma lam_i^2 / 2 past gamma lam_i.

        step < gamma:   0 for |u| <= step lam, else sign(u) min(|u|, (|u| - step lam) / (1 - step / gamma))
        step >= gamma:  u where |u| > lam sqrt(gamma step), else 0                               (thm-prox-mcp)

    lam: one number in [0, inf], or one per latent, shape (P,); gamma: one number > 0.
    Statement: thm-prox-mcp (Zhang 2010, firm thresholding of Gao and Bruce 1997 for step < gamma).

    >>> import numpy as np
    >>> MCP(lam=1.0, gamma=2.0).prox(np.array([3.0, -1.5, -1.0]))
    array([ 3., -1.,  0.])
    >>> MCP(lam=1.0, gamma=2.0).prox(np.array([3.0, -2.5, -2.0]), step=2.0)
    array([ 3. , -2.5,  0. ])
    """

    lam: Any
    gamma: float = 3.0
    nonneg: bool = False

    convex = False
    statement = "thm-prox-mcp"
    domain: ClassVar = {"lam": ">= 0 per latent", "gamma": "> 0"}

    @staticmethod
    def entry_value(o: Any, z: Any, lam: Any, gamma: Any) -> Any:
        """lam |z| - z^2 / (2 gamma) up to |z| = gamma lam, constant from there."""
        size = o.abs(z)
        return o.where(size > gamma * lam, gamma * lam * lam / 2, lam * size - z * z / (2 * gamma))

    @staticmethod
    def entry_prox(o: Any, u: Any, mu: Any, lam: Any, gamma: Any) -> Any:
        """Firm thresholding below gamma, hard thresholding from there."""
        size = o.abs(u)
        threshold = o.rounded(o.where(mu < gamma, mu * lam, lam * o.sqrt(gamma * mu)))
        steep = o.rounded(gamma / o.where(mu < gamma, gamma - mu, 1) * o.wide(size - threshold))
        kept = o.where(mu < gamma, smaller(o, steep, size), size)
        return o.where(size <= threshold, 0, signed(o, kept, u))


@dataclass(frozen=True, eq=False)
class SCAD(Separable):
    """The smoothly clipped absolute deviation of Fan and Li: three pieces in |z|, the last of them flat.

        R(z) = sum_i  lam |z_i|                                     for |z_i| <= lam
                      (2 a lam |z_i| - z_i^2 - lam^2) / (2 (a - 1)) for lam < |z_i| <= a lam
                      lam^2 (a + 1) / 2                             for |z_i| > a lam
        step < a - 1:   0 for |u| <= step lam, else
                        sign(u) max(|u| - step lam, min(|u|, (|u| - step lam a / (a - 1)) (a - 1) / (a - 1 - step)))
        step < a + 1:   0 for |u| <= step lam, |u| less step lam up to lam (a + 1 + step) / 2, u from there
        else:           u where |u| > lam sqrt(step (a + 1)), else 0                             (thm-prox-scad)

    lam: one number in [0, inf], or one per latent, shape (P,); a: one number > 2 (Fan and Li take 3.7).
    Statement: thm-prox-scad (Fan and Li 2001, for step = 1; the other steps are worked out on its page).

    >>> import numpy as np
    >>> SCAD(lam=1.0, a=3.0).prox(np.array([4.0, 2.5, -1.5, 1.0]))
    array([ 4. ,  2. , -0.5,  0. ])
    """

    lam: Any
    a: float = 3.7
    nonneg: bool = False

    convex = False
    statement = "thm-prox-scad"
    domain: ClassVar = {"lam": ">= 0 per latent", "a": "> 2"}

    @staticmethod
    def entry_value(o: Any, z: Any, lam: Any, a: Any) -> Any:
        """The three pieces."""
        size = o.abs(z)
        middle = (2 * a * lam * size - z * z - lam * lam) / (2 * (a - 1))
        return o.where(size > a * lam, lam * lam * (a + 1) / 2, o.where(size <= lam, lam * size, middle))

    @staticmethod
    def entry_prox(o: Any, u: Any, mu: Any, lam: Any, a: Any) -> Any:
        """Three regimes of the step, which meet continuously at a - 1 and at a + 1."""
        size = o.abs(u)
        threshold = o.rounded(o.where(mu < a + 1, mu * lam, lam * o.sqrt(mu * (a + 1))))
        shrunk = size - o.rounded(mu * lam)
        slope = (a - 1) / o.where(mu < a - 1, a - 1 - mu, 1)
        steep = o.rounded(slope * o.wide(size - o.rounded(mu * lam * a / (a - 1))))
        gentle = larger(o, shrunk, smaller(o, steep, size))
        jump = o.where(size <= o.rounded(lam * (a + 1 + mu) / 2), shrunk, size)
        kept = o.where(mu < a - 1, gentle, o.where(mu < a + 1, jump, size))
        return o.where(size <= threshold, 0, signed(o, kept, u))

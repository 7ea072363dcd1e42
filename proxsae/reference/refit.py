"""Least squares on the support that a step found, one row at a time: the second half of the rule `Refit`."""

from __future__ import annotations

import numpy as np

from proxsae.penalties import Penalty
from proxsae.penalties.base import Floats
from proxsae.steps import REFIT_RTOL


def refit(z: Floats, c: Floats, D: Floats, R: Penalty) -> Floats:
    """Least squares on the support S of z, signs held where R fixes them (thm-refit).

    Move by delta, where  D_S^T D_S delta = -(D_S^T (D z - c) + slope), or as far along it as the first sign change.
    """
    (S,) = np.nonzero(z)
    if not len(S):
        return z
    wide = np.result_type(z.dtype, np.float32)
    A, new = D[S].astype(wide), z.copy()
    h = A @ (z[S] @ A - c) + R.slope(z)[S]
    norms = np.linalg.norm(A.astype(np.float64), axis=1).astype(wide)  # squares of float32 may be no float32
    norms = np.where(norms > 0, norms, 1)  # atoms are compared by direction: a short one is not a dependent one
    cosines = (A / norms[:, None]) @ (A / norms[:, None]).T
    delta = np.linalg.lstsq(cosines, -h / norms, rcond=float(REFIT_RTOL * np.finfo(wide).eps))[0] / norms
    target = z[S] + delta
    if R.convex or R.nonneg:
        flips = np.sign(target) == -np.sign(z[S])
        if flips.any():
            fraction = np.where(flips, z[S] / np.where(flips, -delta, 1), np.inf)
            target = np.where(fraction == fraction.min(), 0, z[S] + fraction.min() * delta)
    new[S] = target
    return new

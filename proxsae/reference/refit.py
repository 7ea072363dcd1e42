"""Least squares on the supports that a step found: the second half of the rule `Refit`."""

from __future__ import annotations

import numpy as np

from proxsae.penalties import Penalty
from proxsae.penalties.base import Floats, holds_signs
from proxsae.steps import REFIT_RTOL


def refit(z: Floats, c: Floats, D: Floats, R: Penalty) -> Floats:
    """Least squares on the support S of each row of z (B, P), signs held where R fixes them (thm-refit).

    Move by delta, where  D_S^T D_S delta = -(D_S^T (D z - c) + slope), or as far along it as the first sign change.
    Rows with supports of one size are solved together.
    """
    new, slope, sizes = z.copy(), R.slope(z), np.count_nonzero(z, axis=1)
    wide = np.result_type(z.dtype, np.float32)
    for size in np.unique(sizes[sizes > 0]):
        (rows,) = np.nonzero(sizes == size)
        S = np.nonzero(z[rows])[1].reshape(len(rows), size)
        A, code = D[S].astype(wide), np.take_along_axis(z[rows], S, axis=1)
        r = np.einsum("bk,bkd->bd", code, A) - c[rows]
        h = np.einsum("bkd,bd->bk", A, r) + np.take_along_axis(slope[rows], S, axis=1)
        norms = np.linalg.norm(A.astype(np.float64), axis=2).astype(wide)  # squares of float32 may be no float32
        norms = np.where(norms > 0, norms, 1)  # atoms are compared by direction: a short one is not a dependent one
        unit = A / norms[:, :, None]
        inverse = np.linalg.pinv(unit @ unit.mT, rcond=float(REFIT_RTOL * np.finfo(wide).eps), hermitian=True)
        delta = np.einsum("bij,bj->bi", inverse, -h / norms) / norms
        target = code + delta
        if holds_signs(R):
            flips = np.sign(target) == -np.sign(code)
            fraction = np.where(flips, code / np.where(flips, -delta, 1), np.inf)
            first = fraction.min(axis=1, keepdims=True)
            short = np.where(fraction == first, 0, code + np.where(np.isfinite(first), first, 0) * delta)
            target = np.where(np.isfinite(first), short, target)
        new[rows[:, None], S] = target
    return new

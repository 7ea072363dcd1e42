"""The l1 problem followed from z = 0 to its solution in finitely many steps: where lam is small, FISTA takes thousands.

    min_z  1/2 ||c - D z||^2 + t sum_j lam_j |z_j|,   t from the least with solution 0 down to 1

On the support S with signs s the solution is p - t q,  G p = D_S^T c,  G q = lam_S s,  G = D_S^T D_S  (as in
thm-l1-optimality, d_j^T r = t lam_j s_j on S), and slopes are h + t a,  h = D^T (c - D p),  a = D^T D q.  So t falls
until an atom enters, at h_j / (lam_j - a_j) or -h_j / (lam_j + a_j), or one leaves, at p_j / q_j  (Osborne, Presnell
and Turlach 2000; LARS, Efron et al. 2004).  Each step solves anew for p and q, so that no rounding adds up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from proxsae.certificates import lengths
from proxsae.penalties import L1
from proxsae.penalties.base import Floats

BLOCK = 2**20  # entries of codes that are followed together
RIDGE = 1e-14  # on the Gram matrix of unit atoms, for dependent ones: a certificate judges the end
TURNS = 8  # steps for each dimension; the few rows that take more go round in circles at a tie


def follow(c: Floats, D: Floats, R: L1, most: int) -> tuple[Floats, NDArray[np.int64]]:
    """Codes (B, P), solutions but for ties and rounding, and the steps that each row took, at most `most`.

    c (B, d), centred, and D (P, d) in float64.  Where some lam_j is 0 no t has the solution 0, and codes are 0.
    """
    lam, norm = np.broadcast_to(np.asarray(R.lam, dtype=np.float64), len(D)), lengths(D)
    codes, taken = np.zeros((len(c), len(D))), np.zeros(len(c), dtype=np.int64)
    (used,) = np.nonzero((norm > 0) & (lam < np.inf))
    if not lam.all() or not len(used):
        return codes, taken
    unit, lam, norm = D[used] / norm[used, None], lam[used] / norm[used], norm[used]
    most, size = min(most, TURNS * min(unit.shape)), max(1, BLOCK // len(D))
    for start in range(0, len(c), size):
        rows = slice(start, start + size)
        with np.errstate(all="ignore"):  # in quotients that `where` passes over
            found, taken[rows] = _follow(c[rows], unit, lam, R.nonneg, most)
            codes[rows, used] = found / norm
    return codes, taken


def _follow(c: Floats, unit: Floats, lam: Floats, nonneg: bool, most: int) -> tuple[Floats, NDArray[np.int64]]:
    codes, taken = np.zeros((len(c), len(unit))), np.zeros(len(c), dtype=np.int64)
    rows, signs, t = np.arange(len(c)), np.zeros_like(codes), np.full((len(c), 1), np.inf)
    fresh = np.zeros_like(codes)  # the sign of the atom that came or went in the last step: it is at that bound still
    for _ in range(most):
        size = max(1, int(np.count_nonzero(signs, axis=1).max()))
        S = np.argsort(signs == 0, axis=1, kind="stable")[:, :size]
        s = np.take_along_axis(signs, S, axis=1)
        atoms = np.where(s[:, :, None] != 0, unit[S], 0)
        gram = atoms @ atoms.mT + np.where(s != 0, RIDGE, 1)[:, :, None] * np.eye(size)
        pq = np.linalg.solve(gram, np.stack([np.einsum("bkd,bd->bk", atoms, c[rows]), s * lam[S]], axis=2))
        p, q = pq[:, :, 0], pq[:, :, 1]
        h = (c[rows] - np.einsum("bk,bkd->bd", p, atoms)) @ unit.T
        a = np.einsum("bk,bkd->bd", q, atoms) @ unit.T
        events = np.where((lam > a) & (fresh <= 0), h / (lam - a), 0)
        if not nonneg:
            events = np.maximum(events, np.where((lam > -a) & (fresh >= 0), -h / (lam + a), 0))
        leave = np.where((s * q < 0) & (np.take_along_axis(fresh, S, axis=1) == 0), p / q, 0)
        np.put_along_axis(events, S, np.where(s != 0, leave, np.take_along_axis(events, S, axis=1)), axis=1)
        which = events.argmax(axis=1)[:, None]
        t = np.minimum(np.take_along_axis(events, which, axis=1), t)
        z, code = p - np.maximum(t, 1) * q, np.zeros_like(h)
        np.put_along_axis(code, S, np.where(s * z > 0, z, 0), axis=1)
        codes[rows], taken[rows] = code, taken[rows] + 1
        on = t[:, 0] > 1
        if not on.any():
            break
        rows, which, h, t, signs, fresh = rows[on], which[on], h[on], t[on], signs[on], np.zeros_like(fresh[on])
        was, sign = (np.take_along_axis(b, which, axis=1) for b in (signs, np.sign(h)))
        np.put_along_axis(signs, which, np.where(was == 0, sign, 0), axis=1)
        np.put_along_axis(fresh, which, np.where(was == 0, sign, was), axis=1)
    return codes, taken

"""k-sparse codes by search: greedily, as a baseline for iterations, and over all supports, for the optimum.

    min ||x - D z||^2   subject to   ||z||_0 <= k,   and z >= 0 with `nonneg`

The problem is NP-hard (Natarajan 1995): `mp` and `omp` give upper bounds, `best_k_sparse` the optimum where d_sae is
tiny.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import nnls

from proxsae.conventions import Error, check_count, check_floats, check_problem, is_torch
from proxsae.penalties.base import Floats

ORTHOGONAL = 1e-12  # a cosine between atom and residual, over ||x||, that is rounding
MOST_SUPPORTS = 20_000


def mp(x: Any, D: Any, k: int, nonneg: bool = False) -> Any:
    """Matching pursuit: codes (..., P) with at most k non-zeros for rows x (..., d) and atoms D (P, d).

    From z = 0 and r = x, k times:  j = argmax_j |d_j^T r| / ||d_j||,  z_j += d_j^T r / ||d_j||^2,  r = x - D z.
    With `nonneg` only d_j^T r > 0 counts.  An atom may be taken again; ties go to the lowest index, and zero atoms are
    never chosen.  ||r|| never grows (Mallat and Zhang 1993).  Work is in float64, codes come back in the dtype of x.
    Raises `Error` for k < 0, and for data that does not fit or is not finite.

    >>> D = np.array([[1.0, 0.0], [0.6, 0.8]])
    >>> mp(np.array([1.0, 1.0]), D, k=1)
    array([0. , 1.4])
    """
    rows, D, shape, dtype = _problem(x, D)
    k, squares = check_count("k", k, 0), (D**2).sum(axis=1)
    codes = np.zeros((len(rows), len(D)))
    for code, row in zip(codes, rows, strict=True):
        for _ in range(k):
            along = D @ (row - code @ D)
            scores = np.where(squares > 0, along / np.sqrt(np.where(squares > 0, squares, 1)), 0)
            j = int((scores if nonneg else np.abs(scores)).argmax())
            if not scores[j] or (nonneg and scores[j] < 0):
                break
            code[j] += along[j] / squares[j]
    return codes.astype(dtype).reshape(shape)


def omp(x: Any, D: Any, k: int, nonneg: bool = False) -> Any:
    """Orthogonal matching pursuit: codes (..., P) with at most k non-zeros for rows x (..., d) and atoms D (P, d).

    From S = {} and r = x, k times:  S <- S + argmax_j |d_j^T r| / ||d_j||,  z_S = argmin_w ||x - D_S w||,  r = x - D z.
    With `nonneg` only d_j^T r > 0 counts and w >= 0 (Bruckstein, Elad and Zibulevsky 2008).  Ties go to the lowest
    index, zero atoms are never chosen, and a row stops early once no atom correlates with its residual.  A bias is the
    caller's to subtract.  Work is in float64, codes come back in the dtype of x.

    If unit-norm atoms have the coherence m and x = D z with k < (1 + 1/m) / 2 non-zeros, it finds z, for any
    dynamic range of z, where one step of thresholding may fail (prop-dynamic-range; Tropp 2004).
    Raises `Error` for k < 0, and for data that does not fit or is not finite.

    >>> D = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> omp(np.array([0.0, -2.0]), D, k=1), omp(np.array([0.0, -2.0]), D, k=1, nonneg=True)
    (array([ 0., -2.,  0.]), array([0., 0., 0.]))
    """
    rows, D, shape, dtype = _problem(x, D)
    k = min(check_count("k", k, 0), len(D))
    norms = np.linalg.norm(D, axis=1)
    norms = np.where(norms > 0, norms, 1)
    U = D / norms[:, None]  # of unit norm, so that least squares does not take a short atom for a dependent one
    floor = ORTHOGONAL * np.linalg.norm(rows, axis=1)
    supports: list[list[int]] = [[] for _ in rows]
    codes, r, left = np.zeros((len(rows), len(D))), rows.copy(), np.arange(len(rows))
    for _ in range(k):
        scores = r[left] @ U.T
        scores = scores if nonneg else np.abs(scores)
        for score, i in zip(scores, left, strict=True):
            score[supports[i]] = 0  # as it is in exact arithmetic; rounding of large coefficients hides that
        best = scores.argmax(axis=1)
        going = scores[np.arange(len(left)), best] > floor[left]
        left, best = left[going], best[going]
        for i, j in zip(left, best, strict=True):
            S = supports[i]
            S.append(int(j))
            w = nnls(U[S].T, rows[i])[0] if nonneg else np.linalg.lstsq(U[S].T, rows[i], rcond=None)[0]
            codes[i, S], r[i] = w / norms[S], rows[i] - w @ U[S]
    return codes.astype(dtype).reshape(shape)


def best_k_sparse(x: Any, D: Any, k: int, nonneg: bool = False) -> Any:
    """An optimal code (..., P) with at most k non-zeros for every row x (..., d), by least squares on all supports.

    With `nonneg` every support of at most k atoms is tried and its code counts if it is >= 0: a best non-negative code
    with fewest non-zeros is the least-squares code of its own support.  Signed, k atoms hold every smaller support.
    Work is in float64, codes come back in the dtype of x; atoms D (P, d).  It is what the amortisation gap of a
    k-sparse code is measured from (prop-amortisation-gap) where P is tiny.
    Raises `Error` for more than 20,000 supports, for k < 0, and for data that does not fit or is not finite.
    """
    rows, D, shape, dtype = _problem(x, D)
    P = len(D)
    k = min(check_count("k", k, 0), P)
    sizes = range(k + 1) if nonneg else (k,)
    count = sum(math.comb(P, size) for size in sizes)
    if count > MOST_SUPPORTS:
        msg = f"k={k} of {P} latents makes {count} supports, but {MOST_SUPPORTS} is the most: the search is NP-hard"
        raise Error(msg)
    codes, least = np.zeros((len(rows), P)), (rows**2).sum(axis=1)
    for size in sizes:
        for support in combinations(range(P), size):
            S = list(support)
            w = np.linalg.lstsq(D[S].T, rows.T, rcond=None)[0].T
            error = ((rows - w @ D[S]) ** 2).sum(axis=1)
            better = error < least
            if nonneg:
                better &= (w >= 0).all(axis=1)
            least[better], codes[better] = error[better], 0
            codes[np.ix_(better, S)] = w[better]
    return codes.astype(dtype).reshape(shape)


def _array(name: str, a: Any) -> Floats:
    a = check_floats(name, a)
    if not is_torch(a):
        return a
    a = a.detach().cpu()
    return (a.float() if str(a.dtype) == "torch.bfloat16" else a).numpy()


def _problem(x: Any, D: Any) -> tuple[Floats, Floats, tuple[int, ...], Any]:
    """Rows (n, d) and atoms in float64, and the shape and dtype of the codes."""
    c, D, _, lead = check_problem(_array("x", x), _array("D", D))
    return c.astype(np.float64).reshape(-1, c.shape[-1]), D.astype(np.float64), (*lead, len(D)), c.dtype

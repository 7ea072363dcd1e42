"""Weights W of least generalised coherence with a dictionary: what ALISTA multiplies residuals by.

    min_W  max_{i, j != i} |w_i^T d_j|   subject to   w_i^T d_i = 1

Row by row, the least value of w_i is  1 / min{||a||_1 : sum_{j != i} a_j d_j = d_i}  (prop-generalised-coherence).  So
every W is an upper bound, every such a is a lower one, and Douglas-Rachford splitting gives both for all rows at once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxsae.certificates import coherence, wide
from proxsae.conventions import Error, check_finite, check_floats, check_number, is_torch

Rows = NDArray[np.float64]
STEPS = 20_000  # of the splitting, at most
EVERY = 10  # steps between certificates
PROX = 3.0  # step of the splitting, over the mean magnitude of the least-squares a; 0.3 takes twice the steps
KEPT = 4  # dictionaries whose weights are kept
_known: OrderedDict[tuple[Any, ...], tuple[Rows, Rows, Rows]] = OrderedDict()


def minimal_coherence(D: Any, tol: float = 1e-3) -> tuple[Any, Any, Any]:
    """Weights W (P, d) with w_i^T d_i = 1 and the least max_{j != i} |w_i^T d_j|, and per row a bound from either side.

    D: a dictionary (P, d), atoms as rows, as an array or a tensor; what comes back is of its kind, in float64.
    tol: how far apart the bounds may be.

    Returns (W, upper, lower): upper (P,) is what W reaches, in float64 and raised by its rounding, and no weights have
    less than lower (P,).  They are `tol` apart or less: a certificate.  The largest of `upper` is the mu of
    thm-alista-rate.  The last dictionaries' weights are kept, by content.  Statement: prop-generalised-coherence.
    Raises `Error` for an atom that is zero or parallel to another, whose weights have coherence 1 or do not exist, and
    where 20,000 steps do not reach tol.

    >>> W, upper, lower = minimal_coherence(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    >>> np.round(upper, 2), bool((upper - lower <= 1e-3).all())
    (array([0.33, 0.5 , 0.71]), True)
    """
    tol = check_number("tol", tol, "> 0")
    A = wide(check_floats("D", D))
    A = A.cpu().numpy() if is_torch(A) else A
    _check(A)
    key = (A.shape, tol, A.tobytes())
    if key not in _known:
        _known[key] = _solve(A, tol)
        while len(_known) > KEPT:
            _known.popitem(last=False)
    found = tuple(a.copy() for a in _known[key])
    return tuple(D.new_tensor(a, dtype=wide(D).dtype) for a in found) if is_torch(D) else found  # type: ignore[return-value]


def _check(D: Rows) -> None:
    check_finite("D", D)
    if D.ndim != 2:
        msg = f"D has shape {D.shape}, but must be (d_sae, d_in), an atom a row"
        raise Error(msg)
    zero = ~(D != 0).any(axis=1)
    if zero.any():
        msg = f"atom {int(zero.argmax())} of D is zero, but weights need w_i^T d_i = 1 (prop-generalised-coherence)"
        raise Error(msg)
    if len(D) > 1 and coherence(D) >= 1 - 1e-9:
        unit = D / np.linalg.norm(D, axis=1, keepdims=True)
        cosines = np.abs(unit @ unit.T) - 2 * np.eye(len(D))
        i, j = sorted(divmod(int(cosines.argmax()), len(D)))
        msg = f"atoms {i} and {j} of D are parallel, so that every W has coherence 1 with them: leave one of them out"
        raise Error(msg)


def _solve(D: Rows, tol: float) -> tuple[Rows, Rows, Rows]:
    P, d = D.shape
    n = np.arange(P)
    U, s, Vt = np.linalg.svd(D, full_matrices=False)
    rank = s > s[0] * np.finfo(float).eps * max(P, d)
    Q, to_weights = (
        U[:, rank],
        Vt[rank].T / s[rank],
    )  # G = W D^T has its rows in the span of Q, and W = (G Q) to_weights^T

    def weights(G: Rows) -> tuple[Rows, Rows]:
        W = (G @ Q) @ to_weights.T
        own = (W * D).sum(axis=1, keepdims=True)
        W = W / np.where(own != 0, own, 1)
        off = np.abs(W @ D.T)
        rounding = d * np.finfo(float).eps * np.linalg.norm(W, axis=1) * np.linalg.norm(D, axis=1).max()
        off[n, n] = 0
        return W, np.where(own[:, 0] != 0, off.max(axis=1) + rounding, np.inf)

    # Least squares for both: the W of least Frobenius norm of W D^T, and the a of least length
    G = Q @ Q.T
    G /= G[n, n][:, None]
    best, upper = weights(G)
    null = np.eye(P) - Q @ Q.T
    apart = null[n, n] < 1e-10  # d_i is not in the span of the others, and w_i is orthogonal to all of them
    X = -null / np.where(apart, 1, null[n, n])[:, None]
    gamma = PROX * np.abs(X).mean()
    Y, lower = X - gamma * G / np.where(upper > 0, upper, 1)[:, None], np.zeros(P)
    for step in range(STEPS):
        X = Y - (Y @ Q) @ Q.T
        if step % EVERY == 0:
            own = np.where(X[n, n] < 0, -X[n, n], 1)
            size = np.abs(X).sum(axis=1) / own - 1  # ||a||_1, with a_i = -1 left out
            known = np.where((X[n, n] < 0) & ~apart & (size > 0), (1 - 1e-9) / np.where(size > 0, size, 1), 0)
            lower = np.maximum(lower, known)
            W, reached = weights(X - Y)
            better = reached < upper
            best[better], upper[better] = W[better], reached[better]
            if (upper - lower).max() <= tol:
                return best, upper, lower
        V = 2 * X - Y
        Z = np.sign(V) * np.maximum(np.abs(V) - gamma, 0)
        Z[n, n] = -1
        Y = Y + Z - X
    msg = f"{STEPS} steps left the bounds {(upper - lower).max():.3g} apart, more than tol={tol:g}: give a larger tol"
    raise Error(msg)

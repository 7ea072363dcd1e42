"""Certificates and constants of both iterations: duality gap, fixed-point residual, ||D||^2, coherence, lambda_max.

NumPy in, NumPy out; torch in, torch out, on its device.  All are computed in float64 for inputs of any dtype, since a
certificate that is itself rounded to float32 proves nothing at 1e-6.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from proxsae.conventions import Error, alike, check_finite, check_floats, check_problem, check_step, is_torch, namespace
from proxsae.penalties import L1, Penalty
from proxsae.penalties.base import runs

UNIT = 2.0**-52  # twice the largest relative error of a float64 operation
FAINT = 2.0**-900  # an objective below it has lost digits to underflow


def duality_gap(x: Any, D: Any, z: Any, R: Penalty, bias: Any = None) -> Any:
    """Duality gap of z, an upper bound on F(z) - F*, for L1: shape (...).  It is 0 only at the optimum.

    With r = x - b - D z, scale r to the dual-feasible  theta = r min(1, min_j lam_j / |d_j^T r|)  (d_j^T r clipped at 0
    from below when `nonneg`); then  gap = F(z) - (1/2 ||x - b||^2 - 1/2 ||theta - (x - b)||^2),  worked out as
    1/2 ||r - theta||^2 + sum_j (lam_j |z_j| - z_j d_j^T theta),  a sum of terms >= 0.  Where a lam_j is 0 and the
    residual is not orthogonal to d_j, theta is 0 and the gap says nothing.

    Statement: thm-duality-gap (Mairal 2010, appendix D; Fenchel duality); it bounds what a deeper encoder could still
    gain (prop-amortisation-gap).  Shapes: x (..., d), D (P, d), z (..., P).
    Raises `Error` for other penalties, and for data that does not fit.
    """
    if not runs(R, L1):
        kind = type(R).__name__
        msg = f"duality_gap is worked out for L1 only, not for {kind}: use fixed_point_residual (thm-duality-gap)"
        raise Error(msg)
    x, c, D, z = _problem(x, D, z, R, bias)
    return narrow(l1_gap(c, D, z, R)[0], x)


def l1_gap(c: Any, D: Any, z: Any, R: L1, sure: bool = False) -> tuple[Any, Any]:
    """`duality_gap` and objective of centred float64 rows; a gap that is NaN counts as infinite.

    With `sure` the gap is raised by the bound on its own rounding error (lem-sure-gap).
    """
    xp = namespace(c)
    r = c - z @ D
    slope, square = r @ D.T, (r * r).sum(-1)
    steep = slope.clip(min=0) if R.nonneg else abs(slope)
    lam = R.lam
    if not isinstance(lam, float):
        lam = xp.asarray(np.array(lam), device=c.device) if not is_torch(lam) else wide(lam).to(c.device)
    cost, doubt = R.value(z), 0.0
    if sure:
        norm = _norm(D)
        size = _norm(c) + abs(z) @ norm
        terms = (z != 0).sum(-1)
        slack = UNIT * (D.shape[1] + 3 * terms + 8) * size
        steep = steep + slack[..., None] * norm
        doubt = slack * (size + abs(z) @ norm) + UNIT * (terms + 8) * cost
    scale = xp.amin(xp.where(steep > lam, lam / xp.where(steep > 0, steep, 1.0), 1.0), -1)
    gap = 0.5 * ((1 - scale) ** 2) * square + cost - scale * (z * slope).sum(-1) + doubt
    return xp.where(xp.isfinite(gap), gap, xp.inf), 0.5 * square + cost


def _norm(a: Any) -> Any:
    """Lengths of rows (..., d), also where their squares overflow or underflow."""
    xp = namespace(a)
    largest = xp.amax(abs(a), -1)
    return xp.sqrt(((a / xp.where(largest > 0, largest, 1.0)[..., None]) ** 2).sum(-1)) * largest


def fixed_point_residual(x: Any, D: Any, z: Any, R: Penalty, step: float, bias: Any = None) -> Any:
    """||z - T(z)||_2 per row, shape (...), with  T(z) = prox_{step R}(z - step D^T (D z + b - x)).

    It is 0 exactly at fixed points of T: the optima for L1 (thm-l1-optimality), the L-stationary points for L0 and
    KSparse (thm-l0-fixed-points, thm-ksparse-fixed-points), optima among them (thm-optimal-is-stationary).
    Statement: def-fixed-point (Beck and Eldar 2013 for k-sparse).  Raises `Error` for data that does not fit.
    """
    x, c, D, z = _problem(x, D, z, R, bias)
    step = check_step(step, x)
    mu = step if isinstance(step, float) else wide(step)[..., None]
    moved = z - R.prox(z - mu * ((z @ D - c) @ D.T), step)
    return narrow((moved * moved).sum(-1) ** 0.5, x)


def lambda_max(x: Any, D: Any, nonneg: bool = False) -> Any:
    """The smallest lam for which the L1 solution is z = 0:  max_j |d_j^T x|  (max_j (d_j^T x)_+ when `nonneg`).

    Shapes: x (..., d), centred; D (P, d); returns (...).  Statement: prop-lambda-max (KKT conditions at 0).
    """
    given = alike({"x": x, "D": D})
    x = given["x"]
    c, D, _, _ = check_problem(wide(x), wide(given["D"]))
    slope = c @ D.T
    return narrow(namespace(c).amax(slope.clip(min=0) if nonneg else abs(slope), -1), x)


def lipschitz(D: Any) -> float:
    """An upper bound on ||D||_2^2, above it by rounding only: the largest eigenvalue of the smaller Gram matrix.

    D (P, d), atoms as rows.  The float64 result is raised by the error bound of the product and of the eigenvalue
    solver, 4 (P + d) eps ||D||_F^2, so that 1/L is always a safe step.  Statement: def-lipschitz.
    Raises `Error` for a dictionary that is all zeros, empty or not finite.
    """
    W = _dictionary(D)
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    slack = 4 * sum(W.shape) * 2.0**-52 * float((W * W).sum())
    top = float(namespace(W).linalg.eigvalsh(gram)[-1]) if math.isfinite(slack) else math.inf
    if not 0 < top < math.inf:
        msg = f"D has ||D||^2 = {top}, beyond float64: rescale it (def-lipschitz)"
        raise Error(msg)
    return top + slack


def coherence(D: Any) -> float:
    """max_{i != j} |<d_i, d_j>| / (||d_i|| ||d_j||), between 0 and 1; 0 for a single atom.  Zero atoms are left out.

    D (P, d), atoms as rows.  Statement: def-coherence (Donoho and Elad 2003); it is never below the Welch bound
    (prop-welch), and bounds ||D_S||^2 on small supports (prop-restricted-lipschitz).
    """
    W = _dictionary(D)
    norms = (W * W).sum(-1) ** 0.5
    W = (W / namespace(W).where(norms > 0, norms, 1.0)[:, None])[norms > 0]
    gram = abs(W @ W.T)
    count = len(gram)
    gram[range(count), range(count)] = 0.0
    return min(1.0, float(gram.max()))


def wide(a: Any) -> Any:
    """`a` in float64, detached from any gradient."""
    return a.detach().double() if is_torch(a) else np.asarray(a, dtype=np.float64)


def narrow(a: Any, like: Any) -> Any:
    """`a` in the dtype of `like`."""
    return a.detach().to(like.dtype) if is_torch(a) else np.asarray(a).astype(like.dtype)


def _problem(x: Any, D: Any, z: Any, R: Penalty, bias: Any) -> tuple[Any, Any, Any, Any]:
    """x as an array; and x - b, D and z in float64, whatever dtype each of them has."""
    given = alike({"x": x, "D": D, "z": z} | ({} if bias is None else {"bias": bias}))
    bias = None if bias is None else wide(given["bias"])
    c, D, z, _ = check_problem(wide(given["x"]), wide(given["D"]), wide(given["z"]), bias, R, "z")
    return given["x"], c, D, z


def _dictionary(D: Any) -> Any:
    D = check_floats("D", D)
    check_finite("D", D)
    if D.ndim != 2 or not bool((D != 0).any()):
        msg = f"D of shape {tuple(D.shape)} must be a (d_sae, d_in) matrix that is not all zeros (def-lipschitz)"
        raise Error(msg)
    return wide(D)


def certify(x: Any, D: Any, z: Any, before: Any, R: Penalty, tol: float, L: float) -> tuple[Any, Any, Any]:
    """The certificate of z, whether it is good enough, and whether it is settled: three arrays of shape (...).

    A code is settled if it is within a tenth of tol before the rounding of its certificate is counted: then more steps
    cannot help.  For L1 it is good enough if the gap, raised by the bound on its rounding error, is within tol
    (lem-sure-gap).  For L0 and KSparse a fixed point at step 1/L says little, so the last `Refit` step, which is
    longer, must have left the code `before` it in place as well.
    """
    if runs(R, L1):
        gap, objective = l1_gap(x, D, z, R)
        good, settled = ((gap <= t * objective) & (gap < np.inf) for t in (tol, tol / 10))
        if good.any():
            good = good & (l1_gap(x, D, z, R, sure=True)[0] <= tol * objective)
            good = good & ((objective > FAINT) | ~(x != 0).any(-1))
        return gap, good, settled
    gap = fixed_point_residual(x, D, z, R, 1 / L)
    size, last = (z * z).sum(-1) ** 0.5, ((z - before) ** 2).sum(-1) ** 0.5
    good, settled = ((gap <= t * size) & (last <= t * size) for t in (tol, tol / 10))
    return gap, good, settled

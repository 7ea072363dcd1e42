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
FAINT = 2.0**-900  # an objective or a square below it has lost digits to underflow
BLOCK = 1024  # atoms that are compared with all others at a time


def duality_gap(x: Any, D: Any, z: Any, R: Penalty, bias: Any = None) -> Any:
    """An upper bound on F(z) - F* for L1, shape (...): the duality gap of z, raised by what rounding may hide.

    With r = x - b - D z, scale r to the dual-feasible  theta = r min(1, min_j lam_j / |d_j^T r|)  (d_j^T r clipped at 0
    from below when `nonneg`); then  gap = F(z) - (1/2 ||x - b||^2 - 1/2 ||theta - (x - b)||^2),  worked out as
    1/2 ||r - theta||^2 + sum_j (lam_j |z_j| - z_j d_j^T theta),  a sum of terms >= 0.  Of unpenalised latents
    (lam_j = 0) r is first projected off the atoms (lem-unpenalised).

    It is worked out in float64, raised by the bound on its rounding error (lem-sure-gap), and rounded up to the dtype
    of x.  So at the optimum it is not 0, but some 1e-13 of F.

    Statement: thm-duality-gap (Mairal 2010, appendix D; Fenchel duality); it bounds what a deeper encoder could still
    gain (prop-amortisation-gap).  Shapes: x (..., d), D (P, d), z (..., P).
    Raises `Error` for other penalties, of which no gap is implemented, and for data that does not fit.
    """
    if not runs(R, L1):
        kind = type(R).__name__
        msg = f"duality_gap is implemented for L1 only, not for {kind}: use fixed_point_residual (thm-duality-gap)"
        raise Error(msg)
    x, c, D, z = _problem(x, D, z, R, bias)
    return _upward(l1_gap(c, D, z, R)[0], x)


def l1_gap(c: Any, D: Any, z: Any, R: L1, norm: Any = None) -> tuple[Any, Any, Any]:
    """`duality_gap` of centred float64 rows, their objective, and the gap before its rounding error is allowed for.

    Statement: lem-sure-gap, whose allowances stand here; where a lam_j is 0, lem-unpenalised.  `norm` are the lengths
    of the atoms, where they are known.
    """
    xp = namespace(c)
    norm = lengths(D) if norm is None else norm
    lam = wide(R.lam).to(c.device) if is_torch(R.lam) else xp.asarray(np.array(R.lam, np.float64), device=c.device)
    r, cost, terms = c - z @ D, R.value(z), (z != 0).sum(-1)
    objective, spread = 0.5 * (r * r).sum(-1) + cost, abs(z) @ norm
    size = lengths(c) + spread
    slack = UNIT * (D.shape[1] + 3 * terms + 8) * size
    theta, off, free = r, 0.0 * slack, (lam == 0) & (norm > 0)
    if bool(free.any()):
        theta, off, held = _off_unpenalised(r, z, D, norm, free, slack, R.nonneg)
        lam = xp.where(held, xp.inf, lam)
    slope = theta @ D.T

    def gap(slack: Any) -> Any:
        steep = ((slope if R.nonneg else abs(slope)) + slack[..., None] * norm).clip(min=0)
        scale = xp.amin(xp.where(steep > lam, lam / xp.where(steep > 0, steep, 1.0), 1.0), -1)
        left = r - scale[..., None] * theta
        return 0.5 * (left * left).sum(-1) + cost - scale * (z * slope).sum(-1)

    plain, sure = gap(0 * slack), gap(slack + off)
    sure = not_faint(sure + (slack + off) * (size + off + spread) + UNIT * (terms + 8) * cost, objective)
    zero = ~((c != 0).any(-1) | (z != 0).any(-1))
    return xp.where(zero, 0.0, sure), objective, xp.where(xp.isfinite(plain), plain, xp.inf)


def not_faint(gap: Any, objective: Any) -> Any:
    """A gap as a bound, also where it overflows, or where the objective and with it the gap is lost to underflow."""
    xp = namespace(gap)
    return xp.where(xp.isfinite(gap), xp.where(objective > FAINT, gap, gap.clip(min=2 * FAINT)), xp.inf)


def _off_unpenalised(r: Any, z: Any, D: Any, norm: Any, free: Any, slack: Any, nonneg: bool) -> tuple[Any, Any, Any]:
    """Rows r projected off the unpenalised atoms, how far rounding may have left each from that, and a mask of them.

    These are all that are `free`, or when `nonneg` those on the support of z and those whose slope may be positive.
    Where they are dependent a row stays as it is, and the mask is empty (lem-unpenalised).
    """
    xp, rows = namespace(r), r.reshape(-1, r.shape[-1])
    (at,) = np.nonzero(np.asarray(free.cpu() if is_torch(free) else free))
    atoms, codes = D[at] / norm[at][:, None], z.reshape(len(rows), len(D))[:, at]
    theta, off = rows + 0.0, 0.0 * rows[:, 0]
    held = (rows @ atoms.T + slack.reshape(-1)[:, None] > 0) | (codes != 0) | (not nonneg)
    for pattern in {tuple(row) for row in held.tolist()} if nonneg else {(True,) * len(at)}:
        on = xp.asarray(np.array(pattern), device=r.device)
        these = (held == on).all(-1)
        if bool(on.any()):
            theta[these], off[these] = _project(rows[these], atoms[on])
    loose = ~xp.isfinite(off)
    theta[loose], off[loose], held[loose] = rows[loose], 0.0, False
    mask = xp.zeros((len(rows), len(D)), dtype=bool, device=r.device)
    mask[:, at] = held
    return theta.reshape(r.shape), off.reshape(slack.shape), mask.reshape(z.shape)


def _project(rows: Any, atoms: Any) -> tuple[Any, Any]:
    """Rows (n, d) projected off unit atoms (m, d), and a bound on how far each is from being orthogonal to them."""
    xp, (m, d) = namespace(rows), atoms.shape
    least = float(xp.linalg.eigvalsh(atoms @ atoms.T)[0]) - 4 * (m + d + 8) * UNIT * m if m <= d else 0.0
    if least <= 0:
        return rows, xp.inf
    basis = xp.linalg.qr(atoms.T)[0]
    for _ in range(2):  # the second time takes off what rounding left
        rows = rows - (rows @ basis) @ basis.T
    left = abs(rows @ atoms.T) + UNIT * (d + 8) * lengths(rows)[:, None]
    return rows, lengths(left) / least**0.5


def lengths(a: Any) -> Any:
    """Lengths of rows (..., d), also where their squares overflow or underflow."""
    xp = namespace(a)
    largest = xp.amax(abs(a), -1)
    return xp.sqrt(((a / xp.where(largest > 0, largest, 1.0)[..., None]) ** 2).sum(-1)) * largest


def fixed_point_residual(x: Any, D: Any, z: Any, R: Penalty, step: float, bias: Any = None) -> Any:
    """||z - T(z)||_2 per row, shape (...), with  T(z) = prox_{step R}(z - step D^T (D z + b - x)).

    It is 0 exactly at the fixed points under the tie rule.  For L1 these are the optima (thm-l1-optimality); for L0 and
    KSparse at step 1/L they are L-stationary, optima among them (thm-optimal-is-stationary), and not conversely: at a
    tie the rule names one of several points (thm-l0-fixed-points, thm-ksparse-fixed-points).
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
    Raises `Error` for a dictionary that is all zeros, empty or not finite, and where ||D||^2 is beyond float64.
    """
    return squared_norm(D)[1]


def squared_norm(D: Any) -> tuple[float, float]:
    """Two numbers between which ||D||_2^2 lies, apart by rounding only; the upper one is `lipschitz`."""
    W = _dictionary(D)
    with np.errstate(over="ignore"):
        square, unit = float((W * W).sum()), 1.0
    if not FAINT < square < 1 / FAINT:  # entries whose squares over- or underflow
        unit = 2.0 ** (math.frexp(float(abs(W).max()))[1] - 1)
        W = W / unit
        square = float((W * W).sum())
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    slack = 4 * sum(W.shape) * UNIT * square
    top = float(namespace(W).linalg.eigvalsh(gram)[-1])
    least, most = (top - slack) * unit * unit, (top + slack) * unit * unit
    if not np.finfo(float).tiny <= most < math.inf:
        msg = f"D has entries of size {unit:.2g}, so that ||D||^2 is beyond float64: rescale it (def-lipschitz)"
        raise Error(msg)
    return least, most


def coherence(D: Any) -> float:
    """An upper bound on max_{i != j} |<d_i, d_j>| / (||d_i|| ||d_j||), above it by rounding only, and at most 1.

    D (P, d), atoms as rows.  Zero atoms are left out.  It is 0 for a single atom, and for atoms of which no two have a
    coordinate in common.  Statement: def-coherence (Donoho and Elad 2003); it is never below the Welch bound
    (prop-welch), and bounds ||D_S||^2 on small supports (prop-restricted-lipschitz).
    """
    D = _dictionary(D)
    D = D[(D != 0).any(-1)]
    xp, most = namespace(D), 0.0
    unit = D / xp.amax(abs(D), -1)[:, None]  # first, as a length may be beyond float64
    unit = unit / lengths(unit)[:, None]
    used = xp.where(D != 0, abs(unit).clip(min=2.0**-500), 0.0)  # no product of two of them is lost to underflow
    for i in range(0, len(D), BLOCK):
        some = slice(i, i + BLOCK)
        cosines = abs(unit[some] @ unit.T) + UNIT * (D.shape[1] + 8) * (used[some] @ used.T)
        cosines[range(len(cosines)), range(i, i + len(cosines))] = 0.0
        most = max(most, float(cosines.max()))
    return min(1.0, most)


def wide(a: Any) -> Any:
    """`a` in float64, detached from any gradient."""
    return a.detach().double() if is_torch(a) else np.asarray(a, dtype=np.float64)


def centred(x: Any, bias: Any = None) -> Any:
    """x - b in float64: a difference that is rounded to the dtype of x belongs to another problem (lem-sure-gap)."""
    return wide(x) if bias is None else wide(x) - wide(alike({"x": x, "bias": bias})["bias"])


def narrow(a: Any, like: Any) -> Any:
    """`a` in the dtype of `like`."""
    return a.detach().to(like.dtype) if is_torch(a) else np.asarray(a).astype(like.dtype)


def _problem(x: Any, D: Any, z: Any, R: Penalty, bias: Any) -> tuple[Any, Any, Any, Any]:
    """x as an array; and x - b, D and z in float64, whatever dtype each of them has."""
    given = alike({"x": x, "D": D, "z": z} | ({} if bias is None else {"bias": bias}))
    bias = None if bias is None else wide(given["bias"])
    c, D, z, _ = check_problem(wide(given["x"]), wide(given["D"]), wide(given["z"]), bias, R, "z")
    return given["x"], c, D, z


def _upward(a: Any, like: Any) -> Any:
    """`a` in the dtype of `like`, rounded up."""
    xp, near = namespace(a), narrow(a, like)
    return xp.where(wide(near) < a, xp.nextafter(near, xp.full_like(near, xp.inf)), near)


def _dictionary(D: Any) -> Any:
    D = check_floats("D", D)
    check_finite("D", D)
    if D.ndim != 2 or not bool((D != 0).any()):
        msg = f"D of shape {tuple(D.shape)} must be a (d_sae, d_in) matrix that is not all zeros (def-lipschitz)"
        raise Error(msg)
    return wide(D)


def certify(
    x: Any, D: Any, z: Any, before: Any, R: Penalty, tol: float, L: float, norm: Any = None
) -> tuple[Any, Any, Any]:
    """The certificate of z, whether it is good enough, and whether it is settled: three arrays of shape (...).

    A code is settled if it is within a tenth of tol before the rounding of its certificate is counted: then more steps
    cannot help.  For L1 it is good enough if the gap, raised by the bound on its rounding error, is within tol
    (lem-sure-gap).  For L0 and KSparse a fixed point at step 1/L says little, so the last `Refit` step, which is
    longer, must have left the code `before` it in place as well.
    """
    if runs(R, L1):
        gap, objective, plain = l1_gap(x, D, z, R, norm)
        return gap, (gap <= tol * objective) & (gap < np.inf), (plain <= tol / 10 * objective) & (plain < np.inf)
    gap = fixed_point_residual(x, D, z, R, 1 / L)
    size, last = (z * z).sum(-1) ** 0.5, ((z - before) ** 2).sum(-1) ** 0.5
    good, settled = ((gap <= t * size) & (last <= t * size) for t in (tol, tol / 10))
    return gap, good, settled

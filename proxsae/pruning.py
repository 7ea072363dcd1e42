"""Latents that a code does not need: leave-one-out pruning, one hard-thresholding step on the latents that fire.

r = x - b - D z,    p_j = d_j^T r + ||d_j||^2 z_j,    keep z_j where p_j has the sign of z_j and |p_j| > tau
"""

from __future__ import annotations

from typing import Any

from proxsae.certificates import centred, wide
from proxsae.conventions import alike, check_number, check_problem, is_torch, namespace


def leave_one_out(x: Any, D: Any, z: Any, tau: float, bias: Any = None) -> Any:
    """The code z without the latents whose atom, if it alone is left out, explains too little of x.

    x: rows (..., d).
    D: the dictionary (P, d), atoms as rows.
    z: codes (..., P), signed or not.
    tau: the threshold, >= 0.
    bias: b (d,).

    p_j = d_j^T (x - b - D z + z_j d_j) is how much of atom j there is in what the others leave of x.  Where p_j and z_j
    have one sign and |p_j| > tau, z_j is returned as it was, with its gradient; elsewhere 0.  For z >= 0 this is
    p_j > tau.  With atoms of norm 1 it is the support of one step of `L0(tau^2 / 2)` at mu = 1, on the latents that
    fire; a `Refit` may follow.  p is worked out in float64.  Statement: prop-leave-one-out.
    Raises `Error` for a tau below 0 and for data that does not fit.

    The first atom explains what the other two do not; they explain little that it leaves:

    >>> import numpy as np
    >>> D = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> leave_one_out(np.array([1.0, 0.1]), D, np.array([0.9, 0.1, 0.2]), tau=0.3)
    array([0.9, 0. , 0. ])
    """
    tau = check_number("tau", tau, ">= 0", ", a threshold (prop-leave-one-out)")
    given = alike({"x": x, "D": D, "z": z} | ({} if bias is None else {"bias": bias}))
    check_problem(given["x"], given["D"], given["z"], given.get("bias"), code="z")
    code, atoms, z = given["z"], wide(given["D"]), wide(given["z"])
    p = (centred(given["x"], given.get("bias")) - z @ atoms) @ atoms.T + (atoms * atoms).sum(-1) * z
    keep = ((p > tau) & (z > 0)) | ((p < -tau) & (z < 0))
    return namespace(code).where(keep, code, code.new_zeros(()) if is_torch(code) else code.dtype.type(0))

"""The domain of a parameter as data: one text that the constructor checks, and on which the machine proofs rely.

    ">= 0"             one finite number
    ">= 0 per latent"  one number, or one per latent, shape (P,)
    "whole >= 0"       one whole number

The weights `lam` and `lam_minus` may be infinite, which switches a latent or its negative side off, and may be torch
tensors, which stay so and carry gradients.  A `lam_minus` of None stands for lam.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from proxsae.conventions import Error, as_reals, check_count, check_number, is_torch, may_look, shown, within

LAMS = ("lam", "lam_minus")  # of a latent, and of its negative side where that has one of its own


def check_parameter(family: str, name: str, value: Any, allowed: str) -> Any:
    """Return a parameter as a float, int, read-only (P,) float64 array or tensor; raise `Error` unless `allowed`."""
    if name == "lam_minus" and value is None:
        return None
    if allowed.startswith("whole >= "):
        return check_count(f"{family}: {name}", value, int(allowed.removeprefix("whole >= ")))
    if name in LAMS:
        return _check_weight(f"{family}: {name}", value, allowed)
    return check_number(f"{family}: {name}", value, allowed, ": one number")


def _check_weight(name: str, lam: Any, allowed: str) -> Any:
    bound, per_latent, _ = allowed.partition(" per latent")
    size = "one number or one per latent, shape (P,)" if per_latent else "one number"
    why = f"must be {bound}, {size}; inf switches a latent off (def-prox)"
    original, lam = lam, as_reals(name, lam)
    if lam.ndim > (1 if per_latent else 0) or 0 in lam.shape:
        msg = f"{name} has shape {tuple(lam.shape)}, but {why}"
        raise Error(msg)
    bad = ~within(bound, lam)
    if may_look(lam) and bool(bad.any()):
        at = int(np.argmax(np.asarray(bad.tolist()))) if lam.ndim else 0
        given = f"{name} has the entry {lam[at].item():g} at {at}, but" if lam.ndim else f"{name}={shown(original)}"
        msg = f"{given} {why}"
        raise Error(msg)
    if is_torch(lam):
        return lam
    if not lam.ndim:
        return float(lam)
    lam = np.array(lam, dtype=np.float64)
    lam.setflags(write=False)
    return lam

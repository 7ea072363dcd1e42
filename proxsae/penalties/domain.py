"""The domain of a parameter as data: one text that the constructor checks, and on which the machine proofs rely.

    ">= 0"             one finite number
    ">= 0 per latent"  one finite number, or one per latent, shape (P,)
    "whole >= 0"       one whole number

A parameter called `lam` may be a torch tensor, which stays one and carries gradients.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from proxsae.conventions import Error, as_number, check_count, is_torch, may_look


def holds(allowed: str, value: Any) -> Any:
    """Whether `value` is within the bound of a domain: for a number, an array, a tensor or a symbol of the solver."""
    sign, bound = allowed.removeprefix("whole ").split()[:2]
    return value >= float(bound) if sign == ">=" else value > float(bound)


def check_parameter(family: str, name: str, value: Any, allowed: str) -> Any:
    """Return a parameter as a float, int, read-only (P,) float64 array or tensor; raise `Error` unless `allowed`."""
    if allowed.startswith("whole >= "):
        return check_count(f"{family}: {name}", value, int(allowed.removeprefix("whole >= ")))
    if name == "lam":
        return _check_lam(family, value, allowed)
    number = as_number(value)
    if number is None or not holds(allowed, number):
        msg = f"{family}: {name}={value!r} must be finite and {allowed}: one number"
        raise Error(msg)
    return number


def _check_lam(family: str, lam: Any, allowed: str) -> Any:
    shown = "an array" if np.ndim(lam) else f"{lam!r}"
    if not is_torch(lam):
        kind = np.asarray(lam).dtype.kind
        lam = np.array(lam, dtype=np.float64) if kind in "iuf" else np.array(math.nan)  # NaN is refused below
        lam.setflags(write=False)
    bound, per_latent, _ = allowed.partition(" per latent")
    if lam.ndim and not per_latent:
        msg = f"{family}: lam has shape {tuple(lam.shape)}, but must be one number: all latents share it"
        raise Error(msg)
    if lam.ndim > 1 or 0 in lam.shape or (may_look(lam) and not bool((holds(bound, lam) & (lam < math.inf)).all())):
        worst = f" with the entry {lam.min().item():g}" if lam.ndim == 1 and len(lam) else ""
        size = "one number or one per latent" if per_latent else "one number"
        msg = f"{family}: lam={shown}{worst}, but lam must be finite and {bound}, {size} (def-prox)"
        raise Error(msg)
    return float(lam) if lam.ndim == 0 and not is_torch(lam) else lam

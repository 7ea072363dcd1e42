"""Steps after the first that are not proximal gradient with a rule: by the learned encoder, and of learned sizes.

    encoder   z+ = prox_R(z - (D z + b - x) W_enc),  kept where F does not rise
    learned   z+ = prox_{mu_t R_t}(z - mu_t D^T (D z + b - x)),  R_t with lam times a factor                (def-ista)

`tilt` is b_enc where it belongs to every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxsae.penalties.base import with_lams
from proxsae.pytorch.codes import accumulator
from proxsae.pytorch.iteration import Point
from proxsae.pytorch.prox import has_kernel, in_kernel, prox


def encoder(point: Point, R: Any, W_enc: Tensor, tilt: Tensor | None) -> Iterator[Point]:
    """Yield z_1, z_2, ... without end; a row whose objective would rise keeps its code."""
    spent = point.spent + 1  # the residual of z_1
    while True:
        yield point
        spent = spent + 2
        u = point.z - point.residual() @ W_enc
        u = u if tilt is None else u + tilt
        trial = Point(prox(R, u), point.c, point.D, spent, tilt=tilt)
        now, then = trial.compared(R), point.compared(R)
        if not R.rowwise:  # the batch is one vector
            now, then = (F.sum().expand(len(F)) for F in (now, then))
        falls = ((now <= then) & (now < torch.inf))[:, None]
        residual = torch.where(falls, trial.residual(), point.residual())
        z = torch.where(falls, trial.z, point.z)
        felt = None if point.felt is None else torch.where(falls, in_kernel(R, u), point.felt)
        point = Point(z, point.c, point.D, spent, residual, tilt=tilt, felt=felt)


def learned(
    point: Point, R: Any, log_steps: Tensor, log_lam_factors: Tensor | None, tilt: Tensor | None
) -> Iterator[Point]:
    """Yield z_1 and one more point for each learned step size (T - 1,)."""
    yield point
    for t, log_step in enumerate(log_steps):
        g = point.residual() @ point.D.T
        mu, Rt = log_step.to(accumulator(log_step.dtype)).exp(), R
        if log_lam_factors is not None:
            Rt = with_lams(R, partial(_times, factor=log_lam_factors[t].double().exp()))
        down = g if tilt is None else g - tilt
        u = point.z - (mu * down.to(mu.dtype)).to(g.dtype)
        felt = in_kernel(Rt, u, mu) if has_kernel(Rt) else None
        point = Point(prox(Rt, u, mu), point.c, point.D, point.spent + 2, tilt=tilt, felt=felt)
        yield point


def _times(lam: Any, factor: Tensor) -> Tensor:
    """A weight times a trained factor, which has no gradient where the weight is infinite."""
    lam = (lam if isinstance(lam, Tensor) else torch.as_tensor(np.array(lam))).to(factor.device)
    return torch.where(lam.isinf(), lam, lam * torch.where(lam.isinf(), factor.detach(), factor))

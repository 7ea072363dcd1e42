"""Steps after the first by the learned encoder:  z+ = prox_R(z - (D z + b - x) W_enc),  kept where F does not rise.

`tilt` is b_enc where it belongs to every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from proxsae.pytorch.iteration import Point
from proxsae.pytorch.prox import in_kernel, prox


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

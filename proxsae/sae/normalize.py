"""Normalising rows before they are encoded, and undoing it: part of an SAE, as in the libraries that train with it.

    layer_norm      x' = (x - mean) / (std + 1e-5),    xhat = xhat' std + mean        (std with d - 1)
    constant_norm   x' = x sqrt(d) / ||x||,            xhat = xhat' ||x|| / sqrt(d)

The 1e-5 is not undone, since those libraries do not: decoding what was normalised loses 1e-5 / std of the deviation.
Means and norms are taken in float64, where squares of float32 neither overflow nor vanish.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxsae.conventions import Error, check_choice

KINDS = ("none", "layer_norm", "constant_norm")
EPS = 1e-5


@dataclass(frozen=True)
class Normalized:
    """Rows x' (..., d), and per row what gives x back: mean and scale, shape (..., 1)."""

    rows: Tensor
    mean: Tensor
    scale: Tensor

    def undo(self, rows: Tensor) -> Tensor:
        """Rows (..., d) of the normalised space in the units of x."""
        return rows * self.scale + self.mean


def check_kind(kind: str, d_in: int) -> str:
    """Return the kind of normalisation when it is known and makes sense for rows of d_in numbers, or raise `Error`."""
    check_choice("normalize", kind, KINDS)
    if kind == "layer_norm" and d_in < 2:
        msg = f"normalize='layer_norm' with d_in={d_in}: a deviation needs rows of two numbers or more"
        raise Error(msg)
    return kind


def normalize(x: Tensor, kind: str) -> Normalized:
    """Normalise the rows of x (..., d); a row of zeros stays one."""
    wide = x.double()
    if kind == "layer_norm":
        mean, scale = wide.mean(dim=-1, keepdim=True), wide.std(dim=-1, keepdim=True)
        rows = (wide - mean) / (scale + EPS)
    else:
        mean, scale = torch.zeros_like(wide[..., :1]), wide.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        rows = wide / torch.where(scale > 0, scale, 1)
    return Normalized(rows.to(x.dtype), mean.to(x.dtype), scale.to(x.dtype))

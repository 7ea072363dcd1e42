"""Greedy pursuit in torch: matching pursuit and its orthogonal form, an atom a step, differentiable.

    j = argmax_j |d_j^T r| / ||d_j||,    r = c - D z     from z = 0; with `nonneg` only d_j^T r > 0 counts

`reference/pursuit.py` has both in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from proxsae.learned import OMP, Greedy
from proxsae.pytorch.iteration import Point
from proxsae.pytorch.refit import refit
from proxsae.pytorch.topk import top_k

ROUNDING = 100  # an atom that correlates with less than so many eps of ||c|| correlates with what was rounded


def pursue(rule: Greedy, c: Tensor, D: Tensor, R: Any) -> Iterator[Point]:
    """Yield the points of 1, 2, ... atoms for centred rows c (B, d), without end; a row that fits stays as it is."""
    norms = torch.linalg.vector_norm(D.detach(), dim=1)
    norms = torch.where(norms > 0, norms, 1)
    floor = ROUNDING * torch.finfo(c.dtype).eps * torch.linalg.vector_norm(c.detach(), dim=1)
    z, r = c.new_zeros(len(c), len(D)), c
    spent = torch.zeros(len(c), dtype=torch.float64, device=c.device)
    orthogonal = isinstance(rule, OMP)
    while True:
        scores = r.detach() @ D.detach().T / norms
        scores = torch.relu(scores) if R.nonneg else scores.abs()
        if orthogonal:  # an atom of the support has none left, but for rounding
            scores = torch.where(z != 0, 0, scores)
        j = top_k(scores, 1)
        going = scores.gather(1, j)[:, 0] > floor
        atom = D[j[:, 0]]
        energy = atom.square().sum(dim=1)
        v = torch.where(going, (r * atom).sum(dim=1) / torch.where(energy > 0, energy, 1), 0)[:, None]
        spent = spent + 1
        if orthogonal:
            with torch.no_grad():
                found = z.scatter_add(1, j, v.detach())
            size = (found != 0).sum(dim=1).double()
            spent = spent + size * (size + 2) / len(D)
            best = refit(found, c, D, R)
            point = Point(best, c, D, spent)
            z, r = best.detach(), -point.residual().detach()
        else:
            z, r = z.scatter_add(1, j, v), r - v * atom
            point = Point(z, c, D, spent, -r)
        yield point

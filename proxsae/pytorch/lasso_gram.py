"""Small l1 problems given by their Gram matrices, many side by side, in float64, as `lasso_working_sets` asks.

    min_z  1/2 ||c - A z||^2 + sum_j lam_j |z_j|,   known by  G = A^T A,  g = A^T (c - A z)  and  ||c - A z||^2

Proximal gradient with momentum finds support and signs, a Newton step on the support ends what it began, and a line
search keeps the objective from rising where a sign would change.  Problems (n, W) that are done leave the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PROX_STEPS = 8  # between Newton steps
NEWTON_STEPS = 30


def gap_of(
    z: Tensor, g: Tensor, lam: Tensor, square: Tensor, nonneg: bool, slack: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Duality gap on the working set and objective, from slopes g and ||r||^2 = `square` (thm-duality-gap).

    With `slack` (n, 1), how far a slope may be wrong, a bound on the gap as far as slopes go (lem-sure-gap).
    """
    steep = (g.clamp(min=0) if nonneg else g.abs()) + slack
    scale = torch.where(steep > lam, lam / torch.where(steep > 0, steep, 1), 1).amin(dim=1)
    square, cost = square.clamp(min=0), torch.where(z != 0, lam * z.abs(), 0).sum(dim=1)
    return 0.5 * (1 - scale).square() * square + cost - scale * (z * g).sum(dim=1), 0.5 * square + cost


def solve(
    gram: Tensor, z: Tensor, g: Tensor, lam: Tensor, square: Tensor, tol: float, nonneg: bool
) -> tuple[Tensor, Tensor]:
    """Codes and slopes (n, W) of the problems on the working sets, solved to a tenth of `tol` from z and slopes g."""
    codes, slopes = z.clone(), g.clone()
    at = torch.arange(len(z), device=z.device)
    majorant = gram.abs().sum(dim=-1).clamp(min=torch.finfo(z.dtype).tiny)  # diag(majorant) >= gram (Gershgorin)
    for _ in range(NEWTON_STEPS):
        start, before = z, g
        z, g = _proximal_steps(gram, majorant, z, g, lam, nonneg)
        square = square - ((z - start) * (before + g)).sum(dim=1)
        move, along = _newton(gram, z, g, lam)
        z, square, g = z + move, square - (move * (2 * g - along)).sum(dim=1), g - along
        codes[at], slopes[at] = z, g
        gap, objective = gap_of(z, g, lam, square, nonneg)
        going = (gap > 0.1 * tol * objective).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) <= 0.7 * len(at):
            at, z, g, lam, square = at[going], z[going], g[going], lam[going], square[going]
            gram, majorant = gram[going], majorant[going]
    return codes, slopes


def _proximal_steps(
    gram: Tensor, majorant: Tensor, z: Tensor, g: Tensor, lam: Tensor, nonneg: bool
) -> tuple[Tensor, Tensor]:
    """FISTA in the metric `majorant` (thm-fista-rate)."""
    y, slope_y, t = z, g, 1.0
    weight, threshold = 1 / majorant, lam / majorant
    below = torch.full_like(threshold, -torch.inf) if nonneg else -threshold
    for _ in range(max(PROX_STEPS, z.shape[1] // 12)):
        u = torch.addcmul(y, slope_y, weight)
        new = u - torch.clamp(u, below, threshold)
        move = new - z
        slope = torch.baddbmm(g[:, None], move[:, None], gram, alpha=-1)[:, 0]
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        y, slope_y = torch.add(new, move, alpha=(t - 1) / after), torch.lerp(g, slope, 1 + (t - 1) / after)
        z, g, t = new, slope, after
    return z, g


def _newton(gram: Tensor, z: Tensor, g: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """The move to the minimiser on the support with signs held, or as far as the objective falls; and gram @ move."""
    support = z != 0
    size = max(1, int(support.sum(dim=1).max()))
    at = support.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]
    on = support.gather(1, at)
    n, W = z.shape
    flat = (torch.arange(n, device=z.device)[:, None] * W + at)[:, :, None] * W + at[:, None]
    small = gram.view(-1).index_select(0, flat.view(-1)).view(n, size, size)
    small = torch.where(on[:, :, None] & on[:, None], small, 0)
    small.diagonal(dim1=1, dim2=2).add_(torch.where(on, 1e-12, 1.0))
    h = torch.where(on, (g - torch.where(support, lam, 0) * z.sign()).gather(1, at), 0)
    solution = torch.cholesky_solve(h[..., None], torch.linalg.cholesky_ex(small).L)[..., 0]
    move = torch.zeros_like(z).scatter_(1, at, torch.where(on & solution.isfinite(), solution, 0))
    along = (move[:, None] @ gram)[:, 0]
    first = torch.where(z * (z + move) < 0, -z / torch.where(move != 0, move, 1), torch.inf).amin(dim=1)
    blocked = (first < 1).nonzero()[:, 0]
    if len(blocked):  # codes that change sign stop at 0
        z, g, lam = z[blocked, None], g[blocked, None], torch.where(support, lam, 0)[blocked, None]
        length = torch.stack([torch.ones_like(first), torch.full_like(first, 0.5), first], dim=1)[blocked, :, None]
        trial = z + length * move[blocked, None]
        trials = torch.where(trial.sign() == z.sign(), trial, 0) - z
        alongs = trials @ gram[blocked]
        change = (trials * (0.5 * alongs - g) + lam * ((z + trials).abs() - z.abs())).sum(dim=-1)
        best = change.argmin(dim=1)
        falls, row = (change.amin(dim=1) <= 0)[:, None], torch.arange(len(best), device=best.device)
        move[blocked] = torch.where(falls, trials[row, best], 0)
        along[blocked] = torch.where(falls, alongs[row, best], 0)
    return move, along

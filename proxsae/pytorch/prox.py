"""The operators for torch tensors, with their backward rules: the same contract as `penalties/`, on CPU and CUDA.

Derivatives are those of the formulas (thm-prox-gradient).  At a threshold, and where an entry of a separable or
k-sparse code is 0, the derivative is 0.  Thresholds are worked out in float64 and rounded once to the dtype of u, as in
NumPy, so that both backends agree bit for bit wherever the formula is one of single entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxsae.conventions import check_floats, check_step
from proxsae.penalties import L0, L1, MCP, SCAD, BatchKSparse, ElasticNet, GroupL2, KSparse, Penalty, SortedL1
from proxsae.pytorch.topk import top_k


def soft_threshold(u: Tensor, threshold: Tensor) -> Tensor:
    """sign(u) max(|u| - threshold, 0) for u (..., P) and a threshold that broadcasts against it (thm-prox-l1)."""
    kept = u.abs() > threshold
    return torch.where(kept, u - torch.copysign(threshold, u.detach()), torch.where(u.isnan(), u, 0))


def hard_threshold(u: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """u where |u| > threshold, else 0 (thm-prox-l0).

    The derivative in u is 1 on the support.  In the threshold it is the straight-through estimate
    -sign(u) (threshold / bandwidth) 1[| |u| - threshold | < bandwidth / 2]  (Rajamanoharan et al. 2024), a choice
    (prop-threshold-gradient).
    """
    return _HardThreshold.apply(u, threshold, bandwidth)


class _HardThreshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(u, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(~(u.abs() <= threshold), u, 0)  # a NaN is kept

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        u, threshold = ctx.saved_tensors
        to_u = to_threshold = None
        if ctx.needs_input_grad[0]:
            to_u = torch.where(~(u.abs() <= threshold), grad, 0)
        if ctx.needs_input_grad[1]:
            inside = (u.abs() - threshold).abs() < ctx.bandwidth / 2
            wide = torch.where(inside, -grad * u.sign() * threshold / ctx.bandwidth, 0)
            to_threshold = wide.sum_to_size(threshold.shape)
        return to_u, to_threshold, None


def count_above(u: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The number of |u| > threshold per row, (..., P) -> (...), to train a threshold by (prop-threshold-gradient).

    Its derivative in u is 0, in the threshold the straight-through
    -(1 / bandwidth) 1[| |u| - threshold | < bandwidth / 2].
    """
    inside = ((u.abs() - threshold).abs() < bandwidth / 2).to(u.dtype).detach()
    surrogate = -(threshold - threshold.detach()) * inside / bandwidth  # zero in value
    return ((u.detach().abs() > threshold.detach()).to(u.dtype) + surrogate).sum(dim=-1)


def k_sparse(u: Tensor, k: int) -> Tensor:
    """u on its k largest magnitudes, lowest index first among ties, 0 elsewhere: (..., P) (thm-prox-ksparse)."""
    if k >= u.shape[-1]:
        return torch.where(u != 0, u, 0)
    indices = top_k(u, k)
    values = u.gather(-1, indices)
    return torch.zeros_like(u).scatter(-1, indices, torch.where(values != 0, values, 0))


def prox(R: Penalty, u: Tensor, step: float | Tensor = 1.0) -> Tensor:
    """prox_{step R}(u) for torch; what `R.prox` calls.  u (..., P); `step` a number or one per row, shape (...).

    Its derivative is that of thm-prox-gradient.
    A penalty whose lam is a tensor gets its gradient; so does a step that is one.  Raises as `Penalty.prox` does.
    """
    check_floats("u", u)
    step = check_step(step, u)
    R.check_fits("u", u, u.shape[-1])
    mu = step.double()[..., None] if isinstance(step, Tensor) and step.ndim else step
    return _PROX[type(R)](R, torch.relu(u) if R.nonneg else u, mu)  # lem-nonneg


def value(R: Penalty, z: Tensor) -> Tensor:
    """R(z) per row, (..., P) -> (...); what `R.value` calls.  Half precision accumulates in float32."""
    check_floats("z", z)
    R.check_fits("z", z, z.shape[-1])
    wide = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    total = _VALUE[type(R)](R, wide)
    if R.nonneg:
        total = torch.where((z < 0).any(dim=-1), torch.inf, total)
    return total.to(z.dtype)


def slope(R: Penalty, z: Tensor) -> Tensor:
    """The derivative of R along the support of z, signs held; what `R.slope` calls."""
    return (_lam(R, z) * z.sign()).to(z.dtype) if isinstance(R, L1) else torch.zeros_like(z)


def _lam(R: Any, u: Tensor) -> Tensor:
    """lam in float64 on the device of u."""
    lam = R.lam if isinstance(R.lam, Tensor) else torch.tensor(R.lam, dtype=torch.float64)
    return lam.to(u.device, torch.float64)


class _Root(torch.autograd.Function):
    """Square root, correctly rounded, whose derivative at 0 is 0 and not infinity.

    On CPUs torch's own sqrt may be off by one unit in the last place (0.5 is an example), which moves ties; NumPy's is
    IEEE's, and so is CUDA's.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        root = a.sqrt() if a.is_cuda else torch.as_tensor(np.sqrt(a.detach().numpy()))
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (root,) = ctx.saved_tensors
        return torch.where(root > 0, grad / (2 * torch.where(root > 0, root, 1)), 0)


def _prox_l1(R: L1, u: Tensor, mu: float | Tensor) -> Tensor:
    return soft_threshold(u, (mu * _lam(R, u)).to(u.dtype))


def _prox_l0(R: L0, u: Tensor, mu: float | Tensor) -> Tensor:
    return hard_threshold(u, _Root.apply(2.0 * (mu * _lam(R, u))).to(u.dtype), R.bandwidth)


def _prox_ksparse(R: KSparse, u: Tensor, mu: float | Tensor) -> Tensor:
    return k_sparse(u, R.k)


def _prox_batch(R: BatchKSparse, u: Tensor, mu: float | Tensor) -> Tensor:
    return k_sparse(u.reshape(-1), R.k * math.prod(u.shape[:-1])).reshape(u.shape)


def _prox_elastic(R: ElasticNet, u: Tensor, mu: float | Tensor) -> Tensor:
    divisor = torch.as_tensor(1 + mu * R.alpha, dtype=torch.float64, device=u.device).to(u.dtype)
    return soft_threshold(u, (mu * _lam(R, u)).to(u.dtype)) / divisor + 0  # an underflow is not -0.0


def _prox_mcp(R: MCP, u: Tensor, mu: float | Tensor) -> Tensor:
    step, lam, size = _step(mu, u), _lam(R, u), u.abs()
    firm = step < R.gamma
    gap = torch.where(firm, R.gamma - step, 1)
    threshold = torch.where(firm, step * lam, lam * _Root.apply(R.gamma * step)).to(u.dtype)
    inner = _over(R.gamma, gap).to(u.dtype) * (size - threshold)
    kept = torch.where(firm & (inner < size), inner, size)
    return torch.where(size <= threshold, 0, torch.where(u > 0, kept, -kept))


def _prox_scad(R: SCAD, u: Tensor, mu: float | Tensor) -> Tensor:
    step, lam, size, a = _step(mu, u), _lam(R, u), u.abs(), R.a
    gap = torch.where(step < a - 1, a - 1 - step, 1)
    threshold = torch.where(step < a + 1, step * lam, lam * _Root.apply(step * (a + 1))).to(u.dtype)
    shrunk = size - (step * lam).to(u.dtype)
    inner = _over(a - 1, gap).to(u.dtype) * (size - (step * lam * a / (a - 1)).to(u.dtype))
    inner = torch.where(inner < size, inner, size)
    gentle = torch.where(shrunk > inner, shrunk, inner)
    stays = (step < a + 1) & (size <= (lam * (a + 1 + step) / 2).to(u.dtype))
    kept = torch.where(step < a - 1, gentle, torch.where(stays, shrunk, size))
    return torch.where(size <= threshold, 0, torch.where(u > 0, kept, -kept))


def _prox_group(R: GroupL2, u: Tensor, mu: float | Tensor) -> Tensor:
    groups = _groups(R, u)
    norms = group_norms(groups)
    t = (mu * _lam(R, u)).to(u.dtype).double()
    alive = ~(norms <= t)
    shrink = 1 - t / torch.where(alive, norms, 1)
    return torch.where(alive[..., None], groups * shrink[..., None], 0).reshape(u.shape).to(u.dtype) + 0


def _groups(R: GroupL2, a: Tensor) -> Tensor:
    return a.double().unflatten(-1, (a.shape[-1] // R.size, R.size))


def group_norms(groups: Tensor) -> Tensor:
    """||z_g||_2 over the last axis, summed in order and free of overflow; its gradient at a zero group is 0."""
    largest = groups.detach().abs().amax(dim=-1)
    unit = torch.where((largest > 0) & (largest < torch.inf), largest, 1)
    total = torch.zeros_like(largest)
    for part in groups.unbind(dim=-1):  # one backward for all, where an index each would be quadratic
        total = total + (part / unit).square()
    return _Root.apply(total) * unit


def _prox_sorted(R: SortedL1, u: Tensor, mu: float | Tensor) -> Tensor:
    if not u.numel():
        return u.clone()
    size, order = u.double().abs().sort(dim=-1, descending=True, stable=True)
    lowered = (size - mu * _lam(R, u)).reshape(-1, u.shape[-1])
    pool = _pools(lowered.detach())
    sums = torch.zeros_like(lowered).scatter_add(-1, pool, lowered)
    counts = torch.zeros_like(lowered).scatter_add(-1, pool, torch.ones_like(lowered))
    fitted = torch.relu((sums / counts.clamp(min=1)).gather(-1, pool)).reshape(u.shape)
    fitted = torch.zeros_like(fitted).scatter(-1, order, fitted)
    fitted = torch.where(u.isnan().any(dim=-1, keepdim=True), torch.nan, fitted)
    return torch.where(u > 0, fitted, -fitted).to(u.dtype) + 0


@torch.no_grad()
def _pools(rows: Tensor) -> Tensor:
    """For rows (n, P), the pools (n, P) whose means are the closest non-increasing row: numbered from 0 in each row.

    All neighbouring pools that increase are merged at once, until none does: every such merger belongs to the solution,
    whatever the order (thm-prox-sorted).
    """
    pool = torch.arange(rows.shape[-1], device=rows.device).expand(rows.shape).clone()
    counts, sums = torch.ones_like(rows), rows.clone()
    while True:
        means = sums / counts.clamp(min=1)
        rises = (means[:, 1:] > means[:, :-1]) & (counts[:, 1:] > 0)
        if not bool(rises.any()):
            return pool
        starts = torch.cat([torch.ones_like(rises[:, :1]), ~rises], dim=-1)
        number = starts.cumsum(dim=-1) - 1  # of each old pool in the new count
        pool = number.gather(-1, pool)
        counts = torch.zeros_like(counts).scatter_add(-1, number, counts)
        sums = torch.zeros_like(sums).scatter_add(-1, number, sums)


def _step(mu: float | Tensor, u: Tensor) -> Tensor:
    return torch.as_tensor(mu, dtype=torch.float64, device=u.device)


def _over(a: float, b: Tensor) -> Tensor:
    """a / b, rounded once: torch takes a number over a tensor as a product with the reciprocal, rounded twice."""
    return torch.full_like(b, a) / b


def _value_mcp(R: MCP, z: Tensor) -> Tensor:
    lam, size = _lam(R, z).to(z.dtype), z.abs()
    inner = lam * size - z * z / (2 * R.gamma)
    return torch.where(size > R.gamma * lam, R.gamma * lam * lam / 2, inner).sum(-1)


def _value_scad(R: SCAD, z: Tensor) -> Tensor:
    lam, size, a = _lam(R, z).to(z.dtype), z.abs(), R.a
    middle = (2 * a * lam * size - z * z - lam * lam) / (2 * (a - 1))
    inner = torch.where(size <= lam, lam * size, middle)
    return torch.where(size > a * lam, lam * lam * (a + 1) / 2, inner).sum(-1)


def _value_group(R: GroupL2, z: Tensor) -> Tensor:
    return (_lam(R, z) * group_norms(_groups(R, z)).sum(-1)).to(z.dtype)


def _value_batch(R: BatchKSparse, z: Tensor) -> Tensor:
    fits = (z != 0).sum() <= R.k * math.prod(z.shape[:-1])
    return torch.where(fits, 0.0, torch.inf).to(z.dtype).expand(z.shape[:-1]).clone()


_PROX: dict[type, Callable[..., Tensor]] = {
    L1: _prox_l1,
    L0: _prox_l0,
    KSparse: _prox_ksparse,
    ElasticNet: _prox_elastic,
    MCP: _prox_mcp,
    SCAD: _prox_scad,
    GroupL2: _prox_group,
    SortedL1: _prox_sorted,
    BatchKSparse: _prox_batch,
}
_VALUE: dict[type, Callable[..., Tensor]] = {
    L1: lambda R, z: (_lam(R, z).to(z.dtype) * z.abs()).sum(-1),
    L0: lambda R, z: (_lam(R, z).to(z.dtype) * (z != 0)).sum(-1),
    KSparse: lambda R, z: torch.where((z != 0).sum(-1) <= R.k, 0.0, torch.inf),
    ElasticNet: lambda R, z: (_lam(R, z).to(z.dtype) * z.abs() + R.alpha / 2 * z.square()).sum(-1),
    MCP: _value_mcp,
    SCAD: _value_scad,
    GroupL2: _value_group,
    SortedL1: lambda R, z: (_lam(R, z).to(z.dtype) * z.abs().sort(dim=-1, descending=True).values).sum(-1),
    BatchKSparse: _value_batch,
}

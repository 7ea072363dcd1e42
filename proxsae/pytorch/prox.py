"""The operators for torch tensors, with their backward rules: the same contract as `penalties/`, on CPU and CUDA.

Derivatives are those of the formulas (thm-prox-gradient).  At a threshold, and where an entry of a separable or
k-sparse code is 0, the derivative is 0.  Thresholds are worked out in float64 and rounded once to the dtype of u, as in
NumPy, so that both backends agree bit for bit wherever the formula is one of single entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, library
from torch.nn import functional

from proxsae.conventions import Error, check_floats, check_step, may_look
from proxsae.penalties import L0, L1, BatchKSparse, GroupL2, KSparse, Penalty, Separable, SortedL1
from proxsae.penalties.base import lams, runs
from proxsae.penalties.domain import LAMS
from proxsae.pytorch.arithmetic import TorchArithmetic, differentiated, sqrt
from proxsae.pytorch.autocast import outside_autocast
from proxsae.pytorch.topk import top_k


def soft_threshold(u: Tensor, threshold: Tensor) -> Tensor:
    """sign(u) max(|u| - threshold, 0) for u (..., P) and a threshold that broadcasts against it (thm-prox-l1).

    Its derivative in the threshold is -sign(u) on the support, one-sided at a threshold of 0 (thm-prox-gradient).
    """
    kept = u.abs() > threshold
    return torch.where(kept, u - threshold * u.detach().sign(), torch.where(u.isnan(), u, 0))


def hard_threshold(u: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """u where |u| > threshold, else 0 (thm-prox-l0).

    The derivative in u is 1 on the support.  In the threshold it is the straight-through estimate
    -sign(u) (threshold / bandwidth) 1[| |u| - threshold | < bandwidth / 2]  (Rajamanoharan et al. 2024), a choice
    (prop-threshold-gradient).
    """
    if not differentiated(u, threshold):
        return _kept(u, threshold)
    return _HardThreshold.apply(u, threshold, bandwidth)


def _kept(u: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(~(u.abs() <= threshold), u, 0)  # a NaN is kept


class _HardThreshold(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:  # type: ignore[override]
        return _kept(u, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        u, threshold, ctx.bandwidth = inputs
        ctx.save_for_backward(u, threshold)
        ctx.save_for_forward(u, threshold)

    @staticmethod
    def jvp(ctx: Any, along_u: Tensor, along_threshold: Tensor, _: None) -> Tensor:  # type: ignore[override]
        u, threshold = ctx.saved_tensors
        felt = u.sign() * threshold / ctx.bandwidth * along_threshold
        inside = _inside(u, threshold, ctx.bandwidth)
        return torch.where(~(u.abs() <= threshold), along_u, 0) - torch.where(inside, felt, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        u, threshold = ctx.saved_tensors
        to_u = to_threshold = None
        if ctx.needs_input_grad[0]:
            to_u = torch.where(~(u.abs() <= threshold), grad, 0)
        if ctx.needs_input_grad[1]:
            inside = _inside(u, threshold, ctx.bandwidth)
            wide = torch.where(inside, -grad * u.sign() * threshold / ctx.bandwidth, 0)
            to_threshold = wide.sum_to_size(threshold.shape)
        return to_u, to_threshold, None


def _inside(u: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Where a threshold has a straight-through gradient."""
    return (u.abs() - threshold).abs() < bandwidth / 2


def _number(R: Any, u: Tensor, mu: float | Tensor, threshold: Callable[[float], float]) -> float | None:
    """A threshold of mu lam as one number of the dtype of u, where it is one and no graph is drawn: torch is fast then.

    None for lam or mu in tensors or by latent, and for what the dtype has no room for.
    """
    if not (isinstance(mu, float) and isinstance(R.lam, float) and may_look(u)) or torch.compiler.is_compiling():
        return None
    number = float(torch.tensor(threshold(mu * R.lam), dtype=torch.float64).to(u.dtype))
    return number if number < torch.inf else None


def _prox_l1(R: L1, u: Tensor, mu: float | Tensor) -> Tensor:
    number = _number(R, u, mu, lambda t: t)
    if number is None:
        return soft_threshold(u, (mu * _lam(R, u)).to(u.dtype))
    return functional.softshrink(u, number).add_(0.0)  # its zeros may be -0.0


def _prox_l0(R: L0, u: Tensor, mu: float | Tensor) -> Tensor:
    number = _number(R, u, mu, lambda t: math.sqrt(2.0 * t)) if R.lam_minus is None else None
    if number is None:
        return hard_threshold(u, _hard(R, u, mu), R.bandwidth)
    return functional.hardshrink(u, number)


def has_kernel(R: Penalty) -> TypeGuard[L0]:
    """Whether codes of R have gradients where they are 0: those of an L0 with a trained weight, near its threshold."""
    trained = (isinstance(w, Tensor) and w.requires_grad for w in lams(R).values())
    return runs(R, L0) and torch.is_grad_enabled() and any(trained)


def _column(step: float | Tensor) -> float | Tensor:
    """A step for each entry of its row: one per row as a column in float64."""
    return step.double()[..., None] if isinstance(step, Tensor) and step.ndim else step


def in_kernel(R: L0, u: Tensor, step: float | Tensor = 1.0) -> Tensor:
    """Where prox_{step R}(u) has a gradient in a weight, whether it is 0 there or not: u (..., P) -> (..., P)."""
    u = torch.relu(u) if R.nonneg else u
    return _inside(u, _hard(R, u, _column(step)), R.bandwidth)


def by_sign(u: Tensor, plus: Tensor, minus: Tensor | None) -> Tensor:
    """What the side of each entry of u has: `plus` where u > 0, else `minus`, which is `plus` if None."""
    return plus if minus is None else torch.where(u > 0, plus, minus)


def count_above(u: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The number of |u| > threshold per row, (..., P) -> (...), to train a threshold by (prop-threshold-gradient).

    Its derivative in u is 0, in the threshold the straight-through
    -(1 / bandwidth) 1[| |u| - threshold | < bandwidth / 2].
    """
    inside = _inside(u, threshold, bandwidth)
    surrogate = torch.where(inside, -(threshold - threshold.detach()), 0) / bandwidth  # zero in value
    return ((u.detach().abs() > threshold.detach()).to(u.dtype) + surrogate).sum(dim=-1)


def k_sparse(u: Tensor, k: int) -> Tensor:
    """u on its k largest magnitudes, lowest index first among ties, 0 elsewhere: (..., P) (thm-prox-ksparse)."""
    if k >= u.shape[-1]:
        return torch.where(u != 0, u, 0)
    indices = top_k(u, k)
    values = u.gather(-1, indices)
    return torch.zeros_like(u).scatter(-1, indices, torch.where(values != 0, values, 0))


@outside_autocast
def prox(R: Penalty, u: Tensor, step: float | Tensor = 1.0) -> Tensor:
    """prox_{step R}(u) for torch; what `R.prox` calls.  u (..., P); `step` a number or one per row, shape (...).

    Its derivative is that of thm-prox-gradient.
    A penalty whose lam is a tensor gets its gradient; so does a step that is one.  Raises as `Penalty.prox` does, and
    for a penalty whose formula is in NumPy only.
    """
    check_floats("u", u)
    step = check_step(step, u)
    R.check_fits("u", u, u.shape[-1])
    mu = _column(step)
    if isinstance(mu, Tensor) and mu.requires_grad and not runs(R, L0):  # L0: see `_hard`
        mu = _felt(mu, by_sign(u, _lam(R, u), _lam_minus(R, u)))
    return _formula(R, "prox")(R, torch.relu(u) if R.nonneg else u, mu)  # lem-nonneg


@outside_autocast
def value(R: Penalty, z: Tensor) -> Tensor:
    """R(z) per row, (..., P) -> (...); what `R.value` calls.  Half precision accumulates in float32."""
    check_floats("z", z)
    R.check_fits("z", z, z.shape[-1])
    wide = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    total = _formula(R, "value")(R, wide)
    if R.nonneg:
        total = torch.where((z < 0).any(dim=-1), torch.inf, total)
    return total.to(z.dtype)


@outside_autocast
def slope(R: Penalty, z: Tensor) -> Tensor:
    """The derivative of R along the support of z, signs held; what `R.slope` calls."""
    check_floats("z", z)
    R.check_fits("z", z, z.shape[-1])
    return _formula(R, "slope")(R, z)


def _formula(R: Penalty, what: str) -> Callable[..., Tensor]:
    """The torch formula of R, found as Python finds a method: the first class of R that has one, or a NumPy one.

    In each class: an implementation in this file, `_torch_prox` (`_torch_value`, `_torch_slope`), or the formula of an
    entry.  A subclass that overrides a formula in NumPy alone is refused, since that of its parent is another one.
    """
    for family in type(R).__mro__:
        if family in _OWN[what]:
            return _OWN[what][family]
        if f"_torch_{what}" in vars(family):
            return getattr(family, f"_torch_{what}")
        if f"entry_{what}" in vars(family):
            return _ENTRYWISE[what]
        if f"_{what}" in vars(family):
            msg = (
                f"{type(R).__name__} got a torch tensor, but its {what} is written for NumPy only: give "
                f"{family.__name__} a method _torch_{what}, which takes and returns tensors as _{what} does arrays"
            )
            raise Error(msg)
    raise AssertionError(what)  # Penalty itself has a `_slope`, and the other two are abstract there


def _entrywise_prox(R: Separable, u: Tensor, mu: float | Tensor) -> Tensor:
    o = TorchArithmetic(u)
    return R.entry_prox(o, u, o.number(mu), *map(o.number, R.parameters()))


def _entrywise_value(R: Separable, z: Tensor) -> Tensor:
    o = TorchArithmetic(z)
    given = zip(R.domain, R.parameters(), strict=True)
    parameters = (_lam_at(p, z) if name in LAMS else o.rounded(o.number(p)) for name, p in given)
    return R.entry_value(o, z, *parameters).sum(-1)


def _lam(R: Any, u: Tensor) -> Tensor:
    """lam in float64 on the device of u, and 0 where R has none."""
    return TorchArithmetic(u).number(getattr(R, "lam", 0.0))


def _lam_minus(R: Any, u: Tensor) -> Tensor | None:
    """The weight of negative codes, where they have one of their own."""
    given = getattr(R, "lam_minus", None)
    return None if given is None else TorchArithmetic(u).number(given)


def _lam_at(given: Any, z: Tensor) -> Tensor:
    """A weight in the dtype of z; where it may be infinite, 0 for the entries of 0, which cost nothing."""
    lam = TorchArithmetic(z).number(given).to(z.dtype)
    if not isinstance(given, Tensor) and np.max(given) <= torch.finfo(z.dtype).max:  # a tensor is not looked into
        return lam
    return torch.where(z != 0, lam, 0)


def _felt(mu: float | Tensor, lam: Tensor) -> float | Tensor:
    """mu, without its gradient where lam is infinite: nothing of what is off hangs on mu, but 0 lam is NaN."""
    return torch.where(lam.isinf(), mu.detach(), mu) if isinstance(mu, Tensor) and mu.requires_grad else mu


def _hard(R: L0, u: Tensor, mu: float | Tensor) -> Tensor:
    """The threshold of L0 on the side of each entry of u, rounded once to the dtype of u."""

    def threshold(lam: Tensor) -> Tensor:
        return sqrt(2.0 * (_felt(mu, lam) * lam)).to(u.dtype)

    minus = _lam_minus(R, u)
    return by_sign(u, threshold(_lam(R, u)), None if minus is None else threshold(minus))


def _prox_group(R: GroupL2, u: Tensor, mu: float | Tensor) -> Tensor:
    groups = _groups(R, u)
    norms = group_norms(groups)
    t = (mu * _lam(R, u)).to(u.dtype).double()
    alive = ~(norms <= t)
    shrink = 1 - torch.where(alive, t, 0) / torch.where(alive, norms, 1)
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
    return sqrt(total) * unit


def _prox_sorted(R: SortedL1, u: Tensor, mu: float | Tensor) -> Tensor:
    if not u.numel():
        return u.clone()
    size, order = u.double().abs().sort(dim=-1, descending=True, stable=True)
    lam = _lam(R, u)
    lowered = torch.where(lam.isinf().any(), -torch.inf, size - mu * lam).reshape(-1, u.shape[-1])
    pool = _pools(lowered.detach())
    sums = torch.zeros_like(lowered).scatter_add(-1, pool, lowered)
    counts = torch.zeros_like(lowered).scatter_add(-1, pool, torch.ones_like(lowered))
    fitted = torch.relu((sums / counts.clamp(min=1)).gather(-1, pool)).reshape(u.shape)
    fitted = torch.zeros_like(fitted).scatter(-1, order, fitted)
    fitted = torch.where(u.isnan().any(dim=-1, keepdim=True), torch.nan, fitted)
    return torch.where(u > 0, fitted, -fitted).to(u.dtype) + 0


@library.custom_op("proxsae::pools", mutates_args=())
def _pools(rows: Tensor) -> Tensor:
    """For rows (n, P), the pools (n, P) whose means are the closest non-increasing row: numbered from 0 in each row.

    All neighbouring pools that increase are merged at once, until none does: every such merger belongs to the solution,
    in any order (thm-prox-sorted).
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


@_pools.register_fake
def _(rows: Tensor) -> Tensor:
    return torch.empty_like(rows, dtype=torch.int64)


@_pools.register_vmap
def _(info: Any, in_dims: tuple[int], rows: Tensor) -> tuple[Tensor, int]:
    rows = rows.movedim(in_dims[0], 0)
    return _pools(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape), 0


def _value_group(R: GroupL2, z: Tensor) -> Tensor:
    total = group_norms(_groups(R, z)).sum(-1)
    return (_lam_at(R.lam, total) * total).to(z.dtype)


def _value_sorted(R: SortedL1, z: Tensor) -> Tensor:
    size = z.abs().sort(dim=-1, descending=True).values
    return (_lam_at(R.lam, size) * size).sum(-1)


def _slope_l1(R: L1, z: Tensor) -> Tensor:
    return (torch.where(z != 0, _lam(R, z), 0) * z.sign()).to(z.dtype)


def _value_l0(R: L0, z: Tensor) -> Tensor:
    return torch.where(z != 0, by_sign(z, _lam(R, z), _lam_minus(R, z)).to(z.dtype), 0).sum(-1)


def _value_batch(R: BatchKSparse, z: Tensor) -> Tensor:
    fits = (z != 0).sum() <= R.k * math.prod(z.shape[:-1])
    return torch.where(fits, 0.0, torch.inf).to(z.dtype).expand(z.shape[:-1]).clone()


# Every family of `penalties/` that is not entry by entry, and L1, L0 and KSparse, the operators of the published SAEs:
# theirs are written twice on purpose, so that NumPy and torch can be tested against each other.
_OWN: dict[str, dict[type, Callable[..., Tensor]]] = {
    "prox": {
        L1: _prox_l1,
        L0: _prox_l0,
        KSparse: lambda R, u, mu: k_sparse(u, R.k),
        BatchKSparse: lambda R, u, mu: k_sparse(u.reshape(-1), R.k * math.prod(u.shape[:-1])).reshape(u.shape),
        GroupL2: _prox_group,
        SortedL1: _prox_sorted,
    },
    "value": {
        L1: lambda R, z: (_lam_at(R.lam, z) * z.abs()).sum(-1),
        L0: _value_l0,
        KSparse: lambda R, z: torch.where((z != 0).sum(-1) <= R.k, 0.0, torch.inf),
        BatchKSparse: _value_batch,
        GroupL2: _value_group,
        SortedL1: _value_sorted,
    },
    "slope": {L1: _slope_l1, Penalty: lambda R, z: torch.zeros_like(z)},
}
_ENTRYWISE: dict[str, Callable[..., Tensor]] = {"prox": _entrywise_prox, "value": _entrywise_value}

"""Wrong operators, each a plausible mistake, and the law that must reject it.

A mutant is the right penalty with one part replaced.  If its law accepts it, the tests fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from proxsae.penalties import L0, L1, MCP, SCAD, BatchKSparse, ElasticNet, GroupL2, KSparse, SortedL1
from proxsae.testing.oracles import Array


@dataclass(frozen=True)
class Mutant:
    """`R` with another prox or value: what a law sees instead of the penalty."""

    name: str
    killed_by: str
    R: Any
    wrong_prox: Callable[[Any, Any, float], Any] | None = None
    wrong_value: Callable[[Any], Any] | None = None
    torch: bool = False

    def prox(self, u: Any, step: float = 1.0) -> Any:
        """The planted operator."""
        return self.wrong_prox(self.R, u, step) if self.wrong_prox else self.R.prox(u, step)

    def value(self, z: Any) -> Any:
        """The planted value."""
        return self.wrong_value(z) if self.wrong_value else self.R.value(z)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "R"), name)


LAM, K = 0.5, 2
SOFT, RELU = L1(LAM), L1(LAM, nonneg=True)
HARD, JUMP = L0(LAM), L0(LAM, nonneg=True)
SIDES, ONE_SIDE = L0(LAM, lam_minus=2.0), L0(LAM, lam_minus=np.inf)
EACH_SIDE = L0(np.array([LAM, 2.0, 0.0, 4.0, LAM]), lam_minus=np.array([4.0, LAM, 2.0, 1.0, 0.0]))
ABSTOPK, TOPK = KSparse(K), KSparse(K, nonneg=True)
ELASTIC, FIRM, CLIPPED = ElasticNet(LAM, 0.75), MCP(LAM, 1.5), SCAD(LAM, 2.5)
OFF = L1(np.array([LAM, np.inf, 0.0, np.inf, LAM]))
GROUPS, SORTED, BATCH = GroupL2(LAM, 2), SortedL1(np.array([2.0, 0.5, 0.5, 0.125, 0.0])), BatchKSparse(1)


def _in_place(R: Any, u: Any, step: float) -> Any:
    u[...] = SOFT.prox(u, step)
    return u


def _by(key: Callable[[Array], Array], k: int = K) -> Callable[[Any, Array, float], Array]:
    """Keep u where `key` is among its k largest, lowest index first."""

    def prox(R: Any, u: Array, step: float) -> Array:
        order = np.argsort(-key(u), axis=-1, kind="stable")
        kept = np.zeros(u.shape, dtype=bool)
        np.put_along_axis(kept, order[..., :k], True, axis=-1)
        return np.where(kept & (u != 0), u, u.dtype.type(0))

    return prox


def _boundary(u: Array) -> Array:
    """The k-th largest magnitude of each row, for rows that have one."""
    return np.sort(np.abs(u), axis=-1)[..., -K, None] if u.shape[-1] >= K else np.zeros_like(u[..., :1])


def _last_index(R: Any, u: Array, step: float) -> Array:
    return np.ascontiguousarray(_by(np.abs)(R, u[..., ::-1], step)[..., ::-1])


def _over_batch(R: Any, u: Array, step: float) -> Array:
    flat = _by(np.abs, K * (u.size // max(1, u.shape[-1])))(R, u.reshape(1, -1), step)
    return flat.reshape(u.shape)


def _some_steps(R: Any, u: Array, step: float) -> Array:
    return R.prox(u, step / 2 if 0.31 < step < 0.9 else step)


def _first_five(R: Any, u: Array, step: float) -> Array:
    return np.concatenate([R.prox(u[..., :5], step), R.prox(u[..., 5:], step / 2)], axis=-1)


def _straight_through(R: Any, u: Any, step: Any) -> Any:
    return u + (HARD.prox(u, step) - u).detach()


def _gradient_of_magnitude(R: Any, u: Any, step: float) -> Any:
    return ABSTOPK.prox(u, step).detach() + 0 * u.sum()


def _negative_without_step(R: Any, u: Array, step: float) -> Array:
    return np.where(u < 0, R.prox(u, 1.0), R.prox(u, step))


def _negative_at_lam(R: Any, u: Array, step: float) -> Array:
    return np.where(u < 0, _keep(u, u < -step * R.lam_minus), R.prox(u, step))


def _keeps_negative_ties(R: Any, u: Array, step: float) -> Array:
    return np.where(u == -u.dtype.type(np.sqrt(2 * step * R.lam_minus)), u, R.prox(u, step))


def _nan_by_sign(R: Any, u: Array, step: float) -> Array:
    return _keep(u, (u > np.sqrt(2 * step * R.lam)) | (u < -np.sqrt(2 * step * R.lam_minus)))


def _large_for_infinite(R: Any, u: Array, step: float) -> Array:
    return L0(R.lam, lam_minus=9.0).prox(u, step)


def _reversed_minus(R: Any, u: Array, step: float) -> Array:
    return L0(R.lam, lam_minus=R.lam_minus[::-1].copy()).prox(u, step)


def _gradient_of_positive(R: Any, u: Any, step: float) -> Any:
    out = R.prox(u, step)
    return out.clamp(min=0) + out.clamp(max=0).detach()


def _zero(u: Array) -> Any:
    return u.dtype.type(0)


def _divide_first(R: Any, u: Array, step: float) -> Array:
    return SOFT.prox(u / u.dtype.type(1 + step * R.alpha), step)


def _no_half(z: Any) -> Any:
    return np.asarray((LAM * np.abs(z) + 0.75 * z * z).sum(-1)).astype(z.dtype)


def _firm(u: Array, step: float, lam: float, gamma: float) -> Array:
    size = np.abs(u)
    with np.errstate(all="ignore"):
        inner = np.clip((size - step * lam) / (1 - step / gamma), 0, size)
    return (np.sign(u) * inner).astype(u.dtype) + 0


def _hard_at_gamma_lam(R: Any, u: Array, step: float) -> Array:
    return R.prox(u, step) if step < R.gamma else _keep(u, np.abs(u) > R.gamma * R.lam)


def _never_flat(z: Any) -> Any:
    return np.asarray((LAM * np.abs(z) - z * z / 3).sum(-1)).astype(z.dtype)


def _middle_regime(R: Any, u: Array, step: float) -> Array:
    if step < R.a + 1:
        return R.prox(u, step)
    size, t = np.abs(u), step * R.lam
    kept = np.where(size <= t, 0, np.where(size <= R.lam * (R.a + 1 + step) / 2, size - t, size))
    return (np.sign(u) * kept).astype(u.dtype) + 0


def _jump_at_a_lam(R: Any, u: Array, step: float) -> Array:
    middle = R.a - 1 <= step < R.a + 1
    return np.where(np.abs(u) > R.a * R.lam, u, SOFT.prox(u, step)) if middle else R.prox(u, step)


def _group_with_division(R: Any, u: Array, step: float) -> Array:
    groups = u.reshape(*u.shape[:-1], -1, 2) if u.size else u[..., None]
    norms = np.sqrt((groups * groups).sum(-1, keepdims=True))
    with np.errstate(all="ignore"):
        kept = groups / norms * np.maximum(norms - u.dtype.type(step * LAM), 0)
    return kept.reshape(u.shape) + u.dtype.type(0)


def _group_keeps_ties(R: Any, u: Array, step: float) -> Array:
    out, t = R.prox(u, step), u.dtype.type(step * LAM)
    groups = u.reshape(*u.shape[:-1], -1, 2) if u.size else u[..., None]
    at = np.hypot(groups[..., :1], groups[..., -1:]) == t
    return np.where(np.broadcast_to(at, groups.shape).reshape(u.shape), u, out) + u.dtype.type(0)


def _squared_norm(R: Any, u: Array, step: float) -> Array:
    groups = u.reshape(*u.shape[:-1], -1, 2) if u.size else u[..., None]
    squares = (groups.astype(np.float64) ** 2).sum(-1, keepdims=True)
    with np.errstate(all="ignore"):
        kept = np.where(squares > step * LAM, groups * (1 - step * LAM / squares), 0)
    return kept.reshape(u.shape).astype(u.dtype) + u.dtype.type(0)


def _without_pooling(R: Any, u: Array, step: float, sign: int = -1) -> Array:
    """Sort, shrink and put back; -1: the largest magnitude gets the first weight, 1: the smallest does."""
    order = np.argsort(sign * np.abs(u), axis=-1, kind="stable")
    lowered = np.maximum(np.take_along_axis(np.abs(u), order, -1) - step * R.lam, 0)
    out = np.zeros(u.shape)
    np.put_along_axis(out, order, lowered, -1)
    return (np.sign(u) * out).astype(u.dtype) + u.dtype.type(0)


MUTANTS = (
    Mutant("soft: threshold ignores the step", "optimal", SOFT, lambda R, u, s: SOFT.prox(u, 1.0)),
    Mutant("soft: half the threshold", "optimal", SOFT, lambda R, u, s: SOFT.prox(u, s / 2)),
    Mutant("soft: no clip at zero", "optimal", SOFT, lambda R, u, s: u - u.dtype.type(s * LAM) * np.sign(u)),
    Mutant("soft: one-sided", "odd", SOFT, lambda R, u, s: RELU.prox(u, s)),
    Mutant("soft: u/|u|, NaN at 0", "convention", SOFT, lambda R, u, s: _nan_at_zero(u, s)),
    Mutant("soft: threshold off by 1 %", "moreau", SOFT, lambda R, u, s: SOFT.prox(u, 1.01 * s)),
    Mutant("soft: hard instead", "firm", SOFT, lambda R, u, s: HARD.prox(u, s)),
    Mutant("soft: writes its input", "form", SOFT, _in_place),
    Mutant("soft: upcasts to float64", "form", SOFT, lambda R, u, s: SOFT.prox(u, s).astype(np.float64)),
    Mutant("soft: zeros keep the sign of u", "form", SOFT, lambda R, u, s: np.copysign(SOFT.prox(u, s), u)),
    Mutant(
        "soft: NaN becomes 0",
        "convention",
        SOFT,
        lambda R, u, s: np.nan_to_num(SOFT.prox(u, s), posinf=np.inf, neginf=-np.inf),
    ),
    Mutant("l1 value: forgets |.|", "value", SOFT, wrong_value=lambda z: np.asarray(LAM * z.sum(-1))),
    Mutant("off: 0 times infinity", "value", OFF, wrong_value=lambda z: np.asarray((OFF.lam * np.abs(z)).sum(-1))),
    Mutant(
        "off: a large lam for an infinite one", "convention", OFF, lambda R, u, s: L1(np.minimum(R.lam, 9)).prox(u, s)
    ),
    Mutant("off: NaN becomes 0", "convention", OFF, lambda R, u, s: np.where(np.isinf(R.lam), _zero(u), R.prox(u, s))),
    Mutant("hard: threshold lam, not sqrt(2 mu lam)", "optimal", HARD, lambda R, u, s: _keep(u, np.abs(u) > s * LAM)),
    Mutant("hard: threshold sqrt(2 lam), without mu", "optimal", HARD, lambda R, u, s: HARD.prox(u, 1.0)),
    Mutant("hard: shrinks what it keeps", "optimal", HARD, lambda R, u, s: HARD.prox(u, s) * u.dtype.type(0.9)),
    Mutant(
        "hard: keeps ties",
        "convention",
        HARD,
        lambda R, u, s: _keep(u, np.abs(u) >= u.dtype.type(np.sqrt(2 * s * LAM))),
    ),
    Mutant("jump: takes |u| first", "optimal", JUMP, lambda R, u, s: JUMP.prox(np.abs(u), s)),
    Mutant("jump: two-sided", "nonneg", JUMP, lambda R, u, s: HARD.prox(u, s)),
    Mutant("sides: lam for both", "optimal", SIDES, lambda R, u, s: HARD.prox(u, s)),
    Mutant("sides: swapped", "optimal", SIDES, lambda R, u, s: L0(2.0, lam_minus=LAM).prox(u, s)),
    Mutant("sides: the negative threshold without mu", "optimal", SIDES, _negative_without_step),
    Mutant("sides: the negative threshold is lam_minus", "optimal", SIDES, _negative_at_lam),
    Mutant("sides: keeps negative ties", "convention", SIDES, _keeps_negative_ties),
    Mutant("sides: NaN goes to 0 by its sign", "convention", SIDES, _nan_by_sign),
    Mutant("sides: the negative code becomes positive", "shrinks", SIDES, lambda R, u, s: np.abs(R.prox(u, s))),
    Mutant("sides value: lam for both", "value", SIDES, wrong_value=lambda z: HARD.value(z)),
    Mutant("sides: a large weight for infinity", "optimal", ONE_SIDE, _large_for_infinite),
    Mutant("sides: weights in reversed order", "optimal", EACH_SIDE, _reversed_minus),
    Mutant("sides: gradient on the positive side only", "gradient", SIDES, _gradient_of_positive, torch=True),
    Mutant("abs-top-k: signed selection", "optimal", ABSTOPK, _by(lambda u: u)),
    Mutant("abs-top-k: returns |u|", "optimal", ABSTOPK, lambda R, u, s: np.abs(ABSTOPK.prox(u, s))),
    Mutant("abs-top-k: keeps k + 1", "optimal", ABSTOPK, _by(np.abs, K + 1)),
    Mutant("abs-top-k: keeps all ties", "optimal", ABSTOPK, lambda R, u, s: _keep(u, np.abs(u) >= _boundary(u))),
    Mutant("abs-top-k: drops all ties", "optimal", ABSTOPK, lambda R, u, s: _keep(u, np.abs(u) > _boundary(u))),
    Mutant("abs-top-k: highest index among ties", "convention", ABSTOPK, _last_index),
    Mutant("abs-top-k: over the batch", "rows", ABSTOPK, _over_batch),
    Mutant(
        "abs-top-k: later entries weigh more",
        "permutation",
        ABSTOPK,
        _by(lambda u: np.abs(u) * (1 + np.arange(u.shape[-1]))),
    ),
    Mutant(
        "abs-top-k: shrinks by the step",
        "projection",
        ABSTOPK,
        lambda R, u, s: ABSTOPK.prox(u, s) * u.dtype.type(1 / (1 + s)),
    ),
    Mutant(
        "abs-top-k: NaN ranks last",
        "convention",
        ABSTOPK,
        _by(lambda u: np.nan_to_num(np.abs(u), nan=-1, posinf=np.inf)),
    ),
    Mutant("top-k: takes |u| first", "optimal", TOPK, lambda R, u, s: TOPK.prox(np.abs(u), s)),
    Mutant("top-k: selects by |u|, then clips", "optimal", TOPK, lambda R, u, s: np.maximum(ABSTOPK.prox(u, s), 0)),
    Mutant("soft: lam in the denominator", "lam", SOFT, lambda R, u, s: L1(0.25 / R.lam).prox(u, s)),
    Mutant("soft: step in the denominator", "step", SOFT, lambda R, u, s: R.prox(u, 1 / s)),
    Mutant("soft: debiased past the input", "shrinks", SOFT, lambda R, u, s: R.prox(u, s) * u.dtype.type(1.5)),
    Mutant("hard: a band only", "monotone", HARD, lambda R, u, s: np.where(np.abs(u) > 3, _zero(u), R.prox(u, s))),
    Mutant("soft: wrong at steps from 0.31 to 0.9", "optimal", SOFT, _some_steps),
    Mutant("soft: wrong above 1000", "optimal", SOFT, lambda R, u, s: _keep(R.prox(u, s), np.abs(u) <= 1000)),
    Mutant("soft: wrong below 1e-3", "optimal", SOFT, lambda R, u, s: np.where(np.abs(u) < 1e-3, u, R.prox(u, s))),
    Mutant("soft: wrong past the fifth entry", "optimal", SOFT, _first_five),
    Mutant("soft: wrong on three axes", "rows", SOFT, lambda R, u, s: R.prox(u, s if u.ndim < 3 else 2 * s)),
    Mutant("soft: NaN spreads to its row", "nan", SOFT, lambda R, u, s: R.prox(u, s) + 0 * u.sum(-1, keepdims=True)),
    Mutant("elastic net: forgets to divide", "optimal", ELASTIC, lambda R, u, s: SOFT.prox(u, s)),
    Mutant("elastic net: divides before it shrinks", "optimal", ELASTIC, _divide_first),
    Mutant("elastic net: alpha without its half", "value", ELASTIC, wrong_value=_no_half),
    Mutant("mcp: firm formula past gamma", "optimal", FIRM, lambda R, u, s: _firm(u, s, R.lam, R.gamma)),
    Mutant("mcp: hard at gamma lam past gamma", "optimal", FIRM, _hard_at_gamma_lam),
    Mutant("mcp: slope without the step", "optimal", FIRM, lambda R, u, s: R.prox(u, 1.0)),
    Mutant("mcp value: never flat", "value", FIRM, wrong_value=_never_flat),
    Mutant("scad: the rule for step 1, at every step", "optimal", CLIPPED, lambda R, u, s: R.prox(u, 1.0)),
    Mutant("scad: middle regime past a + 1", "optimal", CLIPPED, _middle_regime),
    Mutant("scad: jumps at a lam", "optimal", SCAD(LAM, 2.25), _jump_at_a_lam),
    Mutant("group: entry by entry", "optimal", GROUPS, lambda R, u, s: SOFT.prox(u, s)),
    Mutant("group: NaN in a zero block", "convention", GROUPS, _group_with_division),
    Mutant("group: squared norm", "optimal", GROUPS, _squared_norm),
    Mutant("group: keeps blocks at the threshold", "convention", GROUPS, _group_keeps_ties),
    Mutant("sorted: no pooling", "optimal", SORTED, _without_pooling),
    Mutant("sorted: smallest weight on the largest", "optimal", SORTED, partial(_without_pooling, sign=1)),
    Mutant("sorted: weights in the order of latents", "optimal", SORTED, lambda R, u, s: L1(R.lam).prox(u, s)),
    Mutant("batch: row by row", "convention", BATCH, lambda R, u, s: KSparse(R.k).prox(u, s)),
    Mutant(
        "batch: k entries in all",
        "optimal",
        BATCH,
        lambda R, u, s: KSparse(R.k).prox(u.reshape(1, -1)).reshape(u.shape),
    ),
    Mutant("hard: straight-through in u", "gradient", HARD, _straight_through, torch=True),
    Mutant("abs-top-k: gradient lost", "gradient", ABSTOPK, _gradient_of_magnitude, torch=True),
)


def _keep(u: Array, where: Array) -> Array:
    return np.where(where & (u != 0), u, _zero(u))


def _nan_at_zero(u: Array, step: float) -> Array:
    with np.errstate(all="ignore"):
        return np.maximum(np.abs(u) - u.dtype.type(step * LAM), 0) * (u / np.abs(u)).astype(u.dtype)

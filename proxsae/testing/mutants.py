"""Wrong operators, each a mistake that somebody made or may make, and the law that must see it.

A mutant is the right penalty with one part replaced; a law that lets its own mutant through fails the suite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from proxsae.penalties import L0, L1, KSparse
from proxsae.testing.laws import Array


@dataclass(frozen=True)
class Mutant:
    """`R` with another prox or value: what a law sees instead of the penalty."""

    name: str
    killed_by: str
    R: Any
    wrong_prox: Callable[[Any, float], Any] | None = None
    wrong_value: Callable[[Any], Any] | None = None
    torch: bool = False

    def prox(self, u: Any, step: float = 1.0) -> Any:
        """The planted operator."""
        return self.wrong_prox(u, step) if self.wrong_prox else self.R.prox(u, step)

    def value(self, z: Any) -> Any:
        """The planted value."""
        return self.wrong_value(z) if self.wrong_value else self.R.value(z)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "R"), name)


LAM, K = 0.5, 2
SOFT, RELU = L1(LAM), L1(LAM, nonneg=True)
HARD, JUMP = L0(LAM), L0(LAM, nonneg=True)
ABSTOPK, TOPK = KSparse(K), KSparse(K, nonneg=True)


def _in_place(u: Any, step: float) -> Any:
    u[...] = SOFT.prox(u, step)
    return u


def _by(key: Callable[[Array], Array], k: int = K) -> Callable[[Array, float], Array]:
    """Keep u where `key` is among its k largest, lowest index first."""

    def prox(u: Array, step: float) -> Array:
        order = np.argsort(-key(u), axis=-1, kind="stable")
        kept = np.zeros(u.shape, dtype=bool)
        np.put_along_axis(kept, order[..., :k], True, axis=-1)
        return np.where(kept & (u != 0), u, u.dtype.type(0))

    return prox


def _boundary(u: Array) -> Array:
    """The k-th largest magnitude of each row, for rows that have one."""
    return np.sort(np.abs(u), axis=-1)[..., -K, None] if u.shape[-1] >= K else np.zeros_like(u[..., :1])


def _last_index(u: Array, step: float) -> Array:
    return np.ascontiguousarray(_by(np.abs)(u[..., ::-1], step)[..., ::-1])


def _over_batch(u: Array, step: float) -> Array:
    flat = _by(np.abs, K * (u.size // max(1, u.shape[-1])))(u.reshape(1, -1), step)
    return flat.reshape(u.shape)


def _straight_through(u: Any, step: Any) -> Any:
    return u + (HARD.prox(u, step) - u).detach()


def _gradient_of_magnitude(u: Any, step: float) -> Any:
    return ABSTOPK.prox(u, step).detach() + 0 * u.sum()


def _zero(u: Array) -> Any:
    return u.dtype.type(0)


MUTANTS = (
    Mutant("soft: threshold ignores the step", "optimal", SOFT, lambda u, s: SOFT.prox(u, 1.0)),
    Mutant("soft: half the threshold", "optimal", SOFT, lambda u, s: SOFT.prox(u, s / 2)),
    Mutant("soft: no clip at zero", "optimal", SOFT, lambda u, s: u - u.dtype.type(s * LAM) * np.sign(u)),
    Mutant("soft: one-sided", "odd", SOFT, lambda u, s: RELU.prox(u, s)),
    Mutant("soft: u/|u|, NaN at 0", "convention", SOFT, lambda u, s: _nan_at_zero(u, s)),
    Mutant("soft: threshold off by 1 %", "moreau", SOFT, lambda u, s: SOFT.prox(u, 1.01 * s)),
    Mutant("soft: hard instead", "firm", SOFT, lambda u, s: HARD.prox(u, s)),
    Mutant("soft: writes its input", "form", SOFT, _in_place),
    Mutant("soft: upcasts to float64", "form", SOFT, lambda u, s: SOFT.prox(u, s).astype(np.float64)),
    Mutant("soft: zeros keep the sign of u", "form", SOFT, lambda u, s: np.copysign(SOFT.prox(u, s), u)),
    Mutant(
        "soft: NaN becomes 0",
        "convention",
        SOFT,
        lambda u, s: np.nan_to_num(SOFT.prox(u, s), posinf=np.inf, neginf=-np.inf),
    ),
    Mutant("l1 value: forgets |.|", "value", SOFT, wrong_value=lambda z: np.asarray(LAM * z.sum(-1))),
    Mutant("hard: threshold lam, not sqrt(2 mu lam)", "optimal", HARD, lambda u, s: _keep(u, np.abs(u) > s * LAM)),
    Mutant("hard: threshold sqrt(2 lam), without mu", "optimal", HARD, lambda u, s: HARD.prox(u, 1.0)),
    Mutant("hard: shrinks what it keeps", "optimal", HARD, lambda u, s: HARD.prox(u, s) * u.dtype.type(0.9)),
    Mutant(
        "hard: keeps ties", "convention", HARD, lambda u, s: _keep(u, np.abs(u) >= u.dtype.type(np.sqrt(2 * s * LAM)))
    ),
    Mutant("jump: takes |u| first", "optimal", JUMP, lambda u, s: JUMP.prox(np.abs(u), s)),
    Mutant("jump: two-sided", "nonneg", JUMP, lambda u, s: HARD.prox(u, s)),
    Mutant("abs-top-k: signed selection", "optimal", ABSTOPK, _by(lambda u: u)),
    Mutant("abs-top-k: returns |u|", "optimal", ABSTOPK, lambda u, s: np.abs(ABSTOPK.prox(u, s))),
    Mutant("abs-top-k: keeps k + 1", "optimal", ABSTOPK, _by(np.abs, K + 1)),
    Mutant("abs-top-k: keeps all ties", "optimal", ABSTOPK, lambda u, s: _keep(u, np.abs(u) >= _boundary(u))),
    Mutant("abs-top-k: drops all ties", "optimal", ABSTOPK, lambda u, s: _keep(u, np.abs(u) > _boundary(u))),
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
        lambda u, s: ABSTOPK.prox(u, s) * u.dtype.type(1 / (1 + s)),
    ),
    Mutant(
        "abs-top-k: NaN ranks last",
        "convention",
        ABSTOPK,
        _by(lambda u: np.nan_to_num(np.abs(u), nan=-1, posinf=np.inf)),
    ),
    Mutant("top-k: takes |u| first", "optimal", TOPK, lambda u, s: TOPK.prox(np.abs(u), s)),
    Mutant("top-k: selects by |u|, then clips", "optimal", TOPK, lambda u, s: np.maximum(ABSTOPK.prox(u, s), 0)),
    Mutant("hard: straight-through in u", "gradient", HARD, _straight_through, torch=True),
    Mutant("abs-top-k: gradient lost", "gradient", ABSTOPK, _gradient_of_magnitude, torch=True),
)


def _keep(u: Array, where: Array) -> Array:
    return np.where(where & (u != 0), u, _zero(u))


def _nan_at_zero(u: Array, step: float) -> Array:
    with np.errstate(all="ignore"):
        return np.maximum(np.abs(u) - u.dtype.type(step * LAM), 0) * (u / np.abs(u)).astype(u.dtype)

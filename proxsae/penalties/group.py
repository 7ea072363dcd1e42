"""Penalties that see several latents at once: groups that live or die together, and sorted weights.

Sums run in float64 and, over a group, in the order of its latents, so that both backends round alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from proxsae.conventions import Error, may_look
from proxsae.penalties.base import Floats, Penalty, lam_at, rounded


@dataclass(frozen=True, eq=False)
class GroupL2(Penalty):
    """lam sum_g ||z_g||_2 over consecutive groups of `size` latents: the group lasso.

        prox_{mu R}(u)_g = u_g max(0, 1 - mu lam / ||u_g||),  0 where ||u_g|| <= mu lam          (thm-prox-group)

    lam: one number in [0, inf]; size: a whole number >= 1 that divides P.  size = 1 is L1.  A NaN poisons its group.
    Statement: thm-prox-group (Yuan and Lin 2006; Parikh and Boyd 2014, section 6.5.4).

    >>> GroupL2(lam=2.5, size=2).prox(np.array([3.0, 4.0, 1.0, -1.0]))
    array([1.5, 2. , 0. , 0. ])
    """

    lam: Any
    size: int
    nonneg: bool = False

    convex = True
    statement = "thm-prox-group"
    domain: ClassVar = {"lam": ">= 0", "size": "whole >= 1"}

    def check_fits(self, name: str, a: Any, width: int) -> None:
        """Raise `Error` unless the groups fill the width."""
        super().check_fits(name, a, width)
        if width % self.size:
            msg = f"{name} has {width} latents, but groups of {self.size} need a multiple of {self.size}"
            raise Error(msg)

    def _value(self, z: Floats) -> Floats:
        total = group_norms(self._groups(z)).sum(axis=-1)
        return lam_at(self.lam, total) * total

    def _prox(self, u: Floats, step: float | Floats) -> Floats:
        groups = self._groups(u)
        norms, t = group_norms(groups), rounded(step * self.lam, u.dtype).astype(np.float64)
        with np.errstate(all="ignore"):  # 0 / 0 in groups that go to 0
            shrunk = np.where((norms <= t)[..., None], 0, groups * (1 - t / norms)[..., None])
        return shrunk.reshape(u.shape).astype(u.dtype) + 0  # an underflow is not -0.0

    def _groups(self, a: Floats) -> Floats:
        return a.astype(np.float64).reshape(*a.shape[:-1], a.shape[-1] // self.size, self.size)


@dataclass(frozen=True, eq=False)
class SortedL1(Penalty):
    """sum_i lam_i |z|_(i), with |z|_(1) >= |z|_(2) >= ... and lam non-increasing: sorted l1, OWL, SLOPE.

    prox_{mu R}(u): sort |u| decreasingly, subtract mu lam, take the non-increasing least-squares fit (isotonic
    regression), clip at 0, undo the sort, restore the signs                                     (thm-prox-sorted)

    lam: shape (P,), non-increasing and >= 0, or one number (which makes it L1).  A NaN poisons its row.
    Statement: thm-prox-sorted (Bogdan, van den Berg, Sabatti, Su and Candes 2015, section 2; Zeng and Figueiredo 2014).

    >>> SortedL1(lam=np.array([2.0, 1.0])).prox(np.array([-2.5, 3.0]))
    array([-1.25,  1.25])
    """

    lam: Any
    nonneg: bool = False

    convex = True
    statement = "thm-prox-sorted"
    domain: ClassVar = {"lam": ">= 0 per latent"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if np.ndim(self.lam) and may_look(self.lam) and bool((self.lam[1:] > self.lam[:-1]).any()):
            msg = "SortedL1: lam must be non-increasing, or the penalty is not convex (thm-prox-sorted)"
            raise Error(msg)

    def _value(self, z: Floats) -> Floats:
        size = -np.sort(-np.abs(z), axis=-1)
        return (lam_at(self.lam, size) * size).sum(axis=-1)

    def _prox(self, u: Floats, step: float | Floats) -> Floats:
        if not u.size:
            return u.copy()
        if np.isinf(self.lam).any():  # the largest weight is: only z = 0 costs less than infinity
            return np.where(np.isnan(u).any(axis=-1, keepdims=True), u.dtype.type(np.nan), np.zeros_like(u))
        size = np.abs(u.astype(np.float64))
        order = np.argsort(-size, axis=-1, kind="stable")
        lowered = np.take_along_axis(size, order, axis=-1) - step * self.lam
        fitted = np.zeros_like(size)
        np.put_along_axis(fitted, order, np.maximum(_non_increasing(lowered), 0), axis=-1)
        return np.where(u > 0, fitted, -fitted).astype(u.dtype) + 0  # zeros are +0.0


def group_norms(groups: Floats) -> Floats:
    """||z_g||_2 over the last axis, (..., s) -> (...), without overflow or underflow; NaN and infinity are kept."""
    largest = np.abs(groups).max(axis=-1, initial=0)
    unit = np.where((largest > 0) & (largest < np.inf), largest, 1)
    total = np.zeros_like(largest)
    for i in range(groups.shape[-1]):
        total = total + (groups[..., i] / unit) ** 2
    return np.sqrt(total) * unit


def _non_increasing(rows: Floats) -> Floats:
    """The closest non-increasing row to each row, in least squares; a row with NaN is all NaN."""
    from scipy.optimize import isotonic_regression

    fitted = np.full_like(rows, np.nan)
    flat, out = rows.reshape(-1, rows.shape[-1]), fitted.reshape(-1, rows.shape[-1])
    for i in np.flatnonzero(~np.isnan(flat).any(axis=-1)):
        out[i] = isotonic_regression(flat[i], increasing=False).x
    return fitted

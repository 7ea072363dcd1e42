"""One source for every scalar formula: NumPy and torch evaluate it on floats, the machine proofs on all reals.

A separable family writes its value and its prox once, for one entry, in terms of + - * / and comparisons and of the
few operations below.  `FloatArithmetic` carries them out in NumPy, `proxsae.pytorch.arithmetic` in torch, and
`proxsae.statements.proofs.arithmetic` on symbols, so that what is proved is what runs, but for rounding.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from proxsae.penalties.base import Floats, Penalty, lam_at, rounded
from proxsae.penalties.domain import LAMS

CACHED = 2**15  # entries whose intermediate results stay in the cache of a core


class FloatArithmetic:
    """The operations of a scalar formula on NumPy arrays; thresholds are rounded once to the dtype of u."""

    where = staticmethod(np.where)
    abs = staticmethod(np.abs)
    sqrt = staticmethod(np.sqrt)

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def wide(self, a: Any) -> Any:
        """An entry in float64, for a factor that the dtype of u may have no room for; round the product."""
        return np.asarray(a, np.float64)

    def rounded(self, t: Any) -> Any:
        """A threshold or an entry, rounded once to the dtype of u."""
        return rounded(t, self.dtype)

    def by_sign(self, u: Any, plus: Any, minus: Any) -> Any:
        """`plus` where u > 0, else `minus`; as it is where both are one object, which saves a pass over u."""
        return plus if plus is minus else np.where(u > 0, plus, minus)

    def soft(self, u: Any, t: Any) -> Any:
        """u moved towards 0 by t, and 0 where |u| <= t."""
        inner = np.clip(u, -t, t)
        moved = np.subtract(u, inner, out=inner if np.ndim(inner) else None)  # a third of a choice's time
        plain = ((t > 0) & (t < np.inf)).all()  # at 0 the sign of clip's zeros is not defined, at infinity inf - inf
        return moved if plain else np.where(np.abs(u) <= t, 0, moved)


class Separable(Penalty):
    """R(z) = sum_i r(z_i) with r(0) = 0 and r not falling as z_i moves away from 0 (lem-separable, lem-shrinks).

    r is even, unless the family has a `lam_minus`, the weight of negative codes.

    A family gives `entry_value` and `entry_prox`, once, in an arithmetic o: NumPy, torch (with gradients) and the
    solver all run these lines.  Their last arguments are the parameters in the order of `domain`.

    A comparison with NaN is false: place comparisons so that a NaN ends in a branch that keeps it.  Gradients flow
    through both branches of `o.where`: keep divisors away from 0 in the branch that is not taken.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, eq=False)
    ... class Ridge(Separable):
    ...     alpha: float
    ...     nonneg: bool = False
    ...     convex = True
    ...     domain = {"alpha": ">= 0"}
    ...
    ...     @staticmethod
    ...     def entry_value(o, z, alpha):
    ...         return alpha / 2 * (z * z)
    ...
    ...     @staticmethod
    ...     def entry_prox(o, u, mu, alpha):
    ...         return o.rounded(o.wide(u) / (1 + mu * alpha))
    >>> Ridge(1.0).prox(np.array([3.0, -1.0]))
    array([ 1.5, -0.5])
    """

    separable = True
    many_passes: ClassVar[bool] = True  # over u, so that pieces which stay in a cache pay

    @staticmethod
    @abstractmethod
    def entry_value(o: Any, z: Any, *parameters: Any) -> Any:
        """The formula r(z), in the arithmetic o."""

    @staticmethod
    @abstractmethod
    def entry_prox(o: Any, u: Any, mu: Any, *parameters: Any) -> Any:
        """argmin_z mu r(z) + 1/2 (z - u)^2, the smallest magnitude among minimisers, in the arithmetic o."""

    def _value(self, z: Floats) -> Floats:
        given = zip(self.domain, self.parameters(), strict=True)
        parameters = (lam_at(p, z) if name in LAMS else p for name, p in given)
        return self.entry_value(FloatArithmetic(z.dtype), z, *parameters).sum(axis=-1)

    def _prox(self, u: Floats, step: float | Floats) -> Floats:
        o, parameters, mu = FloatArithmetic(u.dtype), self.parameters(), np.asarray(step, np.float64)
        with np.errstate(all="ignore"):  # in branches not taken
            if u.size <= CACHED or not self.many_passes:
                return self.entry_prox(o, u, mu, *parameters)
            rows = u.reshape(-1, u.shape[-1])
            of_rows = np.broadcast_to(mu, (*u.shape[:-1], 1)).reshape(-1, 1) if mu.ndim else None
            new, some = np.empty_like(rows), max(1, CACHED // u.shape[-1])
            for i in range(0, len(rows), some):
                part = mu if of_rows is None else of_rows[i : i + some]
                new[i : i + some] = self.entry_prox(o, rows[i : i + some], part, *parameters)
            return new.reshape(u.shape)

    def parameters(self) -> tuple[Any, ...]:
        """The parameters of the formulas, in the order of `domain`; a `lam_minus` of None is lam."""
        given = {name: getattr(self, name) for name in self.domain}
        if "lam_minus" in given and given["lam_minus"] is None:
            given["lam_minus"] = given["lam"]
        return tuple(given.values())


def soft(o: Any, u: Any, t: Any) -> Any:
    """u moved towards 0 by t, and 0 where |u| <= t: the operation of an arithmetic that has no faster one."""
    return o.where(o.abs(u) <= t, 0, o.where(u > 0, u - t, u + t))


def signed(o: Any, magnitude: Any, u: Any) -> Any:
    """`magnitude` with the sign of u."""
    return o.where(u > 0, magnitude, -magnitude)


def smaller(o: Any, a: Any, b: Any) -> Any:
    """min(a, b), and b where they are not ordered."""
    return o.where(a < b, a, b)


def larger(o: Any, a: Any, b: Any) -> Any:
    """max(a, b), and b where they are not ordered."""
    return o.where(a > b, a, b)

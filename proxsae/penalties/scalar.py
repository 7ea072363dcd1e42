"""One source for every scalar formula: NumPy and torch evaluate it on floats, the machine proofs on all reals.

A separable family writes its value and its prox once, for one entry, in terms of + - * / and comparisons and of the
few operations below.  `FloatArithmetic` carries them out in NumPy, `proxsae.pytorch.arithmetic` in torch, and
`proxsae.statements.proofs.arithmetic` on symbols, so that what is proved is what runs, but for rounding.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from proxsae.penalties.base import Floats, Penalty, lam_at, rounded


class FloatArithmetic:
    """The operations of a scalar formula on NumPy arrays; thresholds are rounded once to the dtype of u."""

    where = staticmethod(np.where)
    abs = staticmethod(np.abs)
    sqrt = staticmethod(np.sqrt)

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def rounded(self, t: Any) -> Any:
        """A threshold, rounded once to the dtype of u."""
        return rounded(t, self.dtype)

    def over(self, a: Any, b: Any) -> Any:
        """a / b, half precision by way of float32: a divisor above its range would leave nothing of a."""
        if np.dtype(self.dtype).itemsize > 2:
            return a / rounded(b, self.dtype)
        return (a.astype(np.float32) / rounded(b, np.float32)).astype(self.dtype)


class Separable(Penalty):
    """R(z) = sum_i r(z_i) with r even, r(0) = 0 and non-decreasing in |z_i| (lem-separable).

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
    ...         return u / o.rounded(1 + mu * alpha)
    >>> Ridge(1.0).prox(np.array([3.0, -1.0]))
    array([ 1.5, -0.5])
    """

    separable = True

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
        parameters = (lam_at(p, z) if name == "lam" else p for name, p in given)
        return self.entry_value(FloatArithmetic(z.dtype), z, *parameters).sum(axis=-1)

    def _prox(self, u: Floats, step: float | Floats) -> Floats:
        with np.errstate(all="ignore"):  # in branches not taken
            return self.entry_prox(FloatArithmetic(u.dtype), u, np.asarray(step, np.float64), *self.parameters())

    def parameters(self) -> tuple[Any, ...]:
        """The parameters of the formulas, in the order of `domain`."""
        return tuple(getattr(self, name) for name in self.domain)


def soft(o: Any, u: Any, t: Any) -> Any:
    """u moved towards 0 by t, and 0 where |u| <= t."""
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

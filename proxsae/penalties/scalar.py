"""One source for every scalar formula: NumPy evaluates it on floats, the machine proofs on all reals.

A separable family writes its value and its prox once, for one entry, in terms of + - * / and comparisons and of the
few operations below.  `FloatArithmetic` carries them out in NumPy; `proxsae.statements.proofs` has the same operations
on symbols, so that what is proved is what runs, but for rounding.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from proxsae.penalties.base import Floats, Penalty, rounded


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


class Separable(Penalty):
    """R(z) = sum_i r(z_i) with r even, r(0) = 0 and non-decreasing in |z_i| (lem-separable).

    A family gives `entry_value` and `entry_prox`, whose last arguments are named in `parameters`.  In both, the
    comparisons are placed so that a NaN, for which each of them is false, ends in a branch that hands it on.
    """

    separable = True
    indicator = False
    parameters: tuple[str, ...] = ("lam",)

    @staticmethod
    @abstractmethod
    def entry_value(o: Any, z: Any, *parameters: Any) -> Any:
        """The formula r(z), in the arithmetic o."""

    @staticmethod
    @abstractmethod
    def entry_prox(o: Any, u: Any, mu: Any, *parameters: Any) -> Any:
        """argmin_z mu r(z) + 1/2 (z - u)^2, the smallest magnitude among minimisers, in the arithmetic o."""

    def _value(self, z: Floats) -> Floats:
        return self.entry_value(FloatArithmetic(z.dtype), z, *self._given()).sum(axis=-1)

    def _prox(self, u: Floats, step: float | Floats) -> Floats:
        with np.errstate(all="ignore"):  # in branches not taken
            return self.entry_prox(FloatArithmetic(u.dtype), u, np.asarray(step, np.float64), *self._given())

    def _given(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.parameters)


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

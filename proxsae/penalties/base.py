"""What a penalty is: a value, a proximal operator, and flags that say which theorems hold for it.

    prox_{mu R}(u) = argmin_z  mu R(z) + 1/2 ||z - u||^2                                              (def-prox)

A family implements the signed operator only.  Non-negativity is the same for every family here:

    prox_{R + i(z >= 0)}(u) = prox_R(max(u, 0))                                                      (lem-nonneg)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error, check_floats, check_step, is_torch, torch_twin

Floats = NDArray[np.floating[Any]]


class Penalty(ABC):
    """R(z), with `value` and `prox`.  Flags are data, and choose the laws that an operator must obey.

    convex     the prox is single-valued and firmly nonexpansive (thm-firmly-nonexpansive)
    separable  R(z) is a sum over entries, so that one dimension at a time suffices
    indicator  R takes only the values 0 and infinity, so that the prox is a projection, free of the step
    affine     R is affine in z while no sign changes, as exact line steps and refits need
    rowwise    rows do not see each other
    statement  the label to cite
    """

    convex: ClassVar[bool]
    separable: ClassVar[bool]
    indicator: ClassVar[bool]
    affine: ClassVar[bool] = False
    rowwise: ClassVar[bool] = True
    statement: ClassVar[str]
    nonneg: bool

    @torch_twin("proxsae.pytorch.prox")
    def value(self, z: Any) -> Any:
        """R(z) for every row: shape (..., P) -> (...).  A negative entry costs infinity when `nonneg`."""
        z = check_floats("z", z)
        self.check_fits("z", z, z.shape[-1])
        wide = np.result_type(z.dtype, np.float32)  # half precision accumulates in float32
        with np.errstate(invalid="ignore", over="ignore"):  # 0 times infinity is NaN, and says so
            total = self._value(z.astype(wide, copy=False))
            if self.nonneg:
                total = np.where((z < 0).any(axis=-1), np.inf, total)
            return np.asarray(total).astype(z.dtype)

    @torch_twin("proxsae.pytorch.prox")
    def prox(self, u: Any, step: Any = 1.0) -> Any:
        """prox_{step R}(u), row by row: shape (..., P) -> (..., P); `step` is one number or one per row, shape (...).

        Statements: def-prox, and lem-nonneg for what `nonneg` does.
        Shape, dtype and device are kept and `u` is never written.  Zeros come out as +0.0.  Raises `Error` for
        integers, for a step that is not finite and > 0, and for a width that does not fit one lam per latent.
        """
        u = check_floats("u", u)
        step = check_step(step, u)
        self.check_fits("u", u, u.shape[-1])
        return self._prox(np.maximum(u, 0) if self.nonneg else u, _per_row(step))

    @torch_twin("proxsae.pytorch.prox")
    def slope(self, z: Any) -> Any:
        """The derivative of an `affine` R along the support of z, signs held: shape (..., P), and 0 off the support."""
        return self._slope(z)

    @abstractmethod
    def _value(self, z: Floats) -> Floats: ...

    @abstractmethod
    def _prox(self, u: Floats, step: float | Floats) -> Floats: ...

    def _slope(self, z: Floats) -> Floats:
        return np.zeros_like(z)

    def check_fits(self, name: str, a: Any, width: int) -> None:
        """Raise `Error` unless lam is one number, or one per latent of `a` in the library of `a`."""
        lam = getattr(self, "lam", None)
        if lam is None or isinstance(lam, float):
            return
        if is_torch(lam) and not is_torch(a):
            msg = f"{name} is a numpy array, but lam is a torch tensor: NumPy needs a number or a NumPy array"
            raise Error(msg)
        if lam.ndim and lam.shape[0] != width:
            msg = f"{name} has {width} latents, but lam holds {lam.shape[0]} values: one lam, or one per latent"
            raise Error(msg)

    def __eq__(self, other: object) -> bool:
        """Same family and equal parameters."""
        return type(self) is type(other) and all(
            _same(getattr(self, f.name), getattr(other, f.name))
            for f in fields(self)  # type: ignore[arg-type]  # every family is a dataclass
        )

    def __hash__(self) -> int:
        return hash((type(self), self.nonneg))


def check_lam(penalty: str, lam: Any) -> Any:
    """Return lam as a float, a read-only (P,) float64 array or the tensor it is; raise `Error` unless finite, >= 0."""
    shown = "an array" if np.ndim(lam) else f"{lam!r}"
    if not is_torch(lam):
        kind = np.asarray(lam).dtype.kind
        lam = np.array(lam, dtype=np.float64) if kind in "iuf" else np.array(math.nan)  # NaN is refused below
        lam.setflags(write=False)
    if lam.ndim > 1 or 0 in lam.shape or not bool(((lam >= 0) & (lam < math.inf)).all()):
        worst = f" with the entry {lam.min().item():g}" if lam.ndim == 1 and len(lam) else ""
        msg = f"{penalty}: lam={shown}{worst}, but lam must be finite and >= 0, one number or one per latent (def-prox)"
        raise Error(msg)
    return float(lam) if lam.ndim == 0 and not is_torch(lam) else lam


def check_parameter(name: str, value: Any, bound: float, or_equal: bool = False) -> float:
    """Return `value` as a float when it is finite and > bound (>= where `or_equal`), else raise `Error`."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not bound <= value < math.inf or (value == bound and not or_equal):
        msg = f"{name}={value!r} must be finite and {'>=' if or_equal else '>'} {bound}: one number"
        raise Error(msg)
    return float(value)


def rounded(t: Any, dtype: Any) -> Floats:
    """A threshold worked out in float64, rounded once: both backends compare with one number."""
    with np.errstate(over="ignore"):
        return np.asarray(t, dtype=np.float64).astype(dtype)


def _per_row(step: float | Floats) -> float | Floats:
    return step if isinstance(step, float) else step.astype(np.float64)[..., None]


def _same(a: Any, b: Any) -> bool:
    if is_torch(a) or is_torch(b):
        return a is b
    return np.array_equal(a, b)

"""What a penalty is: a value, a proximal operator, the domain of its parameters, and flags.

    prox_{mu R}(u) = argmin_z  mu R(z) + 1/2 ||z - u||^2                                              (def-prox)

A family implements the signed operator only.  Non-negativity is the same for every family here:

    prox_{R + i(z >= 0)}(u) = prox_R(max(u, 0))                                                      (lem-nonneg)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from typing import Any, ClassVar, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from proxsae.conventions import Error, check_floats, check_step, is_torch, torch_twin
from proxsae.penalties.domain import LAMS, check_parameter

Floats = NDArray[np.floating[Any]]
P = TypeVar("P", bound="Penalty")


class Penalty(ABC):
    """R(z), with `value` and `prox`.  Flags are data, and choose the laws that are checked.

    convex     the prox is single-valued and firmly nonexpansive (thm-firmly-nonexpansive)
    separable  R(z) is a sum over entries, so that one dimension at a time suffices
    indicator  R takes only the values 0 and infinity, so that the prox is a projection, free of the step
    affine     R is affine in z while no sign changes, as exact line steps and refits need
    rowwise    rows do not see each other
    statement  the label to cite
    domain     what each parameter may be, checked when a penalty is made: {"lam": ">= 0 per latent", "gamma": "> 0"}

    A penalty of your own is a subclass with `_value` and `_prox` for NumPy rows, signed; give `_torch_value` and
    `_torch_prox` with the same arguments if it is to take tensors.  For a sum over entries `Separable` is shorter.
    """

    convex: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    indicator: ClassVar[bool] = False
    affine: ClassVar[bool] = False
    rowwise: ClassVar[bool] = True
    statement: ClassVar[str]
    domain: ClassVar[Mapping[str, str]] = {}
    nonneg: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in ("value", "prox", "slope"):
            if name in vars(cls):
                msg = (
                    f"{cls.__name__} overrides {name}: override _{name}, which {name} calls after its checks (def-prox)"
                )
                raise Error(msg)

    def __post_init__(self) -> None:
        for name, allowed in self.domain.items():
            checked = check_parameter(type(self).__name__, name, getattr(self, name), allowed)
            object.__setattr__(self, name, checked)

    @torch_twin("proxsae.pytorch.prox")
    def value(self, z: Any) -> Any:
        """R(z) for every row: shape (..., P) -> (...).  A negative entry costs infinity when `nonneg`."""
        z = check_floats("z", z)
        self.check_fits("z", z, z.shape[-1])
        wide = np.result_type(z.dtype, np.float32)  # half precision accumulates in float32
        with np.errstate(invalid="ignore", over="ignore"):  # 0 times infinity is NaN
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
        mu = step if isinstance(step, float) else step.astype(np.float64)[..., None]  # one per row
        return self._prox(np.maximum(u, 0) if self.nonneg else u, mu)

    @torch_twin("proxsae.pytorch.prox")
    def slope(self, z: Any) -> Any:
        """The derivative of an `affine` R along the support of z, signs held: shape (..., P), and 0 off the support."""
        z = check_floats("z", z)
        self.check_fits("z", z, z.shape[-1])
        return self._slope(z)

    @abstractmethod
    def _value(self, z: Floats) -> Floats: ...

    @abstractmethod
    def _prox(self, u: Floats, step: float | Floats) -> Floats: ...

    def _slope(self, z: Floats) -> Floats:
        return np.zeros_like(z)

    def check_fits(self, name: str, a: Any, width: int) -> None:
        """Raise `Error` unless each weight is one number, or one per latent of `a` in the library of `a`."""
        for which, lam in lams(self).items():
            if is_torch(lam) and not is_torch(a):
                msg = f"{name} is a numpy array, but {which} is a torch tensor: NumPy needs a number or a NumPy array"
                raise Error(msg)
            if getattr(lam, "ndim", 0) and lam.shape[0] != width:
                msg = f"{name} has {width} latents, but {which} holds {lam.shape[0]} values: one lam, or one per latent"
                raise Error(msg)

    def __eq__(self, other: object) -> bool:
        """Same family and equal parameters."""
        if type(self) is not type(other):
            return False
        mine, others = vars(self), vars(other)
        return mine.keys() == others.keys() and all(_same(mine[name], others[name]) for name in mine)

    def __hash__(self) -> int:
        return hash((type(self), self.nonneg))


FORMULAS = tuple(kind + name for kind in ("_", "entry_", "_torch_") for name in ("value", "prox", "slope"))


def runs(R: Any, family: type[P]) -> TypeGuard[P]:
    """Whether R is of that family and has its formulas: what is proved of the family then holds for R.

    A subclass that overrides a formula is another operator, to which no certificate or fast path of the family applies.
    """
    mine = type(R)
    return isinstance(R, family) and all(getattr(mine, f, None) is getattr(family, f, None) for f in FORMULAS)


def check_dataclass(R: Any, what: str) -> Any:
    """Return R where its fields are known; `Error` for a penalty whose class is no dataclass, and what it cannot be."""
    if not is_dataclass(R):
        msg = f"{type(R).__name__} cannot be {what}: its class needs @dataclass(frozen=True, eq=False)"
        raise Error(msg)
    return R


def with_lam(R: Any, lam: Any) -> Any:
    """The same penalty with another lam."""
    return replace(check_dataclass(R, "given another lam"), lam=lam)


def lams(R: Any) -> dict[str, Any]:
    """The weights of R by name: lam where R has one, and lam_minus where negative codes have one of their own."""
    return {name: getattr(R, name) for name in LAMS if getattr(R, name, None) is not None}


def with_lams(R: Any, change: Callable[[Any], Any]) -> Any:
    """The same penalty with every weight w replaced by change(w); R itself where it has none."""
    found = {name: change(w) for name, w in lams(R).items()}
    return replace(check_dataclass(R, "given another lam"), **found) if found else R


def holds_signs(R: Any) -> bool:
    """Whether R is known on the sides of z only, so that a move along it ends where an entry changes its sign.

    That of L0 and KSparse, signed and with one weight, depends on the support alone.
    """
    return bool(R.convex or R.nonneg or "lam_minus" in lams(R))


def lam_at(lam: Any, z: Floats) -> Any:
    """lam where z is not 0: an entry of 0 costs nothing, also where its lam is infinite, or so in the dtype of z."""
    largest = lam if isinstance(lam, float) else np.max(lam)
    return np.where(z != 0, lam, 0) if largest > np.finfo(z.dtype).max else lam


def rounded(t: Any, dtype: Any) -> Floats:
    """A threshold worked out in float64, rounded once: both backends compare with one number."""
    with np.errstate(over="ignore"):
        return np.asarray(t, dtype=np.float64).astype(dtype)


def _same(a: Any, b: Any) -> bool:
    if is_torch(a) or is_torch(b):
        return a is b
    return np.array_equal(a, b)

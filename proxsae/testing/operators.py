"""Anyone's operator as the checker sees it: two functions put together, its name, and the libraries that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from proxsae.conventions import Error, check_count, is_torch
from proxsae.penalties import Penalty
from proxsae.testing import lattice
from proxsae.testing.laws import NUMPY, Backend, ours, torch_backends


@dataclass(frozen=True)
class Operator:
    """Plain functions as an operator; made by `operator`."""

    prox_of: Callable[[Any, float], Any]
    value_of: Callable[[Any], Any]
    convex: bool = False
    separable: bool = False
    indicator: bool = False
    nonneg: bool = False
    even: bool = False
    symmetric: bool = False
    rowwise: bool = True
    batched: bool = True
    widths: tuple[int, ...] = ()
    name: str = "operator"

    def prox(self, u: Any, step: float = 1.0) -> Any:
        """prox_{step R}(u), row by row where the function takes one row."""
        return self._rows(lambda row: self.prox_of(row, step), u)

    def value(self, z: Any) -> Any:
        """R(z), row by row where the function takes one row."""
        return self._rows(self.value_of, z)

    def __str__(self) -> str:
        return self.name

    def _rows(self, function: Callable[[Any], Any], a: Any) -> Any:
        if self.batched or a.ndim == 1:
            return function(a)
        lead = a.shape[:-1]
        empty = lead if function is self.value_of else a.shape
        out = [function(row) for row in a.reshape(math.prod(lead), a.shape[-1])]
        if is_torch(a):
            import torch

            out = [o if is_torch(o) else torch.as_tensor(o, dtype=a.dtype, device=a.device) for o in out]
            return torch.stack(out).reshape(*lead, *out[0].shape) if out else a.new_zeros(empty)
        return np.stack(out).reshape(*lead, *np.shape(out[0])) if out else np.zeros(empty, a.dtype)


def operator(
    prox: Callable[[Any, float], Any],
    value: Callable[[Any], Any],
    *,
    convex: bool = False,
    separable: bool = False,
    indicator: bool = False,
    nonneg: bool = False,
    even: bool = False,
    symmetric: bool = False,
    rowwise: bool = True,
    batched: bool = True,
    widths: Sequence[int] = (),
    name: str | None = None,
) -> Operator:
    """An operator from two functions, `prox(u, step)` and `value(z)`, and what is claimed of R:

    convex, separable, indicator, nonneg: as for `Penalty`
    even       R depends on |z| only, and does not fall as an |z_i| grows
    symmetric  entries may change places
    rowwise    rows do not see each other
    batched    the functions take rows (..., P); with False one row (P,), and they are called row by row
    widths     the row widths P that they accept (default: 0, 1, 2, 3, 5 and some up to 33)

    >>> half = operator(lambda u, step: u / (1 + step), lambda z: 0.5 * (z * z).sum(-1), convex=True, separable=True)
    >>> half.prox(np.array([2.0, -1.0]), 1.0)
    array([ 1. , -0.5])
    """
    claims = (convex, separable, indicator, nonneg, even, symmetric, rowwise, batched)
    return Operator(
        prox,
        value,
        *claims,
        tuple(check_count("widths", w, 0) for w in widths),
        name or str(getattr(prox, "__name__", "operator")),
    )


def label(R: Any) -> str:
    """What R is called, the same in every run: its text or its name, or else its type."""
    if isinstance(R, (Penalty, Operator)):
        return " ".join(str(R).split())
    name = getattr(R, "name", None)
    return name if isinstance(name, str) else type(R).__name__


def check_operator(op: Any) -> None:
    """Raise `Error` for what has no prox and value, such as a function or a class."""
    if isinstance(op, type) or not callable(getattr(op, "prox", None)) or not callable(getattr(op, "value", None)):
        name = getattr(op, "__name__", type(op).__name__)
        wrapped = f"wrap it: px.testing.operator(prox={name}, value=...)"
        hint = f"make one, {name}(...)" if isinstance(op, type) else wrapped
        msg = f"{name} is no operator, which has the methods prox(u, step) and value(z): {hint}"
        raise Error(msg)


def backends_of(R: Any) -> Sequence[Backend]:
    """NumPy, or torch on the CPU for an operator that refuses NumPy arrays and accepts tensors."""
    if ours(R) is not None:
        return NUMPY
    row = np.zeros((1, max(lattice.widths(R))))
    try:
        if isinstance(R.prox(row, 1.0), np.ndarray):
            return NUMPY
    except Exception:  # not for NumPy; or broken, and then the laws say how
        pass
    try:
        torches = torch_backends()
    except ImportError:
        return NUMPY
    fits = []
    for backend in torches:
        with suppress(Exception):  # a module whose parameters have the other dtype
            fits += [backend] if is_torch(R.prox(backend.make(row.astype(backend.dtype)), 1.0)) else []
    return tuple(fits) or NUMPY

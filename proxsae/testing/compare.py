"""The one way in which arrays are compared: type, shape, dtype and device first, then values."""

from __future__ import annotations

from typing import Any

import numpy as np

from proxsae.conventions import is_torch


def assert_same(got: Any, want: Any, what: str = "result") -> None:
    """Fail unless both are equal bit for bit: NaN equals NaN, and -0.0 differs from 0.0."""
    a, b = _alike(got, want, what)
    same = ((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))
    if not same.all():
        raise AssertionError(_report(what, a, b, ~same))


def assert_close(got: Any, want: Any, tol: float, what: str = "result") -> None:
    """Fail unless |got - want| <= tol (1 + max |want|) everywhere; NaN is never close to a number."""
    a, b = _alike(got, want, what)
    bound = tol * (1 + np.abs(b[np.isfinite(b)]).max(initial=0))
    with np.errstate(invalid="ignore"):
        far = ~((a == b) | (np.abs(a - b) <= bound))  # equal infinities are close
    if far.any():
        raise AssertionError(_report(what, a, b, far))


def numpy_of(a: Any) -> np.ndarray[Any, Any]:
    """Any array as NumPy, half precision as float32."""
    if is_torch(a):
        a = a.detach().cpu()
        a = a.float() if str(a.dtype) == "torch.bfloat16" else a
    return np.asarray(a)


def _alike(got: Any, want: Any, what: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    for name in ("type", "shape", "dtype", "device"):
        one, other = (type(a) if name == "type" else getattr(a, name, None) for a in (got, want))
        if one != other:
            msg = f"{what}: {name} is {one}, but must be {other}"
            raise AssertionError(msg)
    return numpy_of(got), numpy_of(want)


def _report(what: str, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any]) -> str:
    at = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(wrong)))
    one, other = np.atleast_1d(a)[at], np.atleast_1d(b)[at]
    return f"{what}: {int(wrong.sum())} entries differ, the first at {at}: {one!r}, but must be {other!r}"

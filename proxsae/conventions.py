"""What all modules share: the error class, the argument checks, and how a call finds its backend.

The letters are B batch, d input width (`d_in`), P latents (`d_sae`), k sparsity, T steps and mu step size; the last
axis is the vector and all leading axes are batch.  Ties, NaN and signed zeros are fixed in `docs/conventions.md`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


class Error(ValueError):
    """The one error of this package: the value given, what is allowed, and the hypothesis that it breaks."""


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """The end of a message on an unknown name: ": did you mean L1?" with the `most` names most like it, or nothing."""
    spelled = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), list(spelled), most)
    return f": did you mean {' or '.join(spelled[each] for each in near)}?" if near else ""


def is_torch(a: object) -> bool:
    """True for a torch tensor.  It never imports torch: where torch is not imported yet there are no tensors."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(a, torch.Tensor)


def may_look(a: object) -> bool:
    """Whether code may branch on the numbers in `a`: not on those of tensors in torch.func or torch.export.

    There tensors stand for others, so that no check of values can be made.
    """
    if not is_torch(a):
        return True
    torch = sys.modules["torch"]
    return not (torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active())


def namespace(a: object) -> ModuleType:
    """The library that `a` belongs to (`numpy` or `torch`), for formulas that read the same in both."""
    return sys.modules["torch"] if is_torch(a) else np


def torch_twin(module: str) -> Callable[[F], F]:
    """Send calls that hold a torch tensor to the function of the same name in `module`.

    NumPy code must not import torch, yet `R.prox(u)` should work on tensors too.  So the module is imported when the
    first tensor arrives; it is the only upward reference in the package.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def entry(*args: Any, **kwargs: Any) -> Any:
            if any(map(is_torch, (*args, *kwargs.values()))):
                return getattr(importlib.import_module(module), function.__name__)(*args, **kwargs)
            return function(*args, **kwargs)

        return entry  # type: ignore[return-value]

    return decorate


def library(module: str, extra: str) -> Any:
    """Import and return a module of an optional dependency, or raise `Error` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        msg = f"{module.split('.')[0]} is missing: pip install 'proxsae[{extra}]'"
        raise Error(msg) from None


def check_floats(name: str, a: Any) -> Any:
    """Return `a` as an array of real floats with at least one axis (tensors pass through), or raise `Error`."""
    if not is_torch(a):
        a = np.asarray(a)
    is_float = a.dtype.is_floating_point if is_torch(a) else np.issubdtype(a.dtype, np.floating)
    if not is_float:
        msg = f"{name} has dtype {a.dtype}, but a proximal step needs real floating point (float32, float64, ...)"
        raise Error(msg)
    if a.ndim == 0:
        msg = f"{name} is a single number, but the last axis must be the vector: shape (..., d)"
        raise Error(msg)
    return a


def check_finite(name: str, a: Any) -> None:
    """Raise `Error` when `a` holds NaN or infinity, where that can be seen (`may_look`)."""
    if not may_look(a):
        return
    bad = ~namespace(a).isfinite(a)
    if bool(bad.any()):
        first = tuple(int(i[0]) for i in np.nonzero(np.asarray(bad.cpu() if is_torch(bad) else bad)))
        msg = f"{name} holds {int(bad.sum())} NaN or infinite entries (the first at {first}), but it must be finite"
        raise Error(msg)


def as_number(value: Any) -> float | None:
    """A finite real number of Python or NumPy, or an array without axes that holds one, as a float; None for others."""
    a = np.asarray(value if isinstance(value, (int, float, np.number, np.ndarray)) else None)
    return float(a) if a.ndim == 0 and a.dtype.kind in "iuf" and np.isfinite(a) else None


def check_step(step: Any, u: Any) -> Any:
    """Return the step of prox(u) as a float or, for one step per row, as the array it is; else raise `Error`."""
    if is_torch(step) or (isinstance(step, np.ndarray) and step.ndim):
        if is_torch(step) != is_torch(u) or (step.ndim and tuple(step.shape) != tuple(u.shape[:-1])):
            given, rows = f"{_kind(step)} of shape {tuple(step.shape)}", tuple(u.shape[:-1])
            msg = f"step is {given}, but u needs a number or one per row, shape {rows}"
            raise Error(msg)
        ok = not may_look(step) or bool((namespace(step).isfinite(step) & (step > 0)).all())
    else:
        number = as_number(step)
        ok = number is not None and number > 0
        step = number if ok else step
    if not ok:
        msg = f"step={step!r} must be finite and > 0: prox_(step R) is an argmin only for a positive step (def-prox)"
        raise Error(msg)
    return step


def check_count(name: str, value: Any, least: int) -> int:
    """Return `value` as an int >= `least`, or raise `Error`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        msg = f"{name}={value!r} must be a whole number >= {least}"
        raise Error(msg)
    return int(value)


def check_seed(seed: int) -> int:
    """Return `seed` when it is a whole number in [0, 2^63), or raise `Error`."""
    if check_count("seed", seed, 0) >= 2**63:
        msg = f"seed={seed} must be below 2^63"
        raise Error(msg)
    return seed


def check_problem(
    x: Any, D: Any, z0: Any = None, bias: Any = None, R: Any = None, code: str = "z0"
) -> tuple[Any, Any, Any, Any]:
    """Check the data of  min_z 1/2 ||x - b - D z||^2 + R(z)  and return (x - b, D, z0, lead).

    Shapes: x (..., d), D (P, d) with atoms as rows, z0 (..., P), bias (d,).  `lead` is the shape of the batch axes,
    `code` what an error calls z0.
    Raises `Error` for another backend, dtype or shape, for NaN and infinities, and for a dictionary of zeros.
    """
    x, D = check_floats("x", x), check_floats("D", D)
    given = {"x": x, "D": D}
    if z0 is not None:
        given[code] = check_floats(code, z0)
    if bias is not None:
        given["bias"] = check_floats("bias", bias)
    for name, a in given.items():
        if is_torch(a) != is_torch(x) or a.dtype != x.dtype or getattr(a, "device", None) != getattr(x, "device", None):
            msg = (
                f"{name} is {_kind(a)}, but x is {_kind(x)}: all arrays of one problem share library, dtype and device"
            )
            raise Error(msg)
        check_finite(name, a)
    if D.ndim != 2 or D.shape[1] != x.shape[-1]:
        msg = f"D has shape {tuple(D.shape)}, but x of width {x.shape[-1]} needs (d_sae, {x.shape[-1]}): atoms are rows"
        raise Error(msg)
    if may_look(D) and not bool((D != 0).any()):
        msg = f"D of shape {tuple(D.shape)} is all zeros, but a step size 1/L needs L = ||D||^2 > 0"
        raise Error(msg)
    if bias is not None and bias.shape != x.shape[-1:]:
        msg = f"bias has shape {tuple(bias.shape)}, but x of width {x.shape[-1]} needs ({x.shape[-1]},)"
        raise Error(msg)
    if z0 is not None and tuple(z0.shape) != (*x.shape[:-1], D.shape[0]):
        msg = f"{code} has shape {tuple(z0.shape)}, but x and D need {(*x.shape[:-1], D.shape[0])}"
        raise Error(msg)
    if R is not None:
        if not callable(getattr(R, "check_fits", None)) or isinstance(R, type):
            msg = f"R={R!r} must be a penalty, such as KSparse(32)"
            raise Error(msg)
        R.check_fits("D", D, D.shape[0])
        if not R.rowwise:
            msg = f"{R!r} couples the rows of a batch, and the iteration takes rows one by one: use KSparse(k)"
            raise Error(msg)
    return (x if bias is None else x - bias), D, z0, tuple(x.shape[:-1])


def _kind(a: Any) -> str:
    where = f" on {a.device}" if is_torch(a) else ""
    return f"{'torch' if is_torch(a) else 'numpy'} {str(a.dtype).removeprefix('torch.')}{where}"
